"""dtp.train: a run from Python is that of the command line, and leaves nothing behind but its folder."""

import csv
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

import dtp
from dtp.algorithms import BP, DTP
from dtp.algorithms.base import Algorithm
from dtp.cli.train import main
from dtp.errors import UserError
from dtp.models import MLP, Network
from dtp.run.checkpoints import read_checkpoint
from dtp.run.from_python import as_words
from dtp.system.signals import STOP_SIGNALS, Stopped, stop_request
from tests.runs import ROOT, SHORT
from tests.system.test_signals import during_batch, handlers

pytestmark = pytest.mark.usefixtures("here")

OPTIONS = {"model": "mlp", "widths": [16], "batch_size": 128, "max_epochs": 2}


class Deep(Network):
    """A network of the user's own, from a notebook."""

    def make_layers(self):
        for width in (9, 8):
            yield nn.Sequential(nn.Flatten(), nn.Linear(self.features, width), nn.ELU())
        yield nn.Sequential(nn.Linear(self.features, self.num_classes))


def test_it_runs_what_the_command_line_runs():
    assert main([*SHORT, "--seed", "5", "--run-dir", "command"]) == 0
    result = dtp.train(**OPTIONS, seed=5, run_dir=Path("python"))
    ours, theirs = (read_checkpoint(Path(place) / "checkpoints/best.ckpt") for place in ("python", "command"))
    assert all(torch.equal(value, theirs["state_dict"][name]) for name, value in ours["state_dict"].items())
    assert ours["config"] == theirs["config"]
    assert result.summary["command"] == "dtp train " + " ".join([*SHORT, "--seed", "5", "--run-dir", "python"])


def test_the_result_is_what_the_folder_holds():
    result = dtp.train(**OPTIONS)
    assert result.run_dir.parent == Path.cwd() / "runs/dtp_mlp_digits" and result.summary["epochs"] == 2
    assert result.figures == [result.run_dir / "training.png"]
    with (result.run_dir / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    frame = result.metrics
    assert list(frame.columns) == list(rows[0]) and len(frame) == len(rows)
    for name in ("step", "val/accuracy", "feedback_angle/layer2"):
        assert frame[name].dropna().tolist() == [float(row[name]) for row in rows if row[name]]
    assert frame["test/accuracy"].dropna().tolist() == [result.summary["test_accuracy"]]
    rule = result.load()
    assert type(rule) is DTP and not rule.training


def test_the_result_is_there_from_another_folder_too(tmp_path, monkeypatch):
    result = dtp.train(**OPTIONS, run_dir="run")
    monkeypatch.chdir(tmp_path.parent)
    assert result.summary["epochs"] == 2 and len(result.metrics) and result.figures and type(result.load()) is DTP


def test_words_are_those_of_the_command_line():
    options = {"algo": BP, "model": MLP, "widths": (3, np.int64(4)), "lr": np.float32(0.5), "tf32": False}
    words = "--algo bp --model mlp --widths 3 4 --lr 0.5 --tf32 false --run-dir a".split()
    assert as_words({**options, "init_weights": None, "run_dir": Path("a")}) == words
    assert as_words({"widths": []}) == ["--widths"]
    assert as_words({"lr": np.float64(0.1), "layer_lr": [np.float64(0.2)]}) == ["--lr", "0.1", "--layer-lr", "0.2"]
    for name in ("algo", "run_dir", "resume", "init_weights"):
        with pytest.raises(UserError, match=f"{name}: expected a value, found ''"):
            as_words({name: ""})
    with pytest.raises(UserError, match="lr: expected a value, found '-h'"):
        as_words({"lr": "-h"})
    mode = Enum("Mode", {"SOFT": "s"})
    texts = Enum("Texts", {"HARD": "h"}, type=str)
    assert as_words({"a": mode.SOFT, "b": [texts.HARD]}) == ["--a", "SOFT", "--b", "HARD"]
    assert as_words({"model": Deep}) == ["--model", f"{__name__}:Deep"]


def test_classes_of_the_users_own_are_given_as_they_are():
    result = dtp.train(algo=BP, model=Deep, batch_size=128, max_epochs=1)
    rule = result.load()
    assert type(rule.network) is Deep and result.summary["algo"] == "bp"


def test_a_class_whose_name_another_one_has_by_now_is_refused(monkeypatch):
    """As in a notebook where a cell was run again: by its name, the later one would be trained."""
    first, second = (type("Again", (Deep,), {"__module__": "__main__"}) for _ in range(2))
    monkeypatch.setattr(sys.modules["__main__"], "Again", second, raising=False)
    assert as_words({"model": second}) == ["--model", "__main__:Again"]
    with pytest.raises(UserError, match="Again: expected a class that is found by this name"):
        as_words({"model": first})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"algo": "dpt"}, "did you mean dtp"),
        ({"bta": 0.5}, "Unknown option --bta"),
        ({"lr": -1}, "--lr: expected a number above 0"),
        ({"lr": {}}, r"lr: expected text, a number or a list of such, found dict\."),
        ({"run_dir": b"run"}, r"run_dir: expected text, a number or a list of such, found bytes\."),
        ({"model": nn.Linear(2, 2)}, r"found Linear; what is made already goes to a rule and a lightning\.Trainer"),
        ({"data": torch.zeros(2, 1, 8, 8)}, r"data: expected text.* found Tensor; what is made already goes"),
        ({"data": np.zeros((2, 1, 8, 8))}, r"data: expected text.* found ndarray; what is made already goes"),
        ({"data": DataLoader([1])}, r"found DataLoader; what is made already goes"),
        ({"help": True}, "dtp train --help lists them"),
        ({"data": "mnist", "data_dir": "nowhere"}, "no such file"),
        ({"resume": "nothing"}, "no such file or folder"),
    ],
)
def test_mistakes_are_user_errors(options, expected):
    before = handlers()
    with pytest.raises(UserError, match=expected):
        dtp.train(**options)
    assert handlers() == before and not Path("runs").exists()


