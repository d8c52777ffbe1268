"""What a training run shows while it runs: a progress bar on a terminal, lines in a log.

Both read ``pl_module.progress()``, a dictionary with keys among ``loss``, ``accuracy``, ``mse``, ``images_per_second``
and ``feedback_share`` (0 to 1). Reading waits for the device, so they read at intervals and not at every batch.
"""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

if TYPE_CHECKING:
    from dtp.algorithms.base import Algorithm


def progress_callback() -> ProgressBar | EpochLines:
    """A bar if stderr is a terminal, lines otherwise."""
    return ProgressBar() if sys.stderr.isatty() else EpochLines()


class ProgressBar(TQDMProgressBar):
    """Bar on stderr with epoch, batches, loss, accuracies, images per second and share of the feedback phase.

    Args:
        seconds: least time between two refreshes.
    """

    def __init__(self, seconds: float = 0.5):
        super().__init__(refresh_rate=10)
        self.seconds = seconds
        # The clock may count from the start of the machine, which may be a moment ago.
        self._refreshed = -math.inf
        self._shown: dict[str, str] = {}

    def init_train_tqdm(self) -> Tqdm:
        return self._bar("training")

    def init_validation_tqdm(self) -> Tqdm:
        return self._bar("validation", position=1, leave=False)

    def init_test_tqdm(self) -> Tqdm:
        return self._bar("test", leave=False)

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(_epoch(trainer))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Algorithm, outputs, batch, batch_idx) -> None:
        now = time.monotonic()
        if self.is_disabled or (now - self._refreshed < self.seconds and not trainer.is_last_batch):
            return
        self._refreshed = now
        self._shown |= _formatted(_progress(trainer, pl_module))
        self.train_progress_bar.n = batch_idx + 1
        self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._shown |= _validated(trainer)
        super().on_validation_end(trainer, pl_module)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, str]:
        """What the bar showed last; Lightning also asks after validation, whose time is not training's."""
        return dict(self._shown)

    def _bar(self, description: str, position: int = 0, leave: bool = True) -> Tqdm:
        # Lightning's own write to stdout, which may be a file while stderr is the terminal.
        return Tqdm(
            desc=description,
            position=2 * self.process_position + position,
            disable=self.is_disabled,
            leave=leave,
            dynamic_ncols=True,
            file=sys.stderr,
            smoothing=0,
            bar_format=self.BAR_FORMAT,
        )


class EpochLines(Callback):
    """One line on stdout at the end of each epoch, and within long epochs one every so many seconds.

    Args:
        seconds: least time between two lines within an epoch.
    """

    def __init__(self, seconds: float = 60.0):
        self.seconds = seconds
        self._began = self._printed = 0.0
        self._final: dict[str, str] = {}
        self._validated = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # An epoch that goes on in its middle has no start.
        self._began = self._printed = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began = self._printed = time.monotonic()
        self._final, self._validated = {}, False

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Algorithm, outputs, batch, batch_idx) -> None:
        if not trainer.is_global_zero:
            return
        if trainer.is_last_batch:
            # Before validation, whose time is not training's.
            self._final = _formatted(_progress(trainer, pl_module))
        elif time.monotonic() - self._printed >= self.seconds:
            self._printed = time.monotonic()
            total = trainer.num_training_batches
            of = "" if math.isinf(total) else f"/{total}"
            self._print(trainer, f"batch {batch_idx + 1}{of}", _formatted(pl_module.progress()))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Algorithm) -> None:
        if not trainer.is_global_zero:
            return
        shown = self._final or _formatted(pl_module.progress())
        # The metrics keep the accuracy of the last validation, however many epochs ago.
        if self._validated:
            shown |= _validated(trainer)
        self._print(trainer, f"step {trainer.global_step}", shown)

    def _print(self, trainer: pl.Trainer, where: str, shown: dict[str, str]) -> None:
        words = [f"{name} {shown[name]}" for name in ("loss", "acc", "mse", "val") if name in shown]
        words += [f"{shown['img/s']} img/s"] if "img/s" in shown else []
        words += [f"feedback {shown['feedback']}"] if "feedback" in shown else []
        seconds = f"{time.monotonic() - self._began:.1f} s"
        print("  ".join([_epoch(trainer), where, *words, seconds]), flush=True)


def _progress(trainer: pl.Trainer, pl_module: Algorithm) -> dict[str, float]:
    """After the last batch of an epoch that of all ranks, which have met to log it; before, that of this rank."""
    found, known = pl_module.progress(), trainer.callback_metrics
    if trainer.world_size > 1 and trainer.is_last_batch:
        found |= {name: float(known[f"train/{name}"]) for name in found if f"train/{name}" in known}
    return found


def _validated(trainer: pl.Trainer) -> dict[str, str]:
    """The last validation's accuracy, or what the task has for it."""
    for name, digits in (("accuracy", 3), ("mse", 4), ("purity", 3)):
        value = trainer.callback_metrics.get(f"val/{name}")
        if value is not None:
            return {"val": f"{float(value):.{digits}f}"}
    return {}


def _epoch(trainer: pl.Trainer) -> str:
    limit = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
    return f"epoch {trainer.current_epoch + 1}{limit}"


def _formatted(progress: dict[str, float]) -> dict[str, str]:
    """The values that are there, as text, under the names that are shown. A rule without feedback phase shows none."""
    names = (("loss", "loss", 3), ("accuracy", "acc", 3), ("mse", "mse", 4))
    shown = {word: f"{progress[name]:.{digits}f}" for name, word, digits in names if name in progress}
    if "images_per_second" in progress:
        rate = progress["images_per_second"]
        shown["img/s"] = f"{rate:.1f}" if rate < 10 else f"{rate:.0f}"
    if progress.get("feedback_share", 0.0) > 0:
        shown["feedback"] = f"{progress['feedback_share']:.0%}"
    return shown
