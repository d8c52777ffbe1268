"""Maps from the output straight to a hidden layer: modules called as feedback layers are, ``(y, context) -> r``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Size, Tensor, nn

from dtp.errors import UserError
from dtp.feedback.initial import Init, init_map
from dtp.feedback.operations import FeedbackSettings, LinearMap, operation_of
from dtp.models.modules import SameConv2d


class DirectMap(nn.Module):
    """A linear map from the output (B, K) to a layer's activation (B, *shape); gradients go to y and the weights.

    Args:
        outputs: K.
        shape: of one sample of the activation.
        bias: whether it has one.
        dtype: of the weights.
        init: ``default``, ``xavier`` or ``xavier-normal``, see :func:`~dtp.feedback.initial.init_map`. With
            ``default`` the bias is drawn as PyTorch draws it, with the others it starts at 0.
    """

    def __init__(self, outputs: int, shape: Sequence[int], bias: bool, dtype: torch.dtype, init: Init = "default"):
        super().__init__()
        if dtype.is_complex:
            raise UserError(
                "Maps from the output to other layers are of real numbers, found a network with complex weights; use "
                "bp or fa."
            )
        self.shape = Size(shape)
        self.linear = nn.Linear(outputs, self.shape.numel(), bias=bias, dtype=dtype)
        init_map(self.linear.weight, outputs, self.shape.numel(), init)
        if bias and init != "default":
            nn.init.zeros_(self.linear.bias)

    def forward(self, y: Tensor, context=None) -> Tensor:
        return self.linear(y).unflatten(1, self.shape)


class AverageMap(nn.Module):
    """A linear map from the output (B, K) to the mean over space of (B, C, H, W), of which each place has its share.

    That is 1 / (H W), as the gradient of the mean has it (Sanfiz and Akrout 2021, biotorch). Arguments as for
    :class:`DirectMap`, without a bias; ``shape`` is (C, H, W).
    """

    def __init__(self, outputs: int, shape: Size, dtype: torch.dtype, init: Init = "default"):
        super().__init__()
        self.to_mean = DirectMap(outputs, shape[:1], False, dtype, init)
        self.space = shape[1:]

    def forward(self, y: Tensor, context=None) -> Tensor:
        share = self.to_mean(y) / self.space.numel()
        return share[:, :, None, None].expand(*share.shape, *self.space)


class BroadcastMap(nn.Module):
    """The output (B, K) repeated over space and sent through a random transposed convolution, to (B, C, H, W).

    The convolution that receives the activation gives the geometry; its K x C x k x k kernel is all that is stored
    (Sanfiz and Akrout 2021, biotorch).

    Args:
        outputs: K.
        shape: (C, H, W) of one sample of the activation.
        operation: the forward convolution that takes it, ``nn.Conv2d`` or ``SameConv2d``.
        out_shape: of one sample of that convolution's output.
        init: as for :class:`DirectMap`.
    """

    def __init__(
        self, outputs: int, shape: Size, operation: nn.Conv2d | SameConv2d, out_shape: Size, init: Init = "default"
    ):
        super().__init__()
        same = isinstance(operation, SameConv2d)
        conv = operation.conv if same else operation
        if same:
            geometry = SameConv2d(shape[0], outputs, conv.kernel_size[0], conv.stride[0], bias=False)
        else:
            # By torch's types what a Conv2d has for sizes is of any length, but what it takes is two numbers.
            sizes: Any = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
            geometry = nn.Conv2d(shape[0], outputs, *sizes)
        geometry = geometry.to(conv.weight.dtype)
        transposed = operation_of(geometry).make_feedback(geometry, shape, FeedbackSettings())
        assert isinstance(transposed, LinearMap)
        self.transposed = transposed
        self.space = out_shape[1:]
        # Fans as torch counts those of a transposed convolution.
        positions = kernel_positions(operation)
        init_map(self.transposed.weight, shape[0] * positions, outputs * positions, init)

    def forward(self, y: Tensor, context=None) -> Tensor:
        return self.transposed(y[:, :, None, None].expand(*y.shape, *self.space))


def kernel_positions(operation: nn.Conv2d | SameConv2d) -> int:
    """Number of positions of a convolution's kernel, k x k."""
    conv = operation.conv if isinstance(operation, SameConv2d) else operation
    return conv.weight[0, 0].numel()
