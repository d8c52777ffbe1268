"""Backpropagation, the baseline."""

from torch import Tensor

from dtp.algorithms.base import Algorithm
from dtp.contracts import gradients, require_loss_value
from dtp.models.precision import full_precision


class BP(Algorithm):
    """Gradient of the mean cross-entropy through the whole network."""

    def forward_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        logits = self(x)
        loss = require_loss_value(self, "task_loss", self.task_loss(full_precision(logits), y))
        return logits.detach(), gradients(self, self.network, [loss], self.forward_parameters)

    def fixed_sequence(self) -> bool:
        return type(self) is BP