def test_a_class_that_ends_the_program_ends_the_run_alone(tmp_path):
    lines = ["import sys", "from dtp.models import MLP", "class Net(MLP):", "    def forward(self, x): sys.exit(3)"]
    (tmp_path / "ending.py").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"sys.exit\(3\)"):
        dtp.train(model="ending:Net", max_epochs=1)


def state_of_process():
    return {
        "handlers": handlers(),
        "random": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "torch": torch.get_rng_state().tolist(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "or warned of": torch.is_deterministic_algorithms_warn_only_enabled(),
        "dtype": torch.get_default_dtype(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "warnings": list(warnings.filters),
        "path": list(sys.path),
        "environment": {
            name: value for name, value in os.environ.items() if name.startswith(("PL_", "DTP_", "CUBLAS_"))
        },
    }


def products_of_process():
    """What torch says of the precision of products in float32, by its old names and by its new ones."""
    backends = torch.backends
    places = [getattr(backends, "mkldnn", None), backends.cuda, backends.cudnn]
    names = ("matmul", "conv", "rnn")
    new = [getattr(getattr(place, name, None), "fp32_precision", None) for place in places for name in names]
    try:
        return torch.get_float32_matmul_precision(), backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, *new
    except RuntimeError as error:
        return type(error), *new


def test_a_run_leaves_the_process_as_it_was(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_default_dtype(torch.float64)
    try:
        before = state_of_process()
        found = dtp.train(**OPTIONS, deterministic=True, tf32=True)
        # In the precision of the run, whatever that of the process is.
        assert {value.dtype for value in load_file(found.run_dir / "weights.safetensors").values()} == {torch.float32}
        assert state_of_process() == before
        with pytest.raises(UserError, match="diverged"):
            dtp.train(**OPTIONS, lr=1e20)
        assert state_of_process() == before
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("algo", ["bp", "dtp"])
@pytest.mark.parametrize("context", [lambda: torch.autocast("cpu", torch.bfloat16), torch.inference_mode])
def test_a_run_trains_the_same_within_autocast_and_inference_mode(context, algo):
    plain = load_file(dtp.train(**OPTIONS, algo=algo).run_dir / "weights.safetensors")
    with context():
        before = torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        found = load_file(dtp.train(**OPTIONS, algo=algo).run_dir / "weights.safetensors")
        assert (torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled(), torch.is_grad_enabled()) == before
    assert all(torch.equal(value, plain[name]) for name, value in found.items())


@pytest.mark.parametrize(
    "less",
    [
        lambda: torch.set_float32_matmul_precision("medium"),
        pytest.param(
            lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
            marks=pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9"),
        ),
    ],
)
def test_a_run_computes_in_float32_whatever_products_the_process_has(less):
    plain = load_file(dtp.train(**OPTIONS, algo="bp").run_dir / "weights.safetensors")
    before = products_of_process()
    try:
        less()
        own = products_of_process()
        for tf32 in (True, False):
            found = load_file(dtp.train(**OPTIONS, algo="bp", tf32=tf32).run_dir / "weights.safetensors")
            assert products_of_process() == own != before
        assert all(torch.equal(value, plain[name]) for name, value in found.items())
    finally:
        torch.set_float32_matmul_precision("highest")


PRECISIONS = """
import sys
from operator import attrgetter
import torch
from dtp.run.from_python import _FLOAT32, _full_float32

places = [attrgetter(name)(torch) for name in _FLOAT32]
attrgetter(sys.argv[1])(torch).fp32_precision = "ieee"
before = [place.fp32_precision for place in places]
with _full_float32():
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
assert [place.fp32_precision for place in places] == before, before
"""


@pytest.mark.usefixtures("preloaded")
@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9")
@pytest.mark.parametrize("parent", ["backends", "backends.cudnn"])
def test_precisions_that_others_have_from_theirs_are_as_before_a_run(parent):
    done = subprocess.run([sys.executable, "-c", PRECISIONS, parent], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_run_ends_its_run_of_wandb_and_leaves_one_that_was_there_alone(tmp_path, monkeypatch):
    """Whoever logs to W&B after it would write to the same run otherwise."""
    wandb = pytest.importorskip("wandb")
    for name, value in (("HOME", str(tmp_path)), ("WANDB_MODE", "offline"), ("WANDB_SILENT", "true")):
        monkeypatch.setenv(name, value)
    original, names = wandb.init, []

    def init(**given):
        names.append(given["name"])
        return original(**given)

    with monkeypatch.context() as patch:
        patch.setattr(wandb, "init", init)
        run = dtp.train(**OPTIONS, logger="wandb", run_dir=tmp_path / "published-K" / "seed1")
    # All runs of a sweep would have the same name otherwise.
    assert run.summary["epochs"] == 2 and names == ["published-K/seed1"]
    assert wandb.run is None
    own = wandb.init(project="own", mode="disabled")
    try:
        dtp.train(**OPTIONS)
        assert wandb.run is own
    finally:
        own.finish()


def test_a_run_in_a_thread_is_the_same_and_another_one_waits_for_it():
    results, running, most = {}, [], []
    original = Algorithm.training_step

    def training_step(self, *args):
        running.append(threading.get_ident())
        most.append(len(set(running)))
        return original(self, *args)

    def train(name):
        results[name] = dtp.train(**OPTIONS, run_dir=name)
        running.clear()

    threads = [threading.Thread(target=train, args=(name,)) for name in ("one", "two")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Algorithm, "training_step", training_step)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert max(most) == 1
    states = [results[name].load().state_dict() for name in ("one", "two")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize(("signum", "error"), [(signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_stops_it_with_a_checkpoint_to_go_on_from(signum, error, monkeypatch):
    before = handlers()
    with monkeypatch.context() as patch:
        during_batch(3, lambda: signal.raise_signal(signum), patch)
        with pytest.raises(error, match="after batch 3"):
            dtp.train(**OPTIONS, run_dir="run")
    assert handlers() == before and stop_request.signum is None
    result = dtp.train(**OPTIONS, run_dir="run", resume="auto")
    assert result.summary["steps"] == 20 and {signum: signal.getsignal(signum) for signum in STOP_SIGNALS} == before


def test_notebooks_have_one_device(monkeypatch):
    monkeypatch.setattr(sys, "ps1", "In [1]: ", raising=False)
    with pytest.raises(UserError, match="devices: expected 1 in a notebook, found 2"):
        dtp.train(**OPTIONS, devices=2, accelerator="cpu")
    assert dtp.train(**OPTIONS).summary["world_size"] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("preloaded")
def test_a_script_trains_on_several_devices_once(tmp_path):
    (tmp_path / "script.py").write_text(
        "import dtp\n"
        "options = dict(widths=[16], batch_size=128, max_steps=4, accelerator='cpu', devices=2)\n"
        "result = dtp.train(**options, run_dir='run')\n"
        "assert result.summary['world_size'] == 2, result.summary\n"
        "try:\n"
        "    dtp.train(**options, run_dir='again')\n"
        "except dtp.errors.UserError as error:\n"
        "    print('refused:', error)\n"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "refused: Only one run on several devices" in done.stdout, done.stderr


def test_the_functions_are_found_in_the_package():
    assert {"load", "train"} <= set(dir(dtp))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        dtp.trian  # noqa: B018


def test_a_run_trains_on_its_own_device_whatever_the_default_is():
    with torch.device("meta"):
        result = dtp.train(**OPTIONS, run_dir="other")
        assert torch.get_default_device().type == "meta"
    assert result.summary["test_accuracy"] == dtp.train(**OPTIONS, run_dir="usual").summary["test_accuracy"]
