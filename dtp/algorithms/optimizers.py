"""Optimizers and schedules by name."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, StepLR

from dtp.algorithms.options import AlgorithmOptions


def make_optimizer(
    name: str, parameters: Iterable[Tensor], lr: float, momentum: float, weight_decay: float
) -> Optimizer:
    """One of torch's optimizers. ``momentum`` is Adam's first beta."""
    parameters = list(parameters)
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
    if name == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
    return torch.optim.Adam(parameters, lr=lr, betas=(momentum, 0.999), weight_decay=weight_decay)


def make_schedule(optimizer: Optimizer, options: AlgorithmOptions, max_epochs: int) -> LRScheduler:
    """The schedule of the forward learning rate, to be stepped once per epoch."""
    period = options.lr_period or max(max_epochs, 1)
    if options.lr_schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=period, eta_min=options.lr_min)
    if options.lr_schedule == "step":
        return StepLR(optimizer, step_size=period, gamma=options.lr_gamma)
    return LambdaLR(optimizer, lambda epoch: 1.0)
