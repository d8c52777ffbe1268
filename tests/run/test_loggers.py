"""metrics.csv survives kills and resumes; W&B neither asks, nor waits, nor stops a run."""

import csv
import os
import signal
import socket
import sys
import time

import pytest
import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from dtp.errors import UserError
from dtp.run.loggers import MetricsCSV, log_figure, make_wandb_logger, wandb_mode


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def text(folder):
    return (folder / "metrics.csv").read_text()


# --- metrics.csv ------------------------------------------------------------------------------------------------------


def test_rows_are_in_the_file_at_once(tmp_path):
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"epoch": 0.0, "train/loss": 0.5}, step=1)
    assert text(tmp_path) == "epoch,step,train/loss\n0,1,0.5\n"
    logger.log_metrics({"train/loss": torch.tensor(0.25), "epoch": 1}, step=2)
    assert text(tmp_path) == "epoch,step,train/loss\n0,1,0.5\n1,2,0.25\n"


def test_metrics_of_one_step_share_a_row(tmp_path):
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"epoch": 0, "a": 1.0, "b": 0.123456789}, step=1)
    logger.log_metrics({"epoch": 0, "a": 2.0, "b": 3.0}, step=2)
    logger.log_metrics({"b": 4.0}, step=2)
    logger.log_metrics({"epoch": 1, "test": 5.0}, step=2)
    logger.log_metrics({"a": 6.0})
    assert text(tmp_path) == "epoch,step,a,b,test\n0,1,1.0,0.123456789,\n0,2,6.0,4.0,5.0\n"


def test_a_shorter_row_leaves_nothing_of_the_longer_one(tmp_path):
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"a": 0.123456789}, step=1)
    logger.log_metrics({"a": 0.5}, step=1)
    logger.log_metrics({"a": 1.5}, step=2)
    assert text(tmp_path) == "epoch,step,a\n,1,0.5\n,2,1.5\n"


def test_floats_read_back_as_the_same_number(tmp_path):
    value = 1 / 3
    MetricsCSV(tmp_path).log_metrics({"a": value, "b": 1e-30, "c": float("nan"), "d": True, "e": None}, step=1)
    (row,) = rows(tmp_path)
    assert float(row["a"]) == value and float(row["b"]) == 1e-30
    assert (row["c"], row["d"], row["e"]) == ("nan", "True", "")


def test_new_columns_keep_all_rows(tmp_path):
    logger = MetricsCSV(tmp_path)
    for step in range(5):
        logger.log_metrics({f"m{step}": step}, step=step)
    assert [row[f"m{step}"] for step, row in enumerate(rows(tmp_path))] == list("01234")
    assert list(rows(tmp_path)[0]) == ["epoch", "step", "m0", "m1", "m2", "m3", "m4"]
    assert os.listdir(tmp_path) == ["metrics.csv"]


def test_an_existing_file_is_continued(tmp_path):
    MetricsCSV(tmp_path).log_metrics({"a": 1}, step=1)
    second = MetricsCSV(tmp_path)
    second.log_metrics({"a": 2}, step=2)
    third = MetricsCSV(tmp_path)
    third.log_metrics({"b": 3}, step=2)
    assert text(tmp_path) == "epoch,step,a,b\n,1,1,\n,2,2,3\n"


@pytest.mark.parametrize("step, kept", [(0, []), (1, ["1"]), (2, ["1", "2"]), (9, ["1", "2", "3"])])
def test_resume_drops_what_will_be_logged_again(tmp_path, step, kept):
    logger = MetricsCSV(tmp_path)
    for number in (1, 2, 3):
        logger.log_metrics({"a": number}, step=number)
    resumed = MetricsCSV(tmp_path)
    resumed.resume_at(step)
    assert [row["step"] for row in rows(tmp_path)] == kept
    resumed.log_metrics({"a": 10}, step=10)
    assert [row["step"] for row in rows(tmp_path)] == [*kept, "10"]


def test_resume_without_a_file_makes_none(tmp_path):
    MetricsCSV(tmp_path).resume_at(0)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "torn",
    ["0,3", "0,3,1.", "0,3,1.5", "5\n", "0,3,1.5,7\n", "\x00\x00\n", "\xff"],
    ids=["cells missing", "number cut", "newline missing", "rest of a row", "cell too many", "zeros", "not utf-8"],
)
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    whole = b"epoch,step,a\n0,1,0.5\n0,2,1.5\n"
    (tmp_path / "metrics.csv").write_bytes(whole + torn.encode("latin-1"))
    logger = MetricsCSV(tmp_path)
    logger.resume_at(2)
    assert text(tmp_path).encode() == whole
    logger.log_metrics({"a": 2.5}, step=3)
    assert text(tmp_path).encode() == whole + b",3,2.5\n"


