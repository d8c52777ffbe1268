"""DTP whose beta falls during training, while the rate of its updates stays that of the first beta.

    cd benchmarks
    dtp train --algo falling_beta:FallingBeta --config dtp_lenet_cifar10_expected --feedback-iterations inf

Targets are linear only in the limit of a small beta. A large one helps where float32 or few feedback iterations would
lose a small difference. This asks whether the end of training, where rates are low, gains from a small one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from dtp.algorithms import DTP
from dtp.algorithms.local_targets import Activations
from dtp.fields import option


class FallingBeta(DTP):
    """DTP with L-DRL, with t_N = s_N - beta_e d loss / d s_N in epoch e, and local losses times beta / beta_e.

    beta_e falls from ``beta`` in the first epoch to ``last_beta`` in the last one, as half a cosine.
    """

    @dataclass
    class Options(DTP.Options):
        """The last beta."""

        # beta of the last epoch, above 0.
        last_beta: float = option(0.05, above=0)

    options: Options

    @property
    def beta(self) -> float:
        """beta_e of this epoch."""
        first, last = self.options.beta, self.options.last_beta
        epochs = max((self.trainer.max_epochs or 1) - 1, 1)
        return last + (first - last) * (1 + math.cos(math.pi * min(self.current_epoch / epochs, 1))) / 2

    def first_target(self, activations: Activations, y: Tensor) -> Tensor:
        s = activations.s[self.network.depth]
        return s - self.beta * self.loss_gradient(s, y)

    def forward_loss(self, n: int, output: Tensor, target: Tensor) -> Tensor:
        return self.options.beta / self.beta * super().forward_loss(n, output, target)
