"""A run that is stopped anywhere and resumed ends with the weights of one never stopped, bit for bit."""

import fcntl
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch
import yaml

import dtp.run.training
from dtp.algorithms.base import Algorithm
from dtp.cli.train import main
from dtp.diagnostics.callback import AlignmentCallback
from dtp.run.checkpoints import CheckpointFiles
from dtp.run.folder import newest_checkpoint
from dtp.system.signals import Interrupted, stop_request
from tests.data.files import write_folder
from tests.runs import contents, fails, rows
from tests.system.test_signals import during_batch

ROOT = Path(__file__).parent.parent.parent
# Ten batches per epoch, three epochs.
COMMAND = "--model mlp --widths 16 16 --max-epochs 3 --batch-size 128 --log-every 2".split()
AUGMENTED = ["--crop-padding", "1", "--flip", "true"]


@pytest.fixture(autouse=True)
def no_stop_request(monkeypatch):
    monkeypatch.setattr(stop_request, "signum", None)
    monkeypatch.setattr(stop_request, "training", False)


def final_state(folder):
    checkpoint = torch.load(newest_checkpoint(folder), weights_only=True)
    assert checkpoint["epoch"] == 2
    return {
        name: checkpoint[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "noise", "global_step")
    }


def assert_identical(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_identical(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_identical(x, y)
    else:
        assert a == b


def stop_after(batches, monkeypatch):
    """Ask to stop, as a signal handler does, during the given batch of this process."""
    during_batch(batches, lambda: signal.raise_signal(signal.SIGUSR1), monkeypatch)


@pytest.mark.parametrize(
    "algo, batches, workers",
    # Of ten batches per epoch: within the first epoch, at its last batch, within the second, at the end, with workers.
    [
        ("dtp", 4, 0),
        ("dtp", 10, 0),
        ("dtp", 14, 0),
        ("dtp", 30, 0),
        ("dtp", 14, 2),
        ("vanilla-dtp", 14, 0),
        ("bp", 14, 0),
    ],
)
def test_a_run_stopped_by_a_signal_and_resumed_equals_one_never_stopped(
    algo, batches, workers, tmp_path, monkeypatch, capsys
):
    # Momentum in the feedback optimizers and several iterations, so that their state matters.
    feedback = [] if algo == "bp" else ["--feedback-iterations", "3"]
    command = ["--algo", algo, *COMMAND, *feedback, *AUGMENTED, "--num-workers", str(workers)]
    assert main([*command, "--run-dir", str(tmp_path / "whole")]) == 0
    stopped = [*command, "--run-dir", str(tmp_path / "stopped"), "--resume", "auto"]
    with monkeypatch.context() as patch:
        stop_after(batches, patch)
        assert main(stopped) == 75
    assert f"after batch {batches}" in capsys.readouterr().err
    assert not (tmp_path / "stopped" / "summary.json").exists()
    stop_request.signum = None
    assert main(stopped) == 0
    assert_identical(final_state(tmp_path / "whole"), final_state(tmp_path / "stopped"))


def test_resuming_where_there_is_nothing_says_so(here, capsys):
    words = [*COMMAND, "--max-steps", "1", "--resume", "auto"]
    for more, where in ((["--run-dir", "run"], "run"), ([], "runs/dtp_mlp_digits")):
        told = f"--resume auto: nothing to resume in {where}; begins anew.\n"
        assert main([*words, *more]) == 0
        assert told in capsys.readouterr().err
        assert main([*words, *more]) == 0
        assert "nothing to resume" not in capsys.readouterr().err


@pytest.mark.parametrize("how", [["--resume", "auto", "--run-dir", "run"], ["--resume", "run"]])
def test_a_finished_run_whose_checkpoints_are_gone_keeps_its_results(how, here, capsys):
    words = [*COMMAND, "--lr-schedule", "constant", "--diagnostics-every", "0", "--limit-val-batches", "1"]
    assert main([*words, "--max-steps", "1", "--run-dir", "run"]) == 0
    shutil.rmtree("run/checkpoints")
    before = contents(Path("run"))
    assert main([*words, "--max-steps", "1", *how]) == 0
    assert "This run has finished" in capsys.readouterr().out
    fails(capsys, [*words, "--max-steps", "2", *how], "run: has finished after 1 batches, and no checkpoint is left")
    after = contents(Path("run"))
    assert {path: after[path] for path in before} == before


def test_a_run_whose_configuration_is_gone_or_empty_says_so_and_is_left_alone(here, capsys):
    words = [*COMMAND, "--diagnostics-every", "0", "--max-steps", "1"]
    assert main([*words, "--run-dir", "run"]) == 0
    capsys.readouterr()
    config = Path("run/config.yaml")
    text = config.read_text()
    config.write_text("")
    for how in (["--resume", "auto", "--run-dir", "run"], ["--resume", "run"], ["--config", "run"]):
        fails(capsys, [*words, *how], "run/config.yaml: expected the configuration of a run, found none of its 'algo'")
    config.unlink()
    before = contents(Path("run"))
    again = [*words, "--resume", "auto", "--run-dir", "run"]
    fails(capsys, again, "run: has checkpoints but no config.yaml, so no run can go on in it; put that back, or go on")
    assert contents(Path("run")) == before
    config.write_text(text)
    assert main(again) == 0 and "This run has finished" in capsys.readouterr().out


def test_an_unfinished_run_whose_checkpoints_are_gone_begins_anew(here):
    words = [*COMMAND, "--diagnostics-every", "0", "--limit-val-batches", "1", "--max-steps", "1"]
    assert main([*words, "--run-dir", "run"]) == 0
    shutil.rmtree("run/checkpoints")
    Path("run/summary.json").unlink()
    assert main(["--resume", "run"]) == 0
    assert newest_checkpoint(Path("run")) and Path("run/summary.json").is_file()


def test_a_run_goes_on_without_the_best_weights_so_far_and_says_so(here, capsys):
    words = [*COMMAND, "--diagnostics-every", "0", "--limit-train-batches", "1"]
    assert main([*words, "--max-epochs", "1", "--run-dir", "run", "--lr-schedule", "constant"]) == 0
    # As where an earlier epoch was the best, and its file has been removed, or has been replaced since by a later one.
    path = newest_checkpoint(Path("run"))
    saved = torch.load(path, weights_only=True)
    saved["callbacks"]["Checkpoints"]["best_step"] -= 1
    torch.save(saved, path)
    Path("run/checkpoints/best.ckpt").unlink()
    assert main(["--resume", "run", "--max-epochs", "2"]) == 0
    told = "run/checkpoints/best.ckpt: the best weights so far, of epoch 1, are not there; the best of the"
    assert capsys.readouterr().err.count(told) == 1


def test_the_command_that_is_printed_goes_on_whatever_the_folder_is_called(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "Anna's runs"
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        assert main([*COMMAND, "--run-dir", str(folder)]) == 75
    _, _, printed = capsys.readouterr().err.partition("Go on with: ")
    stop_request.signum = None
    words = shlex.split(printed.splitlines()[0])
    assert main(words[words.index("--resume") :]) == 0
    assert (folder / "summary.json").is_file()


FOLDER = "--algo bp --data imagefolder --image-size 8 --batch-size 8 --widths 8 --max-epochs 1".split()
FOLDER += ["--diagnostics-every", "0", "--resume", "auto"]


def summaries():
    return sorted(Path("runs").glob("*/*/summary.json"))


@pytest.mark.parametrize("make", [shutil.copy, os.symlink])
def test_a_checkpoint_outside_its_run_goes_on_with_its_own_configuration(make, here, capsys):
    words = ["--algo", "bp", "--widths", "8", "--batch-size", "128", "--max-epochs", "1"]
    assert main([*words, "--run-dir", "run"]) == 0
    make(newest_checkpoint(Path("run")), "alone.ckpt")
    assert main(["--resume", "alone.ckpt", "--run-dir", "again"]) == 0
    of_both = [yaml.safe_load((Path(place) / "config.yaml").read_text()) for place in ("run", "again")]
    assert of_both[0] == of_both[1]
    fails(
        capsys,
        ["--resume", "alone.ckpt", "--algo", "dtp"],
        "alone.ckpt was made with --algo bp, not dtp; leave --algo out",
    )


def test_a_run_goes_on_where_its_images_have_moved_and_not_with_others(here, capsys):
    write_folder(Path("flowers"))
    write_folder(Path("birds"), classes=("finch", "wren"))
    assert main([*FOLDER, "--data-dir", "flowers"]) == 0
    Path("elsewhere").mkdir()
    Path("flowers").rename("elsewhere/petals")
    assert main([*FOLDER, "--data-dir", "elsewhere/petals"]) == 0 and len(summaries()) == 1
    assert "This run has finished" in capsys.readouterr().out
    assert main([*FOLDER, "--data-dir", "birds"]) == 0 and len(summaries()) == 2
    run = summaries()[0].parent
    checkpoint = newest_checkpoint(run)
    checkpoint.rename("alone.ckpt")
    shutil.copy("alone.ckpt", checkpoint)
    fails(capsys, [*FOLDER, "--data-dir", "birds", "--run-dir", str(run)], "a --data-dir of 20 images of 2 classes")
    fails(capsys, [*FOLDER, "--data-dir", "birds", "--resume", "alone.ckpt"], "a --data-dir of 20 images of 2 classes")


def test_a_run_that_has_not_recorded_its_images_goes_on(here, capsys):
    write_folder(Path("flowers"))
    write_folder(Path("birds"), classes=("finch", "wren"))
    assert main([*FOLDER, "--data-dir", "flowers"]) == 0
    config = summaries()[0].parent / "config.yaml"
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if "20 images" not in line))
    assert config.read_text() != "".join(lines)
    capsys.readouterr()
    main([*FOLDER, "--data-dir", "birds", "--max-epochs", "1"])
    assert len(summaries()) == 1


def test_a_run_stopped_twice_within_one_epoch_equals_one_never_stopped(tmp_path, monkeypatch):
    assert main([*COMMAND, "--run-dir", str(tmp_path / "whole")]) == 0
    stopped = [*COMMAND, "--run-dir", str(tmp_path / "stopped"), "--resume", "auto"]
    for batches in (12, 3):
        with monkeypatch.context() as patch:
            stop_after(batches, patch)
            assert main(stopped) == 75
        stop_request.signum = None
    assert main(stopped) == 0
    assert_identical(final_state(tmp_path / "whole"), final_state(tmp_path / "stopped"))


def test_a_run_ended_by_max_steps_within_an_epoch_goes_on_as_if_it_had_not(tmp_path):
    assert main([*COMMAND, "--run-dir", str(tmp_path / "whole")]) == 0
    longer = [*COMMAND, "--run-dir", str(tmp_path / "longer"), "--resume", "auto"]
    assert main([*longer, "--max-steps", "13"]) == 0
    assert main(longer) == 0
    assert_identical(final_state(tmp_path / "whole"), final_state(tmp_path / "longer"))


def test_a_run_ended_by_max_steps_with_an_epoch_goes_on_to_other_max_steps(tmp_path):
    assert main([*COMMAND, "--run-dir", str(tmp_path / "whole")]) == 0
    longer = [*COMMAND, "--run-dir", str(tmp_path / "longer"), "--resume", "auto"]
    for steps in (10, 13, 20):
        assert main([*longer, "--max-steps", str(steps)]) == 0
        summary = json.loads((tmp_path / "longer" / "summary.json").read_text())
        assert (summary["steps"], summary["epochs"]) == (steps, steps // 10)
    assert main(longer) == 0
    assert_identical(final_state(tmp_path / "whole"), final_state(tmp_path / "longer"))


def test_a_run_in_64_bits_is_resumed_without_rounding(tmp_path):
    command = [*COMMAND, "--precision", "64"]
    assert main([*command, "--run-dir", str(tmp_path / "whole")]) == 0
    parts = [*command, "--run-dir", str(tmp_path / "parts"), "--resume", "auto"]
    assert main([*parts, "--max-steps", "13"]) == 0
    assert main(parts) == 0
    assert_identical(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


TIMES = ("wall_seconds", "feedback_seconds", "finished", "command", "train/images_per_second", "train/feedback_share")


def told(folder):
    """What the run's metrics and summary say, times aside."""
    summary = json.loads((folder / "summary.json").read_text())
    found = [*rows(folder), summary]
    assert (folder / "training.png").is_file() and not list(folder.rglob("*.tmp"))
    return [{name: value for name, value in part.items() if name not in TIMES} for part in found]


def kill(place, patch):
    """Have the process end as a kill ends it, with nothing more written, at the n-th call of a method."""
    (owner, name), number = place
    original, calls = getattr(owner, name), []

    def killed(*args, **kwargs):
        calls.append(None)
        if len(calls) == number:
            raise Interrupted
        return original(*args, **kwargs)

    patch.setattr(owner, name, killed)


STEP = (Algorithm, "training_step")
PLACES = {
    "before the first checkpoint": (STEP, 3),
    "within the first epoch": (STEP, 9),
    "in the first batch of an epoch": (STEP, 11),
    "within the last epoch": (STEP, 28),
    "in validation": ((Algorithm, "on_validation_epoch_end"), 2),
    "while a checkpoint is written": ((CheckpointFiles, "save_checkpoint"), 5),
    "before the figure": ((AlignmentCallback, "on_train_end"), 1),
    "before the best weights are tested": ((Algorithm, "load_state_dict"), 1),
    "in the test": ((Algorithm, "on_test_epoch_end"), 1),
    "before the summary": ((dtp.run.training, "write_summary"), 1),
}
# Rows of batches that no checkpoint falls together with.
KILLED = [*COMMAND, "--checkpoint-every", "4", "--log-every", "3", "--feedback-iterations", "2"]


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main([*KILLED, "--run-dir", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("place", PLACES)
def test_a_killed_run_tells_what_one_never_killed_tells(place, tmp_path, monkeypatch, never_killed):
    command = [*KILLED, "--run-dir", str(tmp_path / "run"), "--resume", "auto"]
    with monkeypatch.context() as patch:
        kill(PLACES[place], patch)
        assert main(command) == 130
    assert not (tmp_path / "run" / "summary.json").exists()
    assert main(command) == 0
    assert told(tmp_path / "run") == told(never_killed)
    assert_identical(final_state(never_killed), final_state(tmp_path / "run"))


def test_a_run_killed_after_its_last_step_within_an_epoch_tests_the_weights_of_that_step(tmp_path, monkeypatch):
    command = [*COMMAND, "--max-steps", "13", "--resume", "auto", "--run-dir"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        kill(PLACES["before the summary"], patch)
        assert main([*command, str(tmp_path / "run")]) == 130
    assert main([*command, str(tmp_path / "run")]) == 0
    assert told(tmp_path / "run") == told(tmp_path / "whole")


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_run_that_ends_in_its_last_step_within_an_epoch_keeps_the_row_of_that_epoch(how, tmp_path, monkeypatch):
    command = [*COMMAND, "--max-steps", "13", "--resume", "auto", "--run-dir"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        if how == "stopped":
            stop_after(13, patch)
        else:
            kill(((Algorithm, "on_train_epoch_end"), 2), patch)
        assert main([*command, str(tmp_path / "run")]) == {"stopped": 75, "killed": 130}[how]
    stop_request.signum = None
    assert main([*command, str(tmp_path / "run")]) == 0
    assert told(tmp_path / "run") == told(tmp_path / "whole")
    assert all(rows(tmp_path / "run")[-1][name] for name in ("train/loss_epoch", *TIMES[-2:]))


def test_metrics_of_a_resumed_run_have_no_row_twice(tmp_path, monkeypatch):
    command = [*COMMAND, "--run-dir", str(tmp_path / "run"), "--resume", "auto", "--checkpoint-every", "3"]
    with monkeypatch.context() as patch:
        stop_after(15, patch)
        assert main(command) == 75
    stop_request.signum = None
    assert main(command) == 0
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("train/loss")
    steps = [int(line.split(",")[1]) for line in lines[1:] if line.split(",")[column]]
    assert steps == sorted(set(steps)) and steps[-1] == 30


def start(command, folder):
    return subprocess.Popen(
        [sys.executable, ROOT / "main.py", *command, "--run-dir", folder, "--resume", "auto"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


# Long batches, so that the signal lands within an epoch.
SLOW_COMMAND = [*COMMAND, "--feedback-iterations", "60"]


@pytest.fixture(scope="module")
def whole_slow_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main([*SLOW_COMMAND, "--run-dir", str(folder)]) == 0
    return final_state(folder)


@pytest.mark.slow
@pytest.mark.usefixtures("preloaded")
@pytest.mark.parametrize(
    "signum, status", [(signal.SIGKILL, -9), (signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGHUP, 75)]
)
def test_a_real_signal_to_a_real_process_loses_nothing(signum, status, tmp_path, whole_slow_run):
    command = SLOW_COMMAND
    process = start(command, tmp_path / "stopped")
    wait_for(lambda: newest_checkpoint(tmp_path / "stopped"), process)
    process.send_signal(signum)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == status, output
    assert "Traceback" not in output
    assert not (tmp_path / "stopped" / "summary.json").exists()
    again = start(command, tmp_path / "stopped")
    output = again.communicate(timeout=120)[0]
    assert again.returncode == 0, output
    assert "goes on from batch" in output
    assert_identical(whole_slow_run, final_state(tmp_path / "stopped"))


@pytest.mark.slow
def test_a_terminal_that_hangs_up_stops_the_run_with_a_checkpoint(tmp_path):
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, ROOT / "main.py", *SLOW_COMMAND, "--max-epochs", "100", "--run-dir", tmp_path / "run"],
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(inside)
    deadline = time.monotonic() + 120
    while not newest_checkpoint(tmp_path / "run"):
        assert process.poll() is None and time.monotonic() < deadline
        if select.select([terminal], [], [], 0.02)[0]:
            os.read(terminal, 1 << 16)
    before = newest_checkpoint(tmp_path / "run")
    os.close(terminal)
    assert process.wait(timeout=60) == 75
    assert newest_checkpoint(tmp_path / "run") != before


def test_nohup_is_heeded(monkeypatch):
    before = signal.getsignal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_request.handled():
            signal.raise_signal(signal.SIGHUP)
            assert stop_request.signum is None
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with stop_request.handled():
            signal.raise_signal(signal.SIGHUP)
            assert stop_request.name == "SIGHUP"
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_epoch_that_goes_on_in_its_middle_is_timed_from_there(here, capsys):
    words = ["--model", "mlp", "--widths", "8", "--batch-size", "100", "--run-dir", "run", "--resume", "auto"]
    assert main([*words, "--max-epochs", "1", "--lr-schedule", "constant", "--max-steps", "5"]) == 0
    capsys.readouterr()
    assert main([*words, "--max-epochs", "1", "--lr-schedule", "constant"]) == 0
    out = capsys.readouterr().out
    assert "goes on from batch 5" in out
    (seconds,) = re.findall(r"^epoch 1/1 .* ([\d.]+) s$", out, re.MULTILINE)
    assert float(seconds) < 60
