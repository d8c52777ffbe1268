"""How each type of forward operation is evaluated with its context, and what undoes it in a feedback layer.

A forward layer is an ``nn.Sequential`` of operations. Every operation type has one entry here:

- ``forward(module, x, given, routing) -> (y, context)``: the operation itself. ``given`` is the context of a clean pass
  that this pass is compared with, or None. Normalisation always uses the statistics of the given context (a noisy pass
  must not measure or store its own), and dropout the mask of the given context, whatever the routing, so that two
  passes differ by the noise alone; max-pooling uses the given switches when ``routing`` is ``"fixed"``.
- ``feedback(module, in_shape, settings) -> FeedbackOperation``: the module that maps back.

:func:`register_feedback` adds a type. Shapes below are those of one batch: (B, *sample).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn

from dtp.errors import UserError
from dtp.feedback.context import (
    AffineContext,
    DrawnContext,
    SampleAffineContext,
    ShapeContext,
    SlopeContext,
    SwitchesContext,
)
from dtp.models.modules import Residual
from dtp.models.precision import full_precision
from dtp.models.shapes import ELEMENTWISE, channels_last, has_hooks

Routing = Literal["noisy", "fixed"]


@dataclass(frozen=True)
class FeedbackSettings:
    """How feedback layers are made.

    Attributes:
        nonlinearity: ``"before"`` the feedback's affine map (L-DRL networks: the affine map comes last) or ``"after"``
            it (Lee, Bartunov: ``G(y) = f(V y + c)``, with the nonlinearity that made the activation it reconstructs).
        bias: whether feedback affine maps have a bias.
        unpool: ``"add"`` (adjoint of pooling) or ``"write"`` (last of several maxima at one position wins).
        gate: what stands between the two affine maps of a residual unit's feedback: the forward nonlinearity's slope
            (``"forward"``, the adjoint), the nonlinearity itself (``"feedback"``) or nothing (``"linear"``).
        slope: what a nonlinearity outside residual units comes back through: itself, at what the feedback is given
            (``"own"``, as published), or its slope in the clean pass (``"clean"``), which makes G linear.
    """

    nonlinearity: Literal["before", "after"] = "before"
    bias: bool = False
    unpool: Literal["add", "write"] = "add"
    gate: Literal["forward", "feedback", "linear"] = "forward"
    slope: Literal["own", "clean"] = "own"


class FeedbackOperation(nn.Module):
    """One operation of a feedback layer: ``forward(y, context) -> r``, a function of its arguments and parameters only.

    ``kind`` orders the operations: an ``"elementwise"`` one is evaluated before the ``"spatial"`` one (unpooling) that
    precedes it. For max-pooling both orders agree where f(0) = 0 and switches differ, and the pooled tensor is smaller;
    where switches coincide, and for average pooling, this order is the closer adjoint, for f then sees values of the
    size of the activation's. (With a normalisation or dropout between the two they stay in their order.) A
    ``"standardise"`` one is left out where the nonlinearity follows the affine map; there, what its ``of_feedback()``
    makes ends the feedback of the layer above. An ``"affine"`` one is linear in its input, or a unit of such maps, and
    holds the feedback weights. A ``"transmission"`` one is what the layer's weights hear through, and what the
    feedback's will: it is evaluated right before the affine one.
    """

    kind: Literal["elementwise", "spatial", "reshape", "affine", "standardise", "transmission"] = "affine"

    def copy_transpose(self, forward_operation: nn.Module) -> None:
        """Make this operation the adjoint of ``forward_operation``. Copies values; never shares storage."""

    def weight_pairs(self, forward_operation: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Its weights, each with the one that :meth:`copy_transpose` would copy there, a view in the same shape."""
        return []

    def of_feedback(self) -> FeedbackOperation:
        """Of a ``"standardise"`` operation: what stands at the end of the feedback of the layer above instead."""
        raise NotImplementedError