def test_a_foreign_file_is_refused_and_left_alone(tmp_path):
    for content in ("name,value\nx,1\n", "no newline"):
        (tmp_path / "metrics.csv").write_text(content)
        with pytest.raises(UserError, match="expected a file that begins with the columns epoch,step"):
            MetricsCSV(tmp_path).log_metrics({"a": 1}, step=1)
        with pytest.raises(UserError):
            MetricsCSV(tmp_path).resume_at(0)
        assert text(tmp_path) == content


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        MetricsCSV(tmp_path / "missing").log_metrics({"a": 1}, step=1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_nothing_is_lost_when_the_process_is_killed(tmp_path):
    child = os.fork()
    if child == 0:
        try:
            logger = MetricsCSV(tmp_path)
            for step in range(20):
                logger.log_metrics({"a": step, f"b{step // 7}": 1}, step=step)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert [row["a"] for row in rows(tmp_path)] == [str(step) for step in range(20)]


def test_only_rank_zero_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = MetricsCSV(tmp_path)
    logger.resume_at(0)
    logger.log_metrics({"a": 1}, step=1)
    logger.finalize("success")
    assert os.listdir(tmp_path) == []


def test_what_lightning_asks_of_a_logger(tmp_path):
    logger = MetricsCSV(tmp_path / "run")
    assert (logger.name, logger.version) == ("run", "")
    assert logger.save_dir == logger.log_dir == logger.root_dir == str(tmp_path / "run")
    logger.log_hyperparams({"lr": 0.1})
    logger.save()
    logger.finalize("success")
    assert not (tmp_path / "run").exists()


# --- Weights & Biases -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, mode",
    [("online", "online"), ("offline", "offline"), ("disabled", "disabled"), ("dryrun", "offline"), ("run", "online")],
)
def test_wandb_mode_set_by_the_user(value, mode):
    assert wandb_mode({"WANDB_MODE": value}) == mode


def test_wandb_is_online_with_a_key_and_offline_without(tmp_path):
    assert wandb_mode({"HOME": str(tmp_path)}) == "offline"
    assert wandb_mode({"WANDB_API_KEY": "key"}) == "online"


@pytest.mark.parametrize(
    "content, url, mode",
    [
        ("machine api.wandb.ai login user password key\n", "", "online"),
        ("machine other.example login user password key\n", "", "offline"),
        ("machine other.example login user password key\n", "https://other.example", "online"),
        ("machine host:8080 login user password key\n", "http://host:8080", "online"),
        ("not a netrc file {", "", "offline"),
    ],
)
def test_wandb_key_in_netrc(tmp_path, content, url, mode):
    (tmp_path / "keys").write_text(content)
    assert wandb_mode({"NETRC": str(tmp_path / "keys"), "WANDB_BASE_URL": url}) == mode
    (tmp_path / ".netrc").write_text(content)
    assert wandb_mode({"HOME": str(tmp_path), "WANDB_BASE_URL": url}) == mode


@pytest.mark.parametrize(
    "environ",
    [{"WANDB_MODE": "yes"}, {"WANDB_BASE_URL": "nowhere"}, {"WANDB_BASE_URL": "https://host:port"}],
)
def test_wandb_malformed_settings(environ):
    with pytest.raises(UserError, match=f"{next(iter(environ))}: expected"):
        wandb_mode(environ)


def test_wandb_missing_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb.*--logger csv"):
        make_wandb_logger(tmp_path, {}, "run")


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    package = pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    yield package
    package.finish()


def test_wandb_offline_run_is_continued_under_its_id(tmp_path, monkeypatch, wandb, capfd):
    import matplotlib.pyplot as plt

    figure = tmp_path / "figure.png"
    plt.imsave(figure, torch.zeros(4, 4).numpy())
    logger = make_wandb_logger(tmp_path, {"lr": 0.1}, "a run")
    assert isinstance(logger, WandbLogger)
    run = logger.experiment
    assert run.offline and run.name == "a run" and run.config["lr"] == 0.1
    logger.log_metrics({"train/loss": 1.0}, step=1)
    log_figure([MetricsCSV(tmp_path), logger], "training", figure)
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/training*.png"))

    again = make_wandb_logger(tmp_path, {"lr": 0.1}, "a run").experiment
    assert again is not run
    assert again.id == run.id == (tmp_path / "wandb-id.txt").read_text().strip()
    assert "WANDB_MODE" not in os.environ
    wandb.finish()
    captured = capfd.readouterr()
    assert captured.out == ""
    assert [line for line in captured.err.splitlines() if "W&B is offline" not in line] == []


