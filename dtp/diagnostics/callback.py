"""Measures alignment at intervals during training, logs it, and plots it at the end."""

from __future__ import annotations

import math
import warnings
from numbers import Integral
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from dtp.algorithms.base import Algorithm
from dtp.diagnostics.alignment import feedback_alignment, update_alignment
from dtp.diagnostics.measures import linear_probes
from dtp.errors import UserError, user_path
from dtp.plots.run import draw_metrics
from dtp.run.loggers import log_figure
from dtp.run.reading import Series, read_metrics


class AlignmentCallback(Callback):
    """Measures, every ``every`` epochs and by layer, how feedback matches forward weights and updates match backprop's.

    It measures before the first batch, and after an epoch on its last batch. Metrics are ``feedback_angle/layerN``,
    ``feedback_distance/layerN``, ``update_angle/layerN`` and ``update_distance/layerN``. At the end of training
    ``training.png`` shows them with the learning curves. Loggers that take figures (W&B, TensorBoard, MLflow) get it
    too. A measurement costs about as much as one training batch without its feedback phase and one of backprop. It
    works with any ``lightning.Trainer``.

    Args:
        run_dir: folder of the figure, and of a ``metrics.csv`` that it is drawn from where there is one; left out, the
            trainer's ``log_dir``.
        every: epochs, at least 1.
        probes: whether to measure too how well classes can be told from each layer by a linear probe
            (``probe_accuracy/layerN``), fitted to the first images of the epoch and tested on those of its validation.
        probe_images: at most so many of either; they are held in memory.

    Raises:
        UserError: ``every`` is no whole number above 0.
    """

    FIGURE = "training.png"

    def __init__(
        self, run_dir: str | Path | None = None, every: int = 1, probes: bool = False, probe_images: int = 2000
    ):
        if not isinstance(every, Integral) or every < 1:
            raise UserError(f"AlignmentCallback: expected every to be a whole number above 0, found {every!r}.")
        self.run_dir = None if run_dir is None else user_path(run_dir)
        self.every = every
        self.probes, self.probe_images = probes, probe_images
        self._drawn = False
        self._metrics: dict[str, Series] = {}
        self._batches: dict[str, list[Any]] = {"train": [], "val": []}
        self._from_first_batch = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: Algorithm) -> None:
        # A training before this one has drawn its own, or broke off.
        self._drawn = self._from_first_batch = False
        for kept in self._batches.values():
            kept.clear()
        if trainer.global_step == 0:
            self._metrics = {}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Algorithm, batch, batch_idx) -> None:
        if trainer.global_step == 0:
            # Where everything starts from: row 0 of the metrics.
            self.measure(trainer, pl_module, *pl_module.taken(batch))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Algorithm, outputs, batch, batch_idx) -> None:
        self._from_first_batch = self._from_first_batch or batch_idx == 0
        self._keep("train", pl_module, batch)
        if trainer.is_last_batch and (trainer.current_epoch + 1) % self.every == 0:
            self.measure(trainer, pl_module, *pl_module.taken(batch))

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Algorithm, outputs, batch, *place) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._keep("val", pl_module, batch)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Algorithm) -> None:
        # Here, for Lightning keeps the numbers of the last validation in epochs that have none.
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._remember_all(trainer, "val/")

    def measure(self, trainer: pl.Trainer, algorithm: Algorithm, x: Tensor, y: Tensor) -> None:
        """Log the alignment of every layer on images ``x`` (B, C, H, W) and goals ``y`` (B, ...)."""
        metrics = {}
        for n, found in feedback_alignment(algorithm).items():
            metrics[f"feedback_angle/layer{n}"] = found.angle
            metrics[f"feedback_distance/layer{n}"] = found.distance
        # Clusters have no labels that backprop could learn from.
        updates = update_alignment(algorithm, x, y) if algorithm.task.has_training_goals else {}
        for n, found in updates.items():
            metrics[f"update_angle/layer{n}"] = found.angle
            metrics[f"update_distance/layer{n}"] = found.distance
        self._report(trainer, algorithm, metrics)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Algorithm) -> None:
        train, val = self._batches["train"], self._batches["val"]
        due = (trainer.current_epoch + 1) % self.every == 0 and trainer.is_last_batch
        if self.probes and due and trainer.is_global_zero:
            if not self._from_first_batch:
                why = "training went on within it, after images that they are fitted to"
                warnings.warn(f"The linear probes of this epoch are left out: {why}.", stacklevel=2)
            elif val:
                found = linear_probes(pl_module, train, val, images=self.probe_images)
                metrics = {f"probe_accuracy/layer{n}": accuracy for n, accuracy in found.items()}
                self._report(trainer, pl_module, metrics)
            else:
                warnings.warn("Linear probes need validation images to be tested on; there are none.", stacklevel=2)
        train.clear()
        val.clear()
        self._from_first_batch = False
        self._remember_all(trainer, "train/")

    def on_train_end(self, trainer: pl.Trainer, pl_module: Algorithm) -> None:
        self.draw(trainer)

    def draw(self, trainer: pl.Trainer) -> None:
        """Draw what has been measured, unless this process has; all ranks call it, and the first draws."""
        dry = trainer.fast_dev_run  # pyright: ignore[reportAttributeAccessIssue] (Lightning's connectors set it)
        if self._drawn or dry:
            return
        self._drawn = True
        # By all ranks: Lightning's log_dir is sent by the first and waits for the others.
        folder = self.run_dir or Path(trainer.log_dir or trainer.default_root_dir)
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            logger.save()
        # A file in the run folder knows what was measured before a resume, too.
        metrics = read_metrics(self._file) if self._file else self._metrics
        figure = folder / self.FIGURE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if draw_metrics(metrics, figure):
                log_figure(trainer.loggers, "training", figure)
        except OSError as error:
            # A figure can be drawn again from metrics.csv; the test that is still to come cannot wait for it.
            warnings.warn(f"{figure} was not drawn: {error}", stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        # A run folder has it in its metrics.csv.
        return {} if self._file else {"metrics": self._metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._metrics = state_dict.get("metrics", {})

    @property
    def _file(self) -> Path | None:
        """The metrics file in the folder that was given, if any."""
        path = None if self.run_dir is None else self.run_dir / "metrics.csv"
        return path if path and path.is_file() else None

    def _keep(self, split: str, algorithm: Algorithm, batch: Any) -> None:
        kept = self._batches[split]
        if self.probes and sum(len(algorithm.unpacked(batch)[1]) for batch in kept) < self.probe_images:
            kept.append(batch)

    def _report(self, trainer: pl.Trainer, algorithm: Algorithm, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._remember(trainer, name, value)
        algorithm.report({"epoch": float(trainer.current_epoch), **metrics})

    def _remember_all(self, trainer: pl.Trainer, split: str) -> None:
        for name, value in trainer.callback_metrics.items():
            if name.startswith(split):
                self._remember(trainer, name, float(value))

    def _remember(self, trainer: pl.Trainer, name: str, value: float) -> None:
        if math.isfinite(value):
            self._metrics.setdefault(name, {})[trainer.global_step] = value
