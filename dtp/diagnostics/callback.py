"""Measures alignment once in a while during training, logs it, and draws it at the end."""

from __future__ import annotations

import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from dtp.algorithms.base import Algorithm
from dtp.diagnostics.alignment import feedback_alignment, update_alignment
from dtp.diagnostics.plots import draw_run
from dtp.loggers import log_figure


class AlignmentCallback(Callback):
    """Every ``every`` epochs: alignment of feedback with forward weights, and of updates with backprop's, by layer.

    They are measured before the first batch, and after an epoch on its last batch. Metrics are
    ``feedback_angle/layerN``, ``feedback_distance/layerN``, ``update_angle/layerN`` and ``update_distance/layerN``. At
    the end of training ``RUN/training.png`` shows them with the learning curves. A measurement costs about one
    training batch without its feedback phase, and one of backprop.
    """

    FIGURE = "training.png"

    def __init__(self, run_dir: Path, every: int):
        self.run_dir = run_dir
        self.every = every
        self._drawn = False

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Algorithm, batch, batch_idx) -> None:
        if trainer.global_step == 0:
            # Where everything starts from: row 0 of the metrics.
            self.measure(trainer, pl_module, *batch)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Algorithm, outputs, batch, batch_idx) -> None:
        if trainer.is_last_batch and (trainer.current_epoch + 1) % self.every == 0:
            self.measure(trainer, pl_module, *batch)

    def measure(self, trainer: pl.Trainer, algorithm: Algorithm, x: torch.Tensor, y: torch.Tensor) -> None:
        """Log the alignment of every layer on images ``x`` (B, C, H, W) and labels ``y`` (B,)."""
        y = algorithm.task.goal(x, y)
        metrics = {}
        for n, found in feedback_alignment(algorithm).items():
            metrics[f"feedback_angle/layer{n}"] = found.angle
            metrics[f"feedback_distance/layer{n}"] = found.distance
        # Clusters have no labels that backprop could learn from.
        updates = update_alignment(algorithm, x, y) if algorithm.task.name != "clustering" else {}
        for n, found in updates.items():
            metrics[f"update_angle/layer{n}"] = found.angle
            metrics[f"update_distance/layer{n}"] = found.distance
        algorithm.report({"epoch": float(trainer.current_epoch), **metrics})

    def on_train_end(self, trainer: pl.Trainer, pl_module: Algorithm) -> None:
        self.draw(trainer)

    def draw(self, trainer: pl.Trainer) -> None:
        """Draw what has been measured, unless this process has."""
        if self._drawn or not trainer.is_global_zero:
            return
        self._drawn = True
        for logger in trainer.loggers:
            logger.save()
        figure = self.run_dir / self.FIGURE
        try:
            if draw_run(self.run_dir / "metrics.csv", figure):
                log_figure(trainer.loggers, "training", figure)
        except OSError as error:
            # A figure can be drawn again from metrics.csv; the test that is still to come cannot wait for it.
            warnings.warn(f"{figure} was not drawn: {error}", stacklevel=2)
