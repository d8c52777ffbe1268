"""Convolution without weight sharing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit import is_scripting, is_tracing  # pyright: ignore[reportPrivateImportUsage] (documented there)

from dtp.models.modules.same import same_padding


def _windows(x: Tensor, kernel: int, stride: int) -> Tensor:
    windows = x.unfold(1, kernel, stride).unfold(2, kernel, stride)
    return windows.permute(1, 2, 0, 4, 5, 3).clone(memory_format=torch.contiguous_format)


class _Windows(torch.autograd.Function):
    """What each position sees: (C, H, W, B) to (H', W', C, k, k, B); linear, with :class:`_Overlaps` for its transpose.

    Images come last, such that what is copied and added lies together in memory. F.unfold and F.fold take them first,
    and several times as long.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, kernel: int, stride: int) -> Tensor:
        return _windows(x, kernel, stride)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.kernel, ctx.stride = inputs
        ctx.size = x.shape[1:3]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _Overlaps.apply(gradients[0], *ctx.size, ctx.stride), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _Windows.apply(tangents[0], ctx.kernel, ctx.stride)


class _Overlaps(torch.autograd.Function):
    """Sums of windows where they overlap, (H', W', C, k, k, B) to (C, H, W, B): the transpose of :class:`_Windows`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(windows: Tensor, height: int, width: int, stride: int) -> Tensor:
        rows, columns, channels, kernel, _, images = windows.shape
        x = windows.new_zeros(channels, height, width, images)
        for i in range(kernel):
            for j in range(kernel):
                reached = x[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
                reached += windows[:, :, :, i, j].permute(2, 0, 1, 3)
        return x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        windows, *ctx.size, ctx.stride = inputs
        ctx.kernel = windows.shape[3]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _Windows.apply(gradients[0], ctx.kernel, ctx.stride), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _Overlaps.apply(tangents[0], *ctx.size, ctx.stride)


class LocallyConnected2d(nn.Module):
    """A convolution whose kernel is another one in every output position (Bartunov et al. 2018)::

        y[b, o, l] = sum_i weight[l, o, i] unfold(x)[b, i, l] + bias[o, l]

    (B, C_in, H, W) to (B, C_out, H', W'), with square kernels. ``weight`` is (L, C_out, C_in k k) for L = H' W'
    positions, ``bias`` (C_out, L). Weights begin as Glorot's uniform ones, every position a dense layer of its own;
    biases at 0.

    Args:
        in_channels, out_channels: C_in, C_out.
        in_size: (H, W) of the input, which the number of weights depends on.
        kernel_size: k.
        stride: in both dimensions.
        padding: zeros on each side, or "same" for H' = ceil(H / stride) as TensorFlow has it: where their number is
            odd, the odd one is on the right and below.
        bias: whether there is one.

    Raises:
        ValueError: the kernel is larger than the padded input.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        in_size: Sequence[int],
        kernel_size: int,
        stride: int = 1,
        padding: Literal["same"] | int = "same",
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.in_channels, self.out_channels, self.in_size = in_channels, out_channels, tuple(in_size)
        self.kernel_size, self.stride = kernel_size, stride
        self.padding: Literal["same"] | int = padding
        # Left, right, top, bottom.
        self.zeros = same_padding(in_size, kernel_size, stride) if padding == "same" else (padding,) * 4
        left, right, top, bottom = self.zeros
        self.padded_size = (self.in_size[0] + top + bottom, self.in_size[1] + left + right)
        if kernel_size > min(self.padded_size):
            height, width = self.padded_size
            raise ValueError(f"a kernel of {kernel_size} does not fit maps of {height}x{width}, padding included")
        self.out_size = tuple((size - kernel_size) // stride + 1 for size in self.padded_size)
        positions, inputs = math.prod(self.out_size), in_channels * kernel_size**2
        self.weight = nn.Parameter(torch.empty(positions, out_channels, inputs, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_channels, positions, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        bound = math.sqrt(6 / sum(self.weight.shape[1:]))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.bmm(self.weight, self.columns(x)).permute(2, 1, 0)
        y = y if self.bias is None else y + self.bias
        return y.unflatten(2, self.out_size)

    def columns(self, x: Tensor) -> Tensor:
        """What each position sees: (B, C_in, H, W) to (L, C_in k k, B)."""
        padded = F.pad(x.permute(1, 2, 3, 0), (0, 0, *self.zeros))
        # What compiles, traces or exports a network does not follow functions with derivatives of their own.
        if torch.compiler.is_compiling() or is_scripting() or is_tracing():
            windows = _windows(padded, self.kernel_size, self.stride)
        else:
            windows = _Windows.apply(padded, self.kernel_size, self.stride)
        return windows.view(self.weight.shape[0], self.weight.shape[2], x.shape[0])

    def adjoint(self, y: Tensor, weight: Tensor) -> Tensor:
        """The transposed map with ``weight`` in place of its own: (B, C_out, H', W') to (B, C_in, H, W)."""
        columns = torch.bmm(weight.transpose(1, 2), y.flatten(2).permute(2, 1, 0))
        kernel = self.kernel_size
        windows = columns.reshape(*self.out_size, self.in_channels, kernel, kernel, len(y))
        padded: Any = _Overlaps.apply(windows, *self.padded_size, self.stride)
        (height, width), (left, _, top, _) = self.in_size, self.zeros
        return padded[:, top : top + height, left : left + width].permute(3, 0, 1, 2)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, in_size={self.in_size}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding!r}, bias={self.bias is not None}"
        )