class LinearMap(FeedbackOperation):
    """An affine feedback operation whose weights are one tensor, in which it is linear: A_V(y), plus perhaps a bias.

    A user's own affine operation that is a subclass is covered by the reduced form of L-DRL.
    """

    kind = "affine"

    @property
    def weight(self) -> Tensor:
        """V."""
        raise NotImplementedError

    def transpose_of(self, forward_operation: Any) -> Tensor:
        """The V for which A_V is the adjoint of ``forward_operation``: a view of its weights, in the shape of V."""
        return forward_operation.weight

    def weight_pairs(self, forward_operation: nn.Module) -> list[tuple[Tensor, Tensor]]:
        return [(self.weight, self.transpose_of(forward_operation))]

    @torch.no_grad()
    def copy_transpose(self, forward_operation: nn.Module) -> None:
        self.weight.copy_(self.transpose_of(forward_operation))
        for name, parameter in self.named_parameters():
            if name.rpartition(".")[2] == "bias":
                parameter.zero_()

    def apply_weight(self, y: Tensor, weight: Tensor) -> Tensor:
        """A_V(y) for V = ``weight``, without the bias: (B, *y) -> (B, *r)."""
        raise NotImplementedError

    def weight_gradient(self, y: Tensor, error: Tensor) -> Tensor:
        """Gradient of <error, A_V(y)>, summed over samples, with respect to V. ``y`` (B, *y), ``error`` (B, *r)."""
        raise NotImplementedError

    def weight_gradients(self, y: Tensor, error: Tensor) -> Tensor:
        """:meth:`weight_gradient` of each of k batches: (k, B, *y), (k, B, *r) -> (k, *V)."""
        return torch.stack([self.weight_gradient(*pair) for pair in zip(y, error, strict=True)])

    def squares_reaching(self, weight: Tensor) -> Tensor:
        """Sum of squares of the ``weight`` (in the shape of V) that reach each value of y, of one sample: (*y,).

        White noise on r comes through the transposed map with this variance. For convolutions it differs at borders,
        where some of the kernel lies outside.

        Raises:
            NotImplementedError: the operation does not say which weights reach where.
        """
        raise NotImplementedError

    def over_positions(self, values: Tensor) -> Tensor:
        """For each weight the sum of ``values`` (*y,) over the values of y that it reaches; broadcastable to V."""
        raise NotImplementedError


def not_in_place(function: nn.Module) -> nn.Module:
    """A copy of a nonlinearity that does not overwrite what it is given."""
    own: Any = copy.deepcopy(function)
    if getattr(own, "inplace", False):
        own.inplace = False
    return own


class Elementwise(FeedbackOperation):
    """The same nonlinearity as the forward operation's."""

    kind = "elementwise"

    def __init__(self, function: nn.Module):
        super().__init__()
        self.function = not_in_place(function)

    def forward(self, y: Tensor, context: Any = None) -> Tensor:
        return self.function(y)


class Gate(FeedbackOperation):
    """Feedback of a nonlinearity f, (B, *shape) to (B, *shape), with the place that f has in the layer.

    ``"forward"`` multiplies by f' at what f was given in the clean pass: with transposed weights the exact adjoint, and
    still local. ``"feedback"`` applies f (code of Ernoult et al.), which no weights make the adjoint; ``"linear"``
    nothing.
    """

    kind = "reshape"

    def __init__(self, function: nn.Module, gate: str):
        super().__init__()
        self.function = Elementwise(function)
        self.gate = gate

    def forward(self, y: Tensor, context: SlopeContext) -> Tensor:
        if self.gate == "forward":
            return y * self.slope_in(context)
        return self.function(y) if self.gate == "feedback" else y

    def slope_in(self, context: SlopeContext | None) -> Tensor:
        """The slope that a clean pass has kept; UserError where it has kept none."""
        if context is None:
            raise UserError(
                f"Expected the slope of {self.function.function} in the context of its layer, found none; where a rule "
                "has a kept of its own, have it return what super().kept(n) returns as well."
            )
        return context.slope

    def extra_repr(self) -> str:
        return f"gate={self.gate!r}"


