"""Operations that draw random numbers: samples of binary units, noise on the input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dtp.models.modules.discrete import straight_through


class RandomOperation(nn.Module):
    """An operation with random numbers: (B, *shape) to (B, *shape), ``forward(x)`` is ``with_numbers(x, draw(x))``.

    They come from torch's global generator. A pass that is compared with another uses the same numbers, so that only
    the intended change differs. For each pass by itself they are as random as new ones.
    """

    @property
    def draws(self) -> bool:
        """Whether it draws anything now; otherwise it is the identity."""
        return True

    def draw(self, x: Tensor) -> Tensor:
        """Fresh numbers for ``x``, of its shape, in float32 whatever its dtype."""
        raise NotImplementedError

    def with_numbers(self, x: Tensor, numbers: Tensor) -> Tensor:
        """What it makes of ``x`` with the numbers given; a pure function."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.with_numbers(x, self.draw(x)) if self.draws else x


class Sample(RandomOperation):
    """Binary units, 1 with probability x and 0 otherwise. Gradients pass as through the identity (straight-through).

    Below 0 a unit is never 1, above 1 always.
    """

    def draw(self, x: Tensor) -> Tensor:
        # 16 bits would round the probabilities to 1/256.
        return torch.rand(x.shape, device=x.device)

    def with_numbers(self, x: Tensor, numbers: Tensor) -> Tensor:
        return straight_through(numbers < x, x)


class InputNoise(RandomOperation):
    """Gaussian noise, in training only.

    Args:
        scale: its standard deviation.
    """

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    @property
    def draws(self) -> bool:
        return self.training and self.scale > 0

    def draw(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, device=x.device)

    def with_numbers(self, x: Tensor, numbers: Tensor) -> Tensor:
        return x + self.scale * numbers.to(x.dtype)

    def extra_repr(self) -> str:
        return str(self.scale)


class Probability(nn.Sigmoid):
    """The sigmoid, as the probability with which a binary unit is 1.

    It is a separate type because its feedback uses another nonlinearity (Lee 2018: tanh).
    """
