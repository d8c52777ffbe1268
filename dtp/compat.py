"""All that is used of Lightning and not promised by it. ``tests/test_compat.py`` fails where it moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.overrides.distributed import _sync_module_states
from lightning.pytorch.strategies.launchers import subprocess_script
from lightning.pytorch.trainer.states import TrainerStatus


def trainer_of(module: LightningModule) -> Trainer | None:
    """The trainer of a module; None outside of one, where ``module.trainer`` raises."""
    trainer: Any = module._trainer
    return trainer


def trains(module: LightningModule) -> bool:
    """Whether a trainer is at work on the module; one that has come to its end stays with it."""
    trainer = trainer_of(module)
    return trainer is not None and trainer.state.status == TrainerStatus.RUNNING


def batches_of_an_epoch(trainer: Trainer) -> int | float:
    """How many training batches an epoch has, before training has begun; ``inf`` where nothing limits them."""
    trainer.fit_loop.setup_data()
    return trainer.num_training_batches


def count_step(trainer: Trainer) -> None:
    """Count one more step: ``global_step``, which limits, checkpoints and loggers follow."""
    progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
    progress.increment_ready()
    progress.increment_completed()


def batches_done(trainer: Trainer) -> int:
    """Training batches that have been processed, over all epochs."""
    total: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    return total.processed


def log_at(trainer: Trainer, step: int) -> None:
    """Have loggers take what comes for that of ``step``.

    By Lightning's own count a checkpoint within an epoch is a batch behind.
    """
    trainer.fit_loop.epoch_loop._batches_that_stepped = step


def train_by_epochs(trainer: Trainer) -> None:
    """Treat a limit of steps as one within epochs.

    Where Lightning takes training for one of so many steps, a checkpoint of an epoch's end has it end that epoch once
    more, and training with it.
    """
    trainer.fit_loop._iteration_based_training = lambda: False


def watch_started_processes(begin: Callable[..., Any]) -> None:
    """Have ``begin`` look after the processes that Lightning starts for a plain command, in place of its observer."""
    launcher: Any = subprocess_script
    launcher._launch_process_observer = begin


def start_from_rank_zero(module: LightningModule) -> None:
    """Give all ranks the parameters and buffers of rank 0."""
    _sync_module_states(module)
