"""Two processes over gloo: averaged gradients, identical ranks, one set of files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dtp.distributed.strategy import average_gradients

ROOT = Path(__file__).parent.parent.parent


def _ranks(function, folder, world_size=2):
    """Run ``function(rank)`` in processes that share a group; an exception in one is raised here."""
    mp.start_processes(_in_group, (function, folder, world_size), nprocs=world_size, start_method="fork")


def _in_group(rank, function, folder, world_size):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    function(rank)
    dist.barrier()
    dist.destroy_process_group()


def _gradients(rank):
    a, b, c, d = (
        torch.nn.Parameter(torch.zeros(2, 3, dtype=t))
        for t in (torch.float32, torch.float64, torch.float32, torch.float32)
    )
    a.grad = torch.full_like(a, float(rank))
    b.grad = torch.full_like(b, 10.0 * (rank + 1))
    if rank == 1:
        c.grad = torch.ones_like(c)
    average_gradients([a, b, c, d])
    assert torch.equal(a.grad, torch.full_like(a, 0.5))
    assert torch.equal(b.grad, torch.full_like(b, 15.0))
    # On one rank only: zero on the other. On none: none.
    assert torch.equal(c.grad, torch.full_like(c, 0.5))
    assert d.grad is None


def test_gradients_are_averaged_over_ranks(tmp_path):
    _ranks(_gradients, tmp_path)


def test_one_process_leaves_gradients_alone():
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.ones(3)
    average_gradients([parameter])
    assert torch.equal(parameter.grad, torch.ones(3))


@pytest.mark.slow
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
    command = [sys.executable, ROOT / "main.py", "--algo", "watched:Watched", "--model", "mlp", "--widths", "16"]
    command += ["--batch-size", "64", "--max-epochs", "2", "--devices", "2", "--accelerator", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    # One folder, though its name holds the second in which it was made.
    (folder,) = (tmp_path / "runs" / "watched-Watched_mlp_digits").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["world_size"] == 2 and summary["steps"] == 20 and summary["test_accuracy"] > 0.3
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert len([row for row in rows[1:] if row.split(",")[1] == "20"]) == 1
