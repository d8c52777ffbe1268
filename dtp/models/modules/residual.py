"""Residual units of the ResNets."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn


class InnerFunction(nn.Module):
    """An elementwise nonlinearity between two affine maps of one layer: (B, *shape) to (B, *shape).

    It is a separate type because feedback undoes it differently from the nonlinearity that makes the layer's
    activation: what arrives here on the way back is not an activation.
    """

    def __init__(self, function: nn.Module):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Residual(nn.Module):
    """y = branch(x) + shortcut(x), two chains of operations; an empty one is the identity.

    Args:
        branch, shortcut: (B, *in) to (B, *out). Nonlinearities in them are :class:`InnerFunction`.
    """

    def __init__(self, branch: nn.Sequential, shortcut: nn.Sequential):
        super().__init__()
        self.branch, self.shortcut = branch, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + self.shortcut(x)


class PaddedShortcut(nn.Module):
    """Every ``stride``-th pixel with channels of zeros around: (B, C_in, H, W) to (B, C, H / stride, W / stride).

    Without weights, option A of He et al. 2016; as many zeros before the channels as after them, up to one. Where C is
    less than C_in, as many of the outer channels are left out.
    """

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.stride = stride
        before = int((channels - in_channels) / 2)
        self.padding = (before, channels - in_channels - before)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[..., :: self.stride, :: self.stride], (0, 0, 0, 0, *self.padding))

    def extra_repr(self) -> str:
        return f"padding={self.padding}, stride={self.stride}"


class ResidualUnit(Residual):
    """y = C2 f(C1 x) + S x, (B, C_in, H, W) to (B, C, H / stride, W / stride); the f after the sum is not part of it.

    C1 and C2 are 3x3 convolutions without bias, S the identity or, where the shape changes, a 1x1 convolution; each may
    be followed by batch normalisation (He et al. 2016). ``branch`` is C2 f(C1 x), ``shortcut`` S.

    Args:
        in_channels, channels: C_in, C.
        stride: of C1 and S.
        function: f.
        batch_norm: whether there is any.
        shortcut: S where the shape changes, the 1x1 convolution (``"projection"``) or a :class:`PaddedShortcut`
            (``"padding"``).
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        function: nn.Module,
        batch_norm: bool = False,
        shortcut: Literal["projection", "padding"] = "projection",
    ):
        def convolution(channels_in: int, kernel_size: int, stride: int) -> list[nn.Module]:
            conv = nn.Conv2d(channels_in, channels, kernel_size, stride, padding=kernel_size // 2, bias=False)
            return [conv, *([nn.BatchNorm2d(channels)] if batch_norm else [])]

        first, second = convolution(in_channels, 3, stride), convolution(channels, 3, 1)
        bypass: list[nn.Module] = []
        if stride != 1 or in_channels != channels:
            padded = shortcut == "padding"
            bypass = [PaddedShortcut(in_channels, channels, stride)] if padded else convolution(in_channels, 1, stride)
        super().__init__(nn.Sequential(*first, InnerFunction(function), *second), nn.Sequential(*bypass))
