"""Which epochs and batches of a run train the forward weights, and which the feedback weights. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FeedbackSchedule:
    """When a rule with feedback weights trains these, and when it trains the forward weights.

    Epochs and batches are counted from 0; ``per_epoch`` is the number of batches of an epoch.

    Attributes:
        warmup: batches at the start of a run that train the feedback weights alone.
        warmup_epochs: epochs at the start that do.
        extra_epochs: epochs that do after each epoch of the forward weights.
        alternating: whether epochs train one kind of weights and the other in turn, the feedback's first.
        warmup_only: whether nothing but the warm-up trains the feedback weights.
    """

    warmup: int = 0
    warmup_epochs: int = 0
    extra_epochs: int = 0
    alternating: bool = False
    warmup_only: bool = False

    @classmethod
    def of(cls, options: Any) -> FeedbackSchedule:
        """That of a rule's options, or of a run's by name; of a rule without feedback weights, forward throughout."""
        by_name = options if isinstance(options, Mapping) else vars(options)
        return cls(
            by_name.get("feedback_warmup") or 0,
            by_name.get("feedback_warmup_epochs") or 0,
            by_name.get("extra_feedback_epochs") or 0,
            by_name.get("schedule") == "alternating",
            by_name.get("schedule") == "warmup",
        )

    @property
    def period(self) -> int:
        """Epochs from one of the forward weights to the next."""
        return 2 if self.alternating else 1 + self.extra_epochs

    @property
    def first_epoch(self) -> int:
        """The first epoch of the forward weights, as far as whole epochs say."""
        return self.warmup_epochs + self.alternating

    def warms_up(self, epoch: int, batch: int) -> bool:
        """Whether the batch is one of those at the start that train the feedback weights alone."""
        return batch < self.warmup or epoch < self.warmup_epochs

    def turns(self, epoch: int, batch: int) -> tuple[bool, bool]:
        """Whether the batch trains the feedback weights, and whether it trains the forward weights.

        Args:
            batch: of the run, not of the epoch.
        """
        if self.warms_up(epoch, batch):
            return True, False
        forward = self._has_turn(epoch)
        return not (self.alternating and forward or self.warmup_only), forward

    def _has_turn(self, epoch: int) -> bool:
        """Whether an epoch is one of the forward weights, but for a warm-up in batches."""
        return epoch >= self.first_epoch and (epoch - self.first_epoch) % self.period == 0

    def forward_batches(self, batches: float, per_epoch: float) -> float:
        """How many of the first ``batches`` of a run train the forward weights.

        ``per_epoch`` may be a mean, of a run that ended within an epoch.
        """
        begin = max(self.warmup, self.warmup_epochs * per_epoch)
        if self.period == 1 or not per_epoch:
            return max(0, batches - begin)
        done = 0.0
        for epoch in range(self.first_epoch, math.ceil(batches / per_epoch), self.period):
            done += max(0.0, min(batches, (epoch + 1) * per_epoch) - max(begin, epoch * per_epoch))
        return done

    def forward_epochs(self, batches: float, per_epoch: float) -> float:
        """Passes over the training set that train the forward weights in the first ``batches``, to three digits."""
        return round(self.forward_batches(batches, per_epoch) / per_epoch, 3) if batches else 0.0

    def trains_forward(self, epoch: int, per_epoch: float) -> bool:
        """Whether a batch of the epoch trains the forward weights."""
        return self._has_turn(epoch) and self.warmup < (epoch + 1) * per_epoch

    def first_batch(self, per_epoch: float) -> float:
        """The first batch that trains the forward weights: so many train the feedback weights alone before."""
        epoch = self.first_epoch
        if self.period > 1 and per_epoch:
            # The warm-up may last beyond that epoch; the next of its kind is a period later.
            warm = max(0, math.floor(self.warmup / per_epoch) - epoch)
            epoch += -(-warm // self.period) * self.period
        return max(self.warmup, epoch * per_epoch if epoch else 0)
