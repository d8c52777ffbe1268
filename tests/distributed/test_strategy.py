"""Two processes of the command: identical ranks, one set of files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dtp.cli.train import main

ROOT = Path(__file__).parent.parent.parent


def test_a_batch_that_devices_cannot_share_is_refused_before_there_is_a_folder(here, capsys):
    assert main(["--devices", "2", "--accelerator", "cpu", "--batch-size", "33", "--run-dir", "run"]) == 2
    assert "--batch-size: expected a multiple of the 2 devices" in capsys.readouterr().err
    assert not (here / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--val-size 1", "validation image per device, found 1 for 2 devices; use fewer devices, a larger --val-size"),
        ("--data few_tested:Few", "test image per device, found 1 for 2 devices; use fewer devices or more data"),
    ],
)
def test_images_that_do_not_suffice_for_all_devices_are_refused_before_there_is_a_folder(words, message, here, capsys):
    (here / "few_tested.py").write_text(
        "from dtp.data.small import Digits\n"
        "class Few(Digits):\n"
        "    def load_test(self):\n"
        "        return tuple(values[:1] for values in super().load_test())\n"
    )
    options = ["--devices", "2", "--accelerator", "cpu", "--run-dir", "run", *words.split()]
    assert main(options) == 2
    assert f"Expected at least one {message}" in capsys.readouterr().err
    assert not (here / "run").exists()


def _train_on_two(folder, rule, *words):
    """The plain command with a user's rule in ``folder``, on two processes."""
    command = [sys.executable, ROOT / "main.py", "--algo", rule, "--model", "mlp", "--widths", "16", *words]
    command += ["--devices", "2", "--accelerator", "cpu"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)


@pytest.mark.slow
@pytest.mark.usefixtures("preloaded")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_weights_that_a_users_rule_changes_otherwise_on_each_rank_are_told(tmp_path):
    (tmp_path / "drifting.py").write_text(
        "import torch\n"
        "from dtp.algorithms import FA\n"
        "class Drifting(FA):\n"
        "    'Its backward weights walk at random.'\n"
        "    def training_batch(self, x, y):\n"
        "        for operation in self.feedback.operations:\n"
        "            weight = operation.backward_map.weight\n"
        "            weight.data.add_(0.01 * torch.randn_like(weight))\n"
        "        return super().training_batch(x, y)\n"
    )
    done = _train_on_two(tmp_path, "drifting:Drifting", "--max-epochs", "1")
    assert done.returncode == 2 and "Ranks have drifted apart: Drifting changes feedback." in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("preloaded")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_two_processes_train_and_stay_identical(tmp_path):
    """A user's rule that compares the ranks' weights after every batch, under the plain command with --devices 2."""
    (tmp_path / "watched.py").write_text(
        "import torch, torch.distributed as dist\n"
        "from dtp.algorithms import DTP\n"
        "class Watched(DTP):\n"
        "    'Compares ranks.'\n"
        "    def training_batch(self, x, y):\n"
        "        mine, other = x.clone(), x.clone()\n"
        "        dist.broadcast(other, src=0)\n"
        "        assert self.global_rank == 0 or not torch.equal(mine, other), 'ranks must see different images'\n"
        "        result = super().training_batch(x, y)\n"
        "        for p in self.parameters():\n"
        "            first = p.detach().clone()\n"
        "            dist.broadcast(first, src=0)\n"
        "            assert torch.equal(first, p), 'ranks drifted apart'\n"
        "        return result\n"
    )
    done = _train_on_two(tmp_path, "watched:Watched", "--batch-size", "64", "--max-epochs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    # One folder, though its name holds the second in which it was made.
    (folder,) = (tmp_path / "runs" / "watched-Watched_mlp_digits").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["world_size"] == 2 and summary["steps"] == 40 and summary["test_accuracy"] > 0.3
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert len([row for row in rows[1:] if row.split(",")[1] == "40"]) == 1
