"""Backpropagation, the baseline."""

import torch
from torch import Tensor

from dtp.algorithms.base import Algorithm
from dtp.precision import full_precision


class BP(Algorithm):
    """Gradient of the mean cross-entropy through the whole network."""

    def forward_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        logits = self.network(x)
        gradients = torch.autograd.grad(self.task_loss(full_precision(logits), y), self.forward_parameters)
        return logits.detach(), list(gradients)

    def fixed_sequence(self) -> bool:
        return type(self) is BP
