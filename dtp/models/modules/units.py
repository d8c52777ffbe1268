"""Nonlinearities, normalisation and selection of units."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dtp.models.precision import full_precision


class FirstUnits(nn.Module):
    """The first ``count`` units: (B, d) to (B, count). The others are read by no layer above (auxiliary units)."""

    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.count]

    def extra_repr(self) -> str:
        return str(self.count)


class SLReLU(nn.Module):
    """Soft leaky ReLU (Dalm et al. 2021): softplus above the point where its slope is alpha, linear below it.

    f(0) = 0, f is invertible and its slope is continuous, 1/2 at 0 for alpha below 1/2.

    Args:
        alpha: least slope, above 0 and below 1.
    """

    def __init__(self, alpha: float = 0.1):
        super().__init__()
        self.alpha = alpha
        self.knee = math.log(alpha / (1 - alpha))
        self.shift = math.log1p(math.exp(self.knee)) / alpha - self.knee
        # What is subtracted so that f(0) = 0; for alpha of 1/2 and more, 0 lies on the linear part.
        self.offset = math.log(2) if self.knee < 0 else alpha * self.shift

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > self.knee, _softplus(x), self.alpha * (x + self.shift)) - self.offset

    def derivative(self, x: Tensor) -> Tensor:
        """f'(x), between alpha and 1."""
        return torch.where(x > self.knee, x.sigmoid(), self.alpha)

    def inverse(self, z: Tensor) -> Tensor:
        """x with f(x) = z; without loss for large |z|."""
        u = z + self.offset
        soft = u > -math.log1p(-self.alpha)
        # The other branch's values must not make NaN of gradients.
        v = torch.where(soft, u, 1.0)
        return torch.where(soft, v + torch.log(-torch.expm1(-v)), u / self.alpha - self.shift)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


def _softplus(x: Tensor) -> Tensor:
    # torch's own is x itself above 20, which is 2e-9 off.
    return torch.logaddexp(x, torch.zeros_like(x))


def standardised(x: Tensor) -> Tensor:
    """(x - mean) / (std + 1e-12) by the batch's own statistics, each feature of (B, d) or channel of (B, C, *space)."""
    return _standardise(x, *_moments(x))


class Standardise(nn.Module):
    """Batch standardisation without parameters (code of Shibuya et al. 2023): (x - mean) / (std + 1e-12), std unbiased.

    Training uses the batch's statistics; evaluation running ones, unless ``batch_statistics_at_test``, which is what
    the authors' code does.

    Args:
        features: d of (B, d) or C of (B, C, *space).
        momentum: of the running statistics.
        batch_statistics_at_test: evaluate by the statistics of the test batch.

    Raises:
        ValueError: in training, a batch of one value per feature, which has no standard deviation; evaluation takes
            running statistics for it.
    """

    EPS = 1e-12
    running_mean: Tensor
    running_std: Tensor

    def __init__(self, features: int, momentum: float = 0.1, batch_statistics_at_test: bool = False):
        super().__init__()
        self.momentum = momentum
        self.batch_statistics_at_test = batch_statistics_at_test
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_std", torch.ones(features))

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each feature that :meth:`forward` would use for x."""
        if self.training or (self.batch_statistics_at_test and x.numel() > x.shape[1]):
            return _moments(x)
        return self.running_mean, self.running_std

    def forward(self, x: Tensor) -> Tensor:
        mean, std = self.statistics(x)
        if self.training:
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
                self.running_std.lerp_(std.to(self.running_std), self.momentum)
        return _standardise(x, mean, std)

    def extra_repr(self) -> str:
        return str(len(self.running_mean))


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation of each feature of (B, d), or channel of (B, C, *space)."""
    if x.numel() <= x.shape[1]:
        raise ValueError(f"Expected more than 1 value per feature to standardise, got a batch of {tuple(x.shape)}.")
    x, over = full_precision(x), [0, *range(2, x.dim())]
    return x.mean(over), x.std(over, unbiased=True)


def _standardise(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    return (x - mean.view(shape)) / (std.view(shape) + Standardise.EPS)
