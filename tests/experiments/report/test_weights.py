"""The archive of trained weights: benchmarks/weights.py, on runs of a few batches."""

import json
import shutil
import sys
import tarfile

import pytest
import torch

from dtp.run.checkpoints import read_checkpoint
from dtp.run.layout import CHECKPOINTS
from tests.runs import ROOT


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two seeds of bp on a small network, one epoch of two batches."""
    from dtp import train

    folder = tmp_path_factory.mktemp("runs")
    small = {"model": "mlp", "widths": [8], "data": "digits", "max_epochs": 1, "limit_train_batches": 2}
    for seed in (0, 1):
        train(algo="bp", seed=seed, run_dir=folder / f"bp{seed}", accelerator="cpu", **small)
    return folder


@pytest.fixture
def runs(trained, tmp_path):
    """A copy, in which validation prefers seed 1 and the test seed 0."""
    folder = tmp_path / "runs"
    shutil.copytree(trained, folder)
    for seed in (0, 1):
        path = folder / f"bp{seed}" / "summary.json"
        summary = json.loads(path.read_text())
        measured = {"val_accuracy": 0.4 + seed / 10, "test_accuracy": 0.9 - seed / 10}
        # As a run from the command line has it.
        command = f"dtp train --algo bp --data-dir {tmp_path}/data --run-dir {path.parent}"
        path.write_text(json.dumps({**summary, **measured, "command": command}))
    return folder


@pytest.fixture
def archive(monkeypatch):
    """The script, as a function of its words."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import weights

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["weights.py", *map(str, words)])
        weights.main()

    return run


def test_it_holds_the_tested_weights_of_the_run_that_validated_best(runs, archive, tmp_path):
    archive(runs, "--output", tmp_path / "new" / "weights.tar.gz")
    with tarfile.open(tmp_path / "new" / "weights.tar.gz") as packed:
        # Python 3.11.3 and older have none.
        packed.extraction_filter = getattr(tarfile, "data_filter", None)
        packed.extractall(tmp_path / "out")
    (entry,) = json.loads((tmp_path / "out" / "index.json").read_text())
    # The test prefers the other seed; the row is that of the board, over both.
    assert entry["seed"] == 1 and entry["rows"][0]["ours"] == 85.0 and entry["rows"][0]["seeds"] == [0, 1]
    assert entry["rows"][0]["cost"] == 1.0
    kept = torch.load(tmp_path / "out" / entry["folder"] / "weights.pt", weights_only=True)
    (checkpoint,) = (runs / "bp1" / CHECKPOINTS).glob("best.ckpt")
    state = read_checkpoint(checkpoint)["state_dict"]
    assert kept and all(torch.equal(value, state[f"network.{name}"]) for name, value in kept.items())
    said = [path.read_text() for path in (tmp_path / "out").rglob("*") if path.suffix in (".yaml", ".json")]
    assert len(said) == 3 and not any(str(tmp_path) in text for text in said)


def test_the_same_runs_give_the_same_bytes(runs, archive, tmp_path):
    for name in ("a", "b"):
        archive(runs, "--output", tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [(("--most", 1e-6), "nothing is written"), ((), "no such folder"), (("--output", "{file}/x"), "File exists")],
)
def test_what_cannot_be_kept_is_told_in_a_sentence(words, message, runs, archive, tmp_path, capsys):
    (tmp_path / "file").touch()
    folder = runs if words else tmp_path / "none"
    words = [str(word).format(file=tmp_path / "file") for word in words]
    with pytest.raises(SystemExit) as ended:
        archive(folder, "--output", tmp_path / "weights.tar.gz", *words)
    assert ended.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "weights.tar.gz").exists()
