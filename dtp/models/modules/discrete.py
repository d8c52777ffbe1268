"""Hard signs on the way from one layer to the next."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

SignGradient = Literal["straight-through", "zero", "test-only"]


class Sign(nn.Module):
    """1 where x > 0 and -1 elsewhere, (B, *shape) to (B, *shape): all that a layer receives from the one below.

    Args:
        gradient: what differentiation makes of it: ``"straight-through"`` the identity (Bengio et al. 2013), ``"zero"``
            its true derivative, 0; with ``"test-only"`` training does not see it at all, for there it is the identity.
    """

    def __init__(self, gradient: SignGradient = "straight-through"):
        super().__init__()
        self.gradient: SignGradient = gradient

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.gradient == "test-only":
            return x
        return straight_through(torch.where(x > 0, 1.0, -1.0), x, float(self.gradient != "zero"))

    def extra_repr(self) -> str:
        return f"gradient={self.gradient!r}"


def straight_through(value: Tensor, x: Tensor, slope: float = 1.0) -> Tensor:
    """``value`` in the dtype of ``x``, exactly, for differentiation a function of ``x`` with derivative ``slope``."""
    return value.to(x.dtype) + slope * (x - x.detach())
