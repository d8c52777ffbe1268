"""Optimizers and schedules as Lightning documents them. We step them, because a rule takes several steps per batch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from dtp import compat
from dtp.algorithms.options import AlgorithmOptions
from dtp.errors import UserError

FORMS = "an optimizer, a list of them, ([optimizers], [schedules]), or a dictionary with optimizer and lr_scheduler"


@dataclass
class Schedule:
    """When a scheduler is stepped, as in the dictionaries that Lightning documents."""

    scheduler: Any
    interval: str = "epoch"
    frequency: int = 1
    monitor: str | None = None
    strict: bool = True
    name: str | None = None

    @property
    def watches(self) -> bool:
        """Whether its step takes a metric."""
        return isinstance(self.scheduler, ReduceLROnPlateau)

    def is_due(self, interval: str, count: int) -> bool:
        """Whether it steps after ``count`` of these intervals."""
        return self.interval == interval and count % self.frequency == 0

    def value(self, metrics: Mapping[str, Any]) -> Any:
        """The metric that its step takes; None where that is not there and need not be.

        Raises:
            UserError: it is not there, and must be.
        """
        if self.monitor in metrics or not self.strict:
            return metrics.get(self.monitor or "")
        raise UserError(
            f"ReduceLROnPlateau: expected a metric {self.monitor!r} to watch, found "
            f"{', '.join(sorted(metrics)) or 'none'}; give one of these as monitor."
        )

    def for_lightning(self) -> dict[str, Any]:
        """What Lightning is told of it: for checkpoints and LearningRateMonitor."""
        return {"scheduler": self.scheduler, "interval": self.interval, "frequency": self.frequency, "name": self.name}


def epochs_to_come(trainer: Trainer | None, options: AlgorithmOptions) -> int:
    """Epochs of the whole training, for a schedule that needs them; 1 where there is none, or no trainer.

    Where the trainer does not say how many: 0, with a warning.
    """
    if trainer is None:
        return 1
    scheduled = options.lr_schedule != "constant" and not (options.lr_period or options.lr_milestones)
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        return trainer.max_epochs or 1
    if not scheduled:
        return 1
    batches = compat.batches_of_an_epoch(trainer)
    if trainer.max_steps > 0 and math.isfinite(batches):
        return math.ceil(trainer.max_steps / batches)
    warnings.warn(
        f"The learning rate stays constant, for lr_schedule={options.lr_schedule!r} needs to know when training ends, "
        "and Trainer has no max_epochs; give lr_period (epochs), or lr_milestones for steps.",
        stacklevel=2,
    )
    return 0


def parsed(owner: str, found: Any, known: Sequence[Schedule] = ()) -> tuple[list[Optimizer], list[Schedule]]:
    """Optimizers and schedules of what ``configure_optimizers`` of the class ``owner`` has returned.

    Args:
        owner: the class.
        found: what was returned.
        known: schedules that the class above has configured; what is not said anew of one of them holds.

    Raises:
        UserError: it is none of the forms that Lightning documents, or an optimizer that no rule can step.
    """
    optimizers, schedulers, monitor = _taken_apart(found)
    if not optimizers or not all(isinstance(optimizer, Optimizer) for optimizer in optimizers):
        raise UserError(f"configure_optimizers of {owner} must return {FORMS}, found {_shown(found)}; fix {owner}.")
    if any(isinstance(optimizer, LBFGS) for optimizer in optimizers):
        raise UserError(
            f"configure_optimizers of {owner} returns LBFGS, which evaluates a loss several times in a step, and the "
            "rules have no loss whose gradient they follow; use another optimizer."
        )
    return optimizers, [_schedule(owner, scheduler, monitor, known) for scheduler in schedulers]


def _taken_apart(found: Any) -> tuple[list[Any], list[Any], str | None]:
    if isinstance(found, Optimizer):
        return [found], [], None
    if isinstance(found, dict):
        schedulers = [found["lr_scheduler"]] if found.get("lr_scheduler") is not None else []
        return [found.get("optimizer")], schedulers, found.get("monitor")
    if not isinstance(found, list | tuple):
        return [], [], None
    if len(found) == 2 and isinstance(found[0], list | tuple):
        optimizers, schedulers = found
        return list(optimizers), list(schedulers) if isinstance(schedulers, list | tuple) else [schedulers], None
    if all(isinstance(part, dict) for part in found):
        parts = [_taken_apart(part) for part in found]
        return [o for os, _, _ in parts for o in os], [s for _, ss, _ in parts for s in ss], None
    return list(found), [], None


def _schedule(owner: str, scheduler: Any, monitor: str | None, above: Sequence[Schedule]) -> Schedule:
    given = scheduler if isinstance(scheduler, dict) else {"scheduler": scheduler}
    known = {name: given[name] for name in Schedule.__dataclass_fields__ if name in given}
    # Lightning's own name for what we see by ourselves.
    odd = sorted(given.keys() - known.keys() - {"reduce_on_plateau"})
    if odd or "scheduler" not in known or not hasattr(known["scheduler"], "step"):
        raise UserError(
            f"configure_optimizers of {owner}: expected a schedule, or a dictionary with "
            f"{', '.join(Schedule.__dataclass_fields__)}, found {', '.join(odd) or _shown(known.get('scheduler'))}; "
            f"fix {owner}."
        )
    before = next((vars(schedule) for schedule in above if schedule.scheduler is known["scheduler"]), {})
    schedule = Schedule(**{**before, **({"monitor": monitor} if monitor else {}), **known})
    if schedule.interval not in ("epoch", "step"):
        raise UserError(
            f"configure_optimizers of {owner}: expected epoch or step as interval of a schedule, found "
            f"{schedule.interval!r}; fix {owner}."
        )
    if not isinstance(schedule.frequency, int) or schedule.frequency < 1:
        raise UserError(
            f"configure_optimizers of {owner}: expected a whole number of at least 1 as frequency of a schedule, found "
            f"{schedule.frequency!r}; fix {owner}."
        )
    if schedule.watches and schedule.monitor is None:
        raise UserError(
            f'configure_optimizers of {owner}: expected a monitor for ReduceLROnPlateau, such as "val/loss", found '
            f"none; fix {owner}."
        )
    return schedule


def _shown(found: Any) -> str:
    return "None" if found is None else f"a value of type {type(found).__name__}"
