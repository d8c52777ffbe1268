"""Running a function in several processes that share a group, and training in them with a real trainer."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from dtp.algorithms.base import Algorithm
from dtp.distributed.strategy import FeedbackDDPStrategy
from dtp.models.network import Network

# A rank that waits for another in vain fails the test long before the test's own limit.
PATIENCE = timedelta(seconds=60)
_tried = itertools.count()


def on_ranks(function: Callable[[int], Any], folder: Path, ranks: int = 2) -> list[Any]:
    """``function(rank)`` in each of several processes with a group; what it returned, by rank.

    An exception in one is raised here.
    """
    mp.start_processes(_in_group, (function, str(folder), ranks), nprocs=ranks, start_method="fork")
    return [torch.load(folder / f"returned-{rank}.pt", weights_only=False) for rank in range(ranks)]


def _in_group(rank: int, function: Callable[[int], Any], folder: str, ranks: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=ranks, timeout=PATIENCE)
    torch.save(function(rank), f"{folder}/returned-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def train_on_ranks(train: Callable[[pl.Trainer], Any], folder: Path, ranks: int, **strategy: Any) -> list[Any]:
    """``train(trainer)`` in each of several processes, with a trainer on as many devices; what it returned, by rank.

    With one rank, in this process.
    """
    if ranks == 1:
        return [train(_trainer(1, "auto"))]
    mp.start_processes(
        _with_trainer, (train, str(folder), ranks, free_port(), strategy), nprocs=ranks, start_method="fork"
    )
    return [torch.load(folder / f"returned-{rank}.pt", weights_only=False) for rank in range(ranks)]


def free_port() -> int:
    """A port that nobody listens at, below those that the system gives to processes that ask for any."""
    # Each process begins elsewhere, for a port is let go of before it is used.
    for i in range(1000):
        port = 10000 + (os.getpid() * 131 + next(_tried) + i) % 20000
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port
    raise OSError("1000 ports are taken")


def _with_trainer(rank: int, train: Callable, folder: str, ranks: int, port: int, strategy: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    # As torchrun tells its processes.
    os.environ.update(
        {
            "TORCHELASTIC_RUN_ID": "test",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            **{name: str(rank) for name in ("RANK", "LOCAL_RANK")},
            **{name: str(ranks) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")},
            "GROUP_RANK": "0",
        }
    )
    torch.save(
        train(_trainer(ranks, FeedbackDDPStrategy(**strategy, timeout=PATIENCE))), f"{folder}/returned-{rank}.pt"
    )
    dist.barrier()
    dist.destroy_process_group()


def _trainer(ranks: int, strategy: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=strategy,
        precision="64-true",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )


class Shares(torch.utils.data.Dataset):
    """Given batches, of which each rank gets its share: rows r, r + R, ... of R shares."""

    def __init__(self, batches: Sequence[tuple[Tensor, Tensor]], share: int, shares: int):
        self.batches = [(x[share::shares], y[share::shares]) for x, y in batches]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.batches[i]


def batches_of(network: Network, count: int = 3, images: int = 12) -> list[tuple[Tensor, Tensor]]:
    """Random images for a network, in double precision, with their labels; the same each time."""
    torch.manual_seed(5)
    classes = getattr(network.task, "classes", network.num_classes)
    return [
        (torch.randn(images, *network.input_shape, dtype=torch.float64), torch.randint(classes, (images,)))
        for _ in range(count)
    ]


def counted_sums() -> list[int]:
    """A list that grows by the size of the tensor with every sum over ranks."""
    sizes, original = [], dist.all_reduce

    def counting(tensor, *args, **kwargs):
        sizes.append(tensor.numel())
        return original(tensor, *args, **kwargs)

    dist.all_reduce = counting
    return sizes


def sums_of_batches(rule: Algorithm) -> list[list[int]]:
    """The same of each batch that ``rule`` learns from."""
    sizes, batches, learn = counted_sums(), [], rule.training_batch

    def batch(x, y):
        sizes.clear()
        result = learn(x, y)
        batches.append(list(sizes))
        return result

    rule.training_batch = batch
    return batches


def fit(trainer: pl.Trainer, algorithm: Algorithm, batches: Sequence[tuple[Tensor, Tensor]], **options: Any) -> None:
    """Train on the batches given, each rank on its share of every batch; ``options`` are the trainer's."""
    strategy = trainer.strategy
    share, shares = strategy.training_share if isinstance(strategy, FeedbackDDPStrategy) else (0, 1)
    loader = torch.utils.data.DataLoader(Shares(batches, share, shares), batch_size=None)
    trainer.fit(algorithm, loader, **options)
