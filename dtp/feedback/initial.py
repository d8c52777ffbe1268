"""Random backward weights with the distribution of forward ones."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dtp.models.modules import LocallyConnected2d

Init = Literal["default", "xavier", "xavier-normal", "kaiming"]


def fans(operation: Any) -> tuple[int, int]:
    """Fan-in and fan-out of the ``weight`` of a forward operation; of a locally connected one, at each position."""
    weight = operation.weight
    if isinstance(operation, LocallyConnected2d):
        return weight.shape[2], weight.shape[1]
    return nn.init._calculate_fan_in_and_fan_out(weight)


def deviation(fan_in: int, fan_out: int, init: Init) -> float:
    """Standard deviation of forward weights: PyTorch's default 1 / sqrt(3 fan_in), Glorot's sqrt(2 / (in + out)).

    ``kaiming`` is He's of the transposed map, sqrt(2 / fan_out).
    """
    if init == "kaiming":
        return math.sqrt(2 / fan_out)
    return 1 / math.sqrt(3 * fan_in) if init == "default" else math.sqrt(2 / (fan_in + fan_out))


@torch.no_grad()
def init_map(weight: Tensor, fan_in: int, fan_out: int, init: Init, generator: torch.Generator | None = None) -> Tensor:
    """Fill ``weight`` from the distribution of forward weights of these fans; returns it.

    ``default``, ``xavier`` and ``kaiming`` are uniform, ``xavier-normal`` is Gaussian.
    """
    scale = deviation(fan_in, fan_out, init)
    if init == "xavier-normal":
        return weight.normal_(0, scale, generator=generator)
    return weight.uniform_(-math.sqrt(3) * scale, math.sqrt(3) * scale, generator=generator)