class LinearFeedback(LinearMap):
    """Feedback of a linear map (B, i) -> (B, o): (B, o) -> (B, i)."""

    def __init__(self, forward_operation: nn.Linear, bias: bool):
        super().__init__()
        self.linear = nn.Linear(
            forward_operation.out_features,
            forward_operation.in_features,
            bias=bias,
            dtype=forward_operation.weight.dtype,
        )

    def forward(self, y: Tensor, context: Any = None) -> Tensor:
        return self.linear(y)

    @property
    def weight(self) -> Tensor:
        return self.linear.weight

    def apply_weight(self, y: Tensor, weight: Tensor) -> Tensor:
        return F.linear(y, weight)

    def weight_gradient(self, y: Tensor, error: Tensor) -> Tensor:
        return error.flatten(0, -2).t() @ y.flatten(0, -2)

    def weight_gradients(self, y: Tensor, error: Tensor) -> Tensor:
        return error.flatten(1, -2).transpose(1, 2) @ y.flatten(1, -2)

    def transpose_of(self, forward_operation: nn.Linear) -> Tensor:
        return forward_operation.weight.t()

    def squares_reaching(self, weight: Tensor) -> Tensor:
        return weight.square().sum(0)

    def over_positions(self, values: Tensor) -> Tensor:
        return values.reshape(-1, values.shape[-1]).sum(0)


class ConvFeedback(LinearMap):
    """Feedback of a convolution over one or two dimensions: the transposed one of its geometry, with own weights.

    ``output_padding`` restores the input size that the stride rounded away: (in + 2 pad - dilation (k - 1) - 1) mod
    stride in each dimension.
    """

    def __init__(self, forward_operation: nn.Conv1d | nn.Conv2d, in_shape: Size, bias: bool):
        super().__init__()
        conv = forward_operation
        if conv.padding_mode != "zeros":
            raise UserError(
                f"A {type(conv).__name__} with padding_mode={conv.padding_mode!r} has no feedback layer; use "
                "padding_mode='zeros'."
            )
        padding, dimensions = _symmetric_padding(conv), len(conv.kernel_size)
        # Of r, and what zeros a subclass lays around it: before and after, in each dimension.
        self.in_size, self.padded = tuple(in_shape[-dimensions:]), ((0, 0),) * dimensions
        output_padding = tuple(
            (size + 2 * pad - dilation * (kernel - 1) - 1) % stride
            for size, pad, dilation, kernel, stride in zip(
                self.in_size, padding, conv.dilation, conv.kernel_size, conv.stride, strict=True
            )
        )
        # Which of the two takes tuples of this length is not for a type to say.
        make: Any = (nn.ConvTranspose1d, nn.ConvTranspose2d)[dimensions - 1]
        self.transposed: nn.ConvTranspose1d | nn.ConvTranspose2d = make(
            conv.out_channels,
            conv.in_channels,
            conv.kernel_size,
            stride=conv.stride,
            padding=padding,
            output_padding=output_padding,
            groups=conv.groups,
            bias=bias,
            dilation=conv.dilation,
            dtype=conv.weight.dtype,
        )

    def forward(self, y: Tensor, context: Any = None) -> Tensor:
        return self.transposed(y)

    @property
    def weight(self) -> Tensor:
        return self.transposed.weight

    def apply_weight(self, y: Tensor, weight: Tensor) -> Tensor:
        t = self.transposed
        transposed: Any = (F.conv_transpose1d, F.conv_transpose2d)[len(t.kernel_size) - 1]
        return transposed(y, weight, None, t.stride, t.padding, t.output_padding, t.groups, t.dilation)

    def weight_gradient(self, y: Tensor, error: Tensor) -> Tensor:
        # <error, A_V(y)> = <conv_V(error), y>: the weight gradient of the convolution that this one transposes.
        t = self.transposed
        return torch.ops.aten.convolution_backward(
            y,
            error,
            t.weight,
            None,
            t.stride,
            t.padding,
            t.dilation,
            False,
            (0,) * len(t.kernel_size),
            t.groups,
            (False, True, False),
        )[1]

    def squares_reaching(self, weight: Tensor) -> Tensor:
        *rows, columns = self._taps_inside(weight)
        squares = weight.square().sum(1)
        return (rows[0] @ squares if rows else squares) @ columns.t()

    def over_positions(self, values: Tensor) -> Tensor:
        *rows, columns = self._taps_inside(values)
        return ((rows[0].t() @ values if rows else values) @ columns)[:, None]

    def _taps_inside(self, like: Tensor) -> list[Tensor]:
        """(H', k) and (W', k), or the last alone: 1 where a tap of the kernel lies within the rows or columns of r."""
        t, padded = self.transposed, self.padded
        geometry = zip(self.in_size, padded, t.kernel_size, t.stride, t.padding, t.dilation, strict=True)
        return [_inside(*numbers, like.dtype, like.device) for numbers in geometry]


