"""What training adds up within an epoch: for progress bars, logs, and checkpoints in the middle of one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dtp.algorithms.metrics import RunningMeans
from dtp.algorithms.timing import PhaseTimer

_MEANS = ("epoch_means", "window_means")


class EpochTotals:
    """Means of what is logged, images, and seconds since the epoch began.

    Args:
        feedback_timer: of the feedback phases of the whole training.

    Attributes:
        epoch_means: of the batches of the epoch.
        window_means: of the batches since they were last logged; whoever logs them resets them.
    """

    def __init__(self, feedback_timer: PhaseTimer):
        self.epoch_means, self.window_means = RunningMeans(), RunningMeans()
        self._feedback_timer = feedback_timer
        self.begin()

    def begin(self) -> None:
        """Begin an epoch. Waits for the device where phases on it are still being timed."""
        self.epoch_means.reset()
        self.window_means.reset()
        self._images = 0
        self._began = self._last_batch_ended = time.perf_counter()
        self._feedback_before = self._feedback_timer.seconds

    def add(self, names: tuple[str, ...], values: Tensor, images: int, shares: int) -> None:
        """Add a batch that ends now.

        Args:
            names, values: of scalars (:meth:`RunningMeans.add`).
            images: of this process.
            shares: how many processes have as many images of the batch.
        """
        self.epoch_means.add(names, values, weight=images)
        self.window_means.add(names, values, weight=images)
        self._images += images * shares
        self._last_batch_ended = time.perf_counter()

    def progress(self) -> dict[str, float]:
        """Loss, accuracy, images per second, share of time in the feedback phase."""
        seconds = max(self._last_batch_ended - self._began, 1e-9)
        means = self.epoch_means.compute()
        return {
            "loss": means.get("loss", float("nan")),
            **{name: means[name] for name in ("accuracy", "mse") if name in means},
            "images_per_second": self._images / seconds,
            "feedback_share": min((self._feedback_timer.seconds - self._feedback_before) / seconds, 1.0),
        }

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What is the same on all ranks, and what this one has added, as plain numbers. Waits for the device."""
        whole = {
            "images": self._images,
            "seconds": self._last_batch_ended - self._began,
            "feedback_before": self._feedback_before,
        }
        return whole, {name: getattr(self, name).state_dict() for name in _MEANS}

    def go_on(self, whole: dict[str, Any], added: Sequence[dict[str, Any]], device: torch.device, scale: float) -> None:
        """Go on, in an epoch that has just begun, from where another was.

        Args:
            whole, added: of its state; the second of one rank, or of several that shared every batch.
            device: that values to be added will be on.
            scale: how many times as much a part of a batch weighs here.
        """
        for name in _MEANS:
            getattr(self, name).load_state_dict([state[name] for state in added], device, scale)
        self._images, self._feedback_before = whole["images"], whole["feedback_before"]
        self._began -= whole["seconds"]
