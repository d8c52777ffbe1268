"""Runs without what costs a short one more than its training and no test asks for."""

import functools
import importlib
import importlib.metadata
import os
from collections.abc import Callable
from pathlib import Path

from PIL import Image


def make_runs_cheap() -> None:
    # What is written outlives a killed process without it; of power that goes off no test knows.
    os.fsync = lambda file: None
    # Nothing is installed either; each trainer reads of all packages what they offer.
    importlib.metadata.entry_points = functools.cache(importlib.metadata.entry_points)
    # Once, and not again in each rank that is forked of this process.
    importlib.import_module("torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook")
    importlib.metadata.entry_points(group="torch.distributed.backends")


def leave_undrawn(set_attribute: Callable[[str, Callable], None]) -> None:
    """Let runs leave an empty picture, for drawing is three quarters of a short run's time."""
    for place in ("callback.draw_metrics", "images.save_figure"):
        set_attribute(f"dtp.diagnostics.{place}", _draw_nothing)


def _draw_nothing(_, figure: Path) -> bool:
    Image.new("L", (1, 1)).save(figure)
    return True
