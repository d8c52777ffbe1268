"""Convolution with the padding that TensorFlow calls "same"."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def same_padding(size: Sequence[int], kernel_size: int, stride: int) -> tuple[int, int, int, int]:
    """Zeros (left, right, top, bottom) around maps of ``size`` (H, W) that leave ceil(size / stride) positions.

    Where their number is odd, the odd one comes last: right and below.
    """
    height, width = (max((-(-n // stride) - 1) * stride + kernel_size - n, 0) for n in size)
    return width // 2, width - width // 2, height // 2, height - height // 2


class SameConv2d(nn.Module):
    """A strided convolution whose output has ceil(size / stride) positions: (B, C_in, H, W) to (B, C, H', W').

    ``nn.Conv2d`` knows ``padding="same"`` only without strides, and no padding that differs between the sides.

    Args:
        in_channels, out_channels: C_in, C.
        kernel_size: of square kernels.
        stride: in both dimensions.
        bias: whether there is one.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, bias: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, bias=bias)

    def padding(self, size: Sequence[int]) -> tuple[int, int, int, int]:
        """Zeros (left, right, top, bottom) around maps of ``size`` (H, W)."""
        return same_padding(size, self.conv.kernel_size[0], self.conv.stride[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding(x.shape[-2:])))