def test_wandb_run_of_an_agent_is_continued_under_its_id(tmp_path, monkeypatch, wandb):
    monkeypatch.setenv("WANDB_MODE", "offline")
    # As wandb agent starts the command.
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "of-agent")
    wandb.teardown()
    assert make_wandb_logger(tmp_path, {}, "a run").experiment.id == "of-agent"

    monkeypatch.delenv("WANDB_SWEEP_ID")
    monkeypatch.delenv("WANDB_RUN_ID")
    wandb.finish()
    wandb.teardown()
    assert make_wandb_logger(tmp_path, {}, "a run").experiment.id == "of-agent"


def test_wandb_that_refuses_falls_back_to_offline(tmp_path, monkeypatch, wandb, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    modes = []
    original = wandb.init

    def init(**settings):
        modes.append(settings["mode"])
        if settings["mode"] == "online":
            raise wandb.errors.CommError("the server\nsays no")
        return original(**settings)

    monkeypatch.setattr(wandb, "init", init)
    assert make_wandb_logger(tmp_path, {}, "run").experiment.offline
    assert modes == ["online", "offline"]
    assert "W&B is offline (the server says no)" in capsys.readouterr().err


@pytest.fixture
def silent_server():
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("proxy", [False, True])
def test_wandb_goes_on_offline_where_nobody_answers(tmp_path, monkeypatch, wandb, silent_server, proxy, capsys):
    monkeypatch.setattr("dtp.run.loggers.INIT_SECONDS", 1.0)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.invalid" if proxy else silent_server)
    monkeypatch.setenv("HTTP_PROXY", silent_server if proxy else "")
    began = time.monotonic()
    assert make_wandb_logger(tmp_path, {}, "run").experiment.offline
    # Far more than a second, and far less than W&B waits by itself.
    assert time.monotonic() - began < 30
    assert "W&B is offline (" in capsys.readouterr().err


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_wandb_variables_that_wandb_does_not_take_are_told_in_a_sentence(tmp_path, monkeypatch, wandb, mode, anew):
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_PROJECT", "a/b")
    if anew:
        # W&B then reads its variables before a run is asked for.
        wandb.teardown()
    with pytest.raises(UserError, match="--logger wandb: .*a/b"):
        make_wandb_logger(tmp_path, {}, "run")


def test_wandb_variables_name_project_run_and_entity(tmp_path, monkeypatch, wandb):
    for name in ("PROJECT", "NAME", "ENTITY"):
        monkeypatch.setenv(f"WANDB_{name}", f"my-{name.lower()}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    # W&B reads its variables when it is set up.
    wandb.teardown()
    run = make_wandb_logger(tmp_path, {}, "run").experiment
    assert (run.project, run.name, run.settings.entity) == ("my-project", "my-name", "my-entity")


def test_wandb_online_without_a_key_does_not_ask(tmp_path, monkeypatch, wandb, capsys):
    monkeypatch.setenv("WANDB_MODE", "online")
    assert make_wandb_logger(tmp_path, {}, "run").experiment.offline
    assert "no API key" in capsys.readouterr().err


def test_wandb_disabled_stays_disabled(tmp_path, monkeypatch, wandb):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = make_wandb_logger(tmp_path, {"lr": 0.1}, "run")
    logger.log_metrics({"a": 1.0}, step=1)
    assert logger.experiment.disabled
    assert not (tmp_path / "wandb").exists()


def test_wandb_keeps_no_password_of_the_command(tmp_path, monkeypatch, wandb):
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = ["main.py", "--data-dir", "https://me:secret@host/?token=geheim"]
    monkeypatch.setattr(sys, "argv", words)
    original, recorded = wandb.init, []

    def init(**given):
        recorded.extend(given["settings"]._args)
        return original(**given)

    monkeypatch.setattr(wandb, "init", init)
    make_wandb_logger(tmp_path, {"data_dir": words[2]}, "run")
    wandb.finish()
    assert recorded == ["--data-dir", "https://me:***@host/?token=***"] and sys.argv is words
    kept = b"".join(path.read_bytes() for path in (tmp_path / "wandb").rglob("*") if path.is_file())
    assert b"secret" not in kept and b"geheim" not in kept


def test_wandb_on_other_ranks_does_nothing(tmp_path, monkeypatch, wandb):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = make_wandb_logger(tmp_path, {"lr": 0.1}, "run")
    logger.log_metrics({"a": 1.0}, step=1)
    log_figure([logger], "training", tmp_path / "none.png")
    assert wandb.run is None and os.listdir(tmp_path) == []