@lru_cache(maxsize=256)
def _inside(
    size: int,
    zeros: tuple[int, int],
    kernel: int,
    stride: int,
    pad: int,
    dilation: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """(positions, kernel): 1 where a tap lies on one of ``size`` values between two rims of zeros, else 0."""
    before, after = zeros
    positions = (size + before + after + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
    at = torch.arange(positions)[:, None] * stride - pad - before + torch.arange(kernel) * dilation
    return ((at >= 0) & (at < size)).to(device, dtype)


def slope_of(function: nn.Module, a: Tensor) -> Tensor:
    """f'(a) of an elementwise function, in full precision, without gradients and in any gradient mode."""
    a = full_precision(a.detach())
    # In inference mode torch 2.8 gives zeros. A copy, for a nonlinearity in place would overwrite a.
    with torch.inference_mode(False):
        pull = torch.func.vjp(lambda a: function(a.clone()), a)[1]
        return pull(torch.ones_like(a))[0].detach()


def _symmetric_padding(conv: nn.Conv1d | nn.Conv2d) -> tuple[int, ...]:
    if conv.padding == "valid":
        return (0,) * len(conv.kernel_size)
    if conv.padding == "same":
        total = [dilation * (kernel - 1) for dilation, kernel in zip(conv.dilation, conv.kernel_size, strict=True)]
        if any(pad % 2 for pad in total):
            raise UserError(
                f"A {type(conv).__name__} with kernel {conv.kernel_size} and padding='same' pads unevenly and has no "
                "feedback layer; use odd kernels or padding given as numbers."
            )
        return tuple(pad // 2 for pad in total)
    assert not isinstance(conv.padding, str)
    return conv.padding


class MaxUnpool(FeedbackOperation):
    """Put each pooled value back at its switch: (B, C, *pooled) -> (B, C, *unpooled), zero elsewhere.

    Args:
        mode: what becomes of several values at one position: their sum (``"add"``), or the last of them (``"write"``).
        overlapping: whether there can be several.
    """

    kind = "spatial"

    def __init__(self, mode: Literal["add", "write"], overlapping: bool = True):
        super().__init__()
        self.mode, self.overlapping = mode, overlapping

    def forward(self, y: Tensor, context: SwitchesContext) -> Tensor:
        if channels_last(y):
            # In the order of the memory, (B, positions, C): no copy, and the result keeps the layout.
            flat, indices = _positions_first(y), _positions_first(context.indices)
            return self._put(1, indices, flat, context).transpose(1, 2).unflatten(2, context.shape[1:])
        return self._put(2, context.indices.flatten(2), y.flatten(2), context).unflatten(2, context.shape[1:])

    def _put(self, dim: int, indices: Tensor, values: Tensor, context: SwitchesContext) -> Tensor:
        shape = list(values.shape)
        shape[dim] = context.shape[1:].numel()
        unpooled = values.new_zeros(shape)
        if self.mode == "add":
            return unpooled.scatter_add_(dim, indices, values)
        if self.overlapping and values.device.type != "cpu":
            # A CPU writes in order. On a GPU whichever thread is last wins, so all of one position must agree.
            values = last_at_each(dim, indices, values, shape[dim])
        return unpooled.scatter_(dim, indices, values)

    def summed(self, y: Tensor, context: SwitchesContext) -> Tensor:
        """The sum over the images of what :meth:`forward` gives, (C, *unpooled)."""
        if y.device.type != "cpu" or (self.mode == "write" and self.overlapping):
            return sum_over_images(self(y, context))
        # Straight into the sum, each channel in a fixed order; most of what all images would have is zeros.
        shape = context.shape[1:]
        if channels_last(y):
            values, indices = (_positions_first(t).flatten(0, 1) for t in (y, context.indices))
            return y.new_zeros(shape.numel(), y.shape[1]).scatter_add_(0, indices, values).t().unflatten(1, shape)
        values, indices = (t.transpose(0, 1).flatten(1) for t in (y, context.indices))
        return y.new_zeros(y.shape[1], shape.numel()).scatter_add_(1, indices, values).unflatten(1, shape)

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}"


def last_at_each(dim: int, indices: Tensor, values: Tensor, positions: int) -> Tensor:
    """``values``, each replaced by the last along ``dim`` that goes to the same of ``positions`` by its index.

    Writing them in any order then gives what writing ``values`` in order gives. Derivatives are those of ``values``, as
    of a plain write. Nothing waits for the device.
    """
    with torch.no_grad():
        order = torch.arange(indices.shape[dim], device=indices.device, dtype=torch.int32)
        order = order.view([-1 if d == dim else 1 for d in range(indices.dim())]).expand(indices.shape)
        shape = list(indices.shape)
        shape[dim] = positions
        last = order.new_zeros(shape).scatter_reduce_(dim, indices, order, "amax")
        winners = last.gather(dim, indices).long()
    known = values.detach()
    # Zero is what is added, to the winner's own digits.
    return known.gather(dim, winners) + (values - known)


MaxPool = nn.MaxPool1d | nn.MaxPool2d | nn.AdaptiveMaxPool1d | nn.AdaptiveMaxPool2d


def windows_overlap(pool: MaxPool) -> bool:
    """Whether two windows of a pooling can share a position."""
    if isinstance(pool, nn.AdaptiveMaxPool1d | nn.AdaptiveMaxPool2d):
        # They do where the sizes do not divide.
        return True
    dimensions = 1 if isinstance(pool, nn.MaxPool1d) else 2
    kernel, stride = ((n,) * dimensions if isinstance(n, int) else n for n in (pool.kernel_size, pool.stride))
    return any(k > s for k, s in zip(kernel, stride, strict=True)) or pool.dilation not in (1, (1,), (1, 1))


class PoolingAdjoint(FeedbackOperation):
    """Exact adjoint of a linear, weight-free spatial map (of average pooling, say), by its vector-Jacobian product."""

    kind = "spatial"

    def __init__(self, function: nn.Module):
        super().__init__()
        self.function = function

    def forward(self, y: Tensor, context: ShapeContext) -> Tensor:
        zero = y.new_zeros(y.shape[0], *context.shape)
        return torch.func.vjp(self.function, zero)[1](y)[0]


class Unflatten(FeedbackOperation):
    """Back to the shape of the forward operation's input: (B, features) -> (B, *shape)."""

    kind = "reshape"

    def forward(self, y: Tensor, context: ShapeContext) -> Tensor:
        return y.reshape(y.shape[0], *context.shape)


class BatchNormAdjoint(FeedbackOperation):
    """Adjoint of a batch normalisation with its statistics frozen: multiply by gamma / sqrt(var + eps)."""

    kind = "reshape"

    def __init__(self, forward_operation: nn.modules.batchnorm._BatchNorm):
        super().__init__()
        # A reference in a tuple is not registered: gamma stays a parameter of the forward layer alone, and the
        # feedback reads its present value.
        self._forward_operation = (forward_operation,)

    def forward(self, y: Tensor, context: AffineContext) -> Tensor:
        scale = context.inverse_std
        gamma = self._forward_operation[0].weight
        if gamma is not None:
            scale = scale * gamma.detach()
        return y * per_channel(scale, y)


class SampleNormAdjoint(FeedbackOperation):
    """Adjoint of a layer or group normalisation with its statistics frozen: multiply by gamma / sqrt(var + eps)."""

    kind = "reshape"

    def __init__(self, forward_operation: nn.LayerNorm | nn.GroupNorm):
        super().__init__()
        # Not registered, as that of a batch normalisation.
        self._forward_operation = (forward_operation,)

    def forward(self, y: Tensor, context: SampleAffineContext) -> Tensor:
        norm = self._forward_operation[0]
        y = y * context.inverse_std
        return y if norm.weight is None else y * _of_values(norm, norm.weight.detach(), y)


class DropoutAdjoint(FeedbackOperation):
    """Multiply by the mask of the clean pass: what was dropped gets no target. Nothing where the pass had none."""

    kind = "reshape"

    def forward(self, y: Tensor, context: DrawnContext | None) -> Tensor:
        return y if context is None else y * context.numbers


class PassThrough(FeedbackOperation):
    """Feedback of an operation that changes nothing."""

    kind = "reshape"

    def forward(self, y: Tensor, context: Any = None) -> Tensor:
        return y


def _positions_first(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C)."""
    return x.flatten(2).transpose(1, 2) if x.is_contiguous() else x.permute(0, 2, 3, 1).flatten(1, 2)


def sum_over_images(x: Tensor) -> Tensor:
    """``x.sum(0)``, (B, ...) -> (...); of channels-last maps in the order of the memory, where torch's own is slow."""
    return _positions_first(x).sum(0).t().unflatten(1, x.shape[2:]) if channels_last(x) else x.sum(0)


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """``values`` (C,) in a shape that goes with images ``like`` (B, C, ...)."""
    return values.reshape(1, -1, *(1 for _ in like.shape[2:]))


def _of_values(norm: nn.LayerNorm | nn.GroupNorm, parameters: Tensor, like: Tensor) -> Tensor:
    """Weights or biases of a normalisation, broadcastable to its values."""
    return parameters if isinstance(norm, nn.LayerNorm) else per_channel(parameters, like)


# --- forward passes that return a context -----------------------------------------------------------------------------


def _plain_forward(module: nn.Module, x: Tensor, given: Any, routing: Routing) -> tuple[Tensor, Any]:
    return module(x), given


def shape_forward(module: nn.Module, x: Tensor, given: Any, routing: Routing) -> tuple[Tensor, ShapeContext]:
    """The forward pass of a module whose feedback needs no more than the shape of its input."""
    return module(x), ShapeContext(x.shape[1:])


def _max_pool_forward(
    module: MaxPool, x: Tensor, given: SwitchesContext | None, routing: Routing
) -> tuple[Tensor, SwitchesContext]:
    if given is not None and routing == "fixed":
        indices = given.indices
        # One map expanded over all images lies in memory like neither.
        if channels_last(x) or (channels_last(indices) and not x.is_contiguous()):
            gathered = _positions_first(x).gather(1, _positions_first(indices))
            return gathered.transpose(1, 2).unflatten(2, indices.shape[2:]), given
        return x.flatten(2).gather(2, indices.flatten(2)).view_as(indices), given
    one_dimension = isinstance(module, nn.MaxPool1d | nn.AdaptiveMaxPool1d)
    # Its sizes are those of its dimensions.
    pool: Any
    if isinstance(module, nn.AdaptiveMaxPool1d | nn.AdaptiveMaxPool2d):
        pool = F.adaptive_max_pool1d if one_dimension else F.adaptive_max_pool2d
        y, indices = pool(x, module.output_size, return_indices=True)
    else:
        pool = F.max_pool1d if one_dimension else F.max_pool2d
        y, indices = pool(
            x,
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
            ceil_mode=module.ceil_mode,
            return_indices=True,
        )
    if has_hooks(module):
        y = module(x)
    return y, SwitchesContext(indices, x.shape[1:])


def _batch_norm_forward(
    module: nn.modules.batchnorm._BatchNorm, x: Tensor, given: AffineContext | None, routing: Routing
) -> tuple[Tensor, AffineContext]:
    if given is not None:
        y = (x - per_channel(given.mean, x)) * per_channel(given.inverse_std, x)
        if module.weight is not None:
            y = y * per_channel(module.weight, x) + per_channel(module.bias, x)
        return y, given
    if module.training or module.running_mean is None or module.running_var is None:
        over = [0, *range(2, x.dim())]
        # The feedback phase is in full precision, and so must be the statistics that it is given.
        seen = full_precision(x.detach())
        mean, variance = seen.mean(over), seen.var(over, unbiased=False)
    else:
        # Copied: a context must not change when the module's buffers do.
        mean, variance = module.running_mean.clone(), module.running_var.clone()
    return module(x), AffineContext(mean, torch.rsqrt(variance + module.eps))


def _sample_norm_forward(
    module: nn.LayerNorm | nn.GroupNorm, x: Tensor, given: SampleAffineContext | None, routing: Routing
) -> tuple[Tensor, SampleAffineContext]:
    if given is not None:
        y = (x - given.mean) * given.inverse_std
        if module.weight is not None:
            y = y * _of_values(module, module.weight, x)
        if module.bias is not None:
            y = y + _of_values(module, module.bias, x)
        return y, given
    seen = full_precision(x.detach())
    if isinstance(module, nn.LayerNorm):
        over = [-i for i in range(1, len(module.normalized_shape) + 1)]
        mean, variance = seen.mean(over, keepdim=True), seen.var(over, unbiased=False, keepdim=True)
    else:
        groups = seen.reshape(len(x), module.num_groups, -1)
        each = module.num_channels // module.num_groups
        mean, variance = (
            statistic.repeat_interleave(each, 1).reshape(len(x), -1, *(1 for _ in x.shape[2:]))
            for statistic in (groups.mean(2), groups.var(2, unbiased=False))
        )
    return module(x), SampleAffineContext(mean, torch.rsqrt(variance + module.eps))


def _dropout_forward(
    module: nn.Module, x: Tensor, given: DrawnContext | None, routing: Routing
) -> tuple[Tensor, DrawnContext | None]:
    if given is None and not module.training:
        return module(x), None
    # As the module itself draws it; a pass that is compared with the clean one has its mask.
    context = DrawnContext(module(torch.ones_like(x))) if given is None else given
    return x * context.numbers, context


# --- the table --------------------------------------------------------------------------------------------------------

# The first argument is of the type that the entry is for.
Forward = Callable[[Any, Tensor, Any, Routing], tuple[Tensor, Any]]
MakeFeedback = Callable[[Any, Size, FeedbackSettings], FeedbackOperation]


@dataclass(frozen=True)
class _Operation:
    make_feedback: MakeFeedback
    forward: Forward

    @property
    def plain(self) -> bool:
        """Whether the forward pass is the module's own, without a context."""
        return self.forward is _plain_forward


_OPERATIONS: dict[type[nn.Module], _Operation] = {}


def register_feedback(
    operation_type: type[nn.Module], make_feedback: MakeFeedback, forward: Forward | None = None
) -> None:
    """Register the feedback of layers that contain ``operation_type``.

    Args:
        operation_type: class of the forward operation. Its subclasses are found too; but one with a ``forward`` of its
            own is not, where the feedback goes by more than what the forward pass puts out.
        make_feedback: ``(module, in_shape, settings) -> FeedbackOperation`` (or any module called as ``(y, context)``).
            ``in_shape`` is the shape of one input sample, without the batch dimension.
        forward: ``(module, x, given, routing) -> (y, context)``; default: ``(module(x), None)``, for operations whose
            feedback needs no context.

    Example, a nonlinearity with f(0) = 0::

        register_feedback(nn.Tanhshrink, elementwise_feedback)
    """
    _OPERATIONS[operation_type] = _Operation(make_feedback, forward or _plain_forward)


def operation_of(module: nn.Module) -> _Operation:
    """The entry for a forward operation's type or nearest registered base class.

    Raises:
        UserError: the type is not registered.
    """
    found = _found(module)
    if found is not None:
        return found
    known = ", ".join(sorted(cls.__name__ for cls in _OPERATIONS))
    raise UserError(
        f"No feedback is known for the layer type {type(module).__name__}; known are {known}. "
        "Register it with dtp.feedback.register_feedback(type, make_feedback)."
    )


def is_registered(module: nn.Module) -> bool:
    """Whether the type of a forward operation, or a base class that it computes the same as, is registered."""
    return _found(module) is not None


def _found(module: nn.Module) -> _Operation | None:
    cls = next((cls for cls in type(module).__mro__ if cls in _OPERATIONS), None)
    if cls is None:
        return None
    # What is evaluated here in the module's place, or undone by a formula, is not what a subclass makes of it.
    own = cls is nn.Identity or not _OPERATIONS[cls].plain
    return _OPERATIONS[cls] if not own or keeps_forward(module, cls) else None


def keeps_forward(module: nn.Module, cls: type[nn.Module]) -> bool:
    """Whether the forward pass of a module is that of a base class."""
    return type(module).forward is cls.forward and "forward" not in vars(module)


def _refuse_indices(module: nn.Module, in_shape: Size, settings: FeedbackSettings) -> FeedbackOperation:
    raise UserError(
        f"{type(module).__name__} takes whole numbers, to which nothing can be fed back; put it into the first layer."
    )


def elementwise_feedback(module: nn.Module, in_shape: Size, settings: FeedbackSettings) -> FeedbackOperation:
    """What undoes an elementwise nonlinearity, of its slope in the clean pass where the rule asks for that.

    For :func:`register_feedback`, as of a function of your own.
    """
    return Gate(module, "forward") if settings.slope == "clean" else Elementwise(module)


def is_elementwise(module: nn.Module) -> bool:
    """Whether a module is known as an elementwise nonlinearity."""
    # A sum is not asked for feedback of a single value, which its branches may not take.
    if isinstance(module, Residual) or any(p.dim() > 1 for p in module.parameters()):
        return False
    try:
        return isinstance(operation_of(module).make_feedback(module, Size([1]), FeedbackSettings()), Elementwise)
    except UserError:
        return False


for _type in ELEMENTWISE:
    register_feedback(_type, elementwise_feedback)
register_feedback(nn.Linear, lambda module, in_shape, settings: LinearFeedback(module, settings.bias))
for _type in (nn.Conv1d, nn.Conv2d):
    register_feedback(_type, lambda module, in_shape, settings: ConvFeedback(module, in_shape, settings.bias))
for _type in (nn.Embedding, nn.EmbeddingBag):
    register_feedback(_type, _refuse_indices)
for _type in (nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d):
    register_feedback(
        _type,
        lambda module, in_shape, settings: MaxUnpool(settings.unpool, windows_overlap(module)),
        _max_pool_forward,
    )
for _type in (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d):
    register_feedback(_type, lambda module, in_shape, settings: PoolingAdjoint(module), shape_forward)
register_feedback(nn.Flatten, lambda module, in_shape, settings: Unflatten(), shape_forward)
for _type in (nn.BatchNorm1d, nn.BatchNorm2d):
    register_feedback(_type, lambda module, in_shape, settings: BatchNormAdjoint(module), _batch_norm_forward)
for _type in (nn.LayerNorm, nn.GroupNorm):
    register_feedback(_type, lambda module, in_shape, settings: SampleNormAdjoint(module), _sample_norm_forward)
for _type in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d):
    register_feedback(_type, lambda module, in_shape, settings: DropoutAdjoint(), _dropout_forward)
register_feedback(nn.Identity, lambda module, in_shape, settings: PassThrough())
