"""Which share of the images a process takes, whatever the strategy."""

from __future__ import annotations

from typing import Any


def training_share(trainer: Any) -> tuple[int, int]:
    """This process's share of the training images: (share, number of shares); (0, 1) without a trainer.

    A strategy in which processes divide something else than images says so by its ``training_share``.
    """
    own = getattr(getattr(trainer, "strategy", None), "training_share", None)
    return evaluation_share(trainer) if own is None else own


def evaluation_share(trainer: Any) -> tuple[int, int]:
    """This process's share of the images that are evaluated, as :func:`training_share`."""
    shares = getattr(trainer, "distributed_sampler_kwargs", None) or {}
    return shares.get("rank", 0), shares.get("num_replicas", 1)
