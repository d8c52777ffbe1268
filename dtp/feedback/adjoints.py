"""Feedback of the project's own modules: locally connected layers, residual units, selection, signs, samples ..."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn

from dtp.errors import UserError
from dtp.feedback.context import (
    AffineContext,
    BranchesContext,
    DrawnContext,
    RedrawnContext,
    ShapeContext,
    SlopeContext,
)
from dtp.feedback.layers import feedback_of_operations, forward_with_context
from dtp.feedback.operations import (
    ConvFeedback,
    Elementwise,
    FeedbackOperation,
    FeedbackSettings,
    Gate,
    LinearMap,
    PassThrough,
    PoolingAdjoint,
    Routing,
    elementwise_feedback,
    per_channel,
    register_feedback,
    shape_forward,
    slope_of,
)
from dtp.models.modules import (
    FirstUnits,
    InnerFunction,
    LocallyConnected2d,
    PaddedShortcut,
    Probability,
    RandomOperation,
    Residual,
    SameConv2d,
    Sign,
    SLReLU,
    Standardise,
    Uncut,
    standardised,
)
from dtp.models.shapes import output_shape


class LocallyConnectedFeedback(LinearMap):
    """Feedback of a locally connected layer: its adjoint, with independent weights V of the same shape."""

    def __init__(self, forward_operation: LocallyConnected2d, bias: bool):
        super().__init__()
        f = forward_operation
        # Glorot's distribution is the same in both directions.
        self.layer = LocallyConnected2d(
            f.in_channels,
            f.out_channels,
            f.in_size,
            f.kernel_size,
            f.stride,
            f.padding,
            bias=False,
            dtype=f.weight.dtype,
        )
        # In the shape of the input, as every position of r has a unit of its own.
        self.bias = nn.Parameter(torch.zeros(f.in_channels, *f.in_size, dtype=f.weight.dtype)) if bias else None

    def forward(self, y: Tensor, context: Any = None) -> Tensor:
        r = self.apply_weight(y, self.weight)
        return r if self.bias is None else r + self.bias

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    def apply_weight(self, y: Tensor, weight: Tensor) -> Tensor:
        return self.layer.adjoint(y, weight)

    def weight_gradient(self, y: Tensor, error: Tensor) -> Tensor:
        return self.weight_gradients(y[None], error[None])[0]

    def weight_gradients(self, y: Tensor, error: Tensor) -> Tensor:
        # <error, A_V(y)> = <V columns(error), y>, position by position.
        seen = self.layer.columns(error.flatten(0, 1)).unflatten(2, error.shape[:2])
        return y.flatten(3).permute(0, 3, 2, 1) @ seen.permute(2, 0, 3, 1)

    def squares_reaching(self, weight: Tensor) -> Tensor:
        return (weight.square() @ self._taps_inside(weight)).squeeze(2).t().unflatten(1, self.layer.out_size)

    def over_positions(self, values: Tensor) -> Tensor:
        return values.flatten(1).t()[..., None] * self._taps_inside(values).transpose(1, 2)

    def _taps_inside(self, like: Tensor) -> Tensor:
        """(L, C_in k k, 1): 1 where the weights of a position see a value of r, 0 where they see zeros around it."""
        return self.layer.columns(like.new_ones(1, self.layer.in_channels, *self.layer.in_size))


class SameConvFeedback(ConvFeedback):
    """Feedback of a :class:`SameConv2d`: that of its convolution, without the values where the zeros were."""

    def __init__(self, forward_operation: SameConv2d, in_shape: Size, bias: bool):
        channels, *size = in_shape
        left, right, top, bottom = self.zeros = forward_operation.padding(size)
        padded = Size([channels, size[0] + top + bottom, size[1] + left + right])
        super().__init__(forward_operation.conv, padded, bias)
        self.in_size, self.padded = tuple(size), ((top, bottom), (left, right))

    def forward(self, y: Tensor, context: Any = None) -> Tensor:
        return self._inside(super().forward(y))

    def apply_weight(self, y: Tensor, weight: Tensor) -> Tensor:
        return self._inside(super().apply_weight(y, weight))

    def weight_gradient(self, y: Tensor, error: Tensor) -> Tensor:
        return super().weight_gradient(y, F.pad(error, self.zeros))

    def transpose_of(self, forward_operation: SameConv2d) -> Tensor:
        return super().transpose_of(forward_operation.conv)

    def _inside(self, padded: Tensor) -> Tensor:
        return F.pad(padded, [-zeros for zeros in self.zeros])


class ResidualFeedback(FeedbackOperation):
    """Feedback of y = C2 f(C1 x) + S x, with weights of its own: r = C1' gate(C2' v) + S' v, see :class:`Gate`.

    And of any two chains that are added.
    """

    kind = "affine"

    def __init__(self, unit: Residual, in_shape: Size, settings: FeedbackSettings):
        super().__init__()
        shapes = ["x".join(map(str, output_shape(chain, in_shape))) for chain in (unit.branch, unit.shortcut)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"A sum has feedback for branches of one shape, found {' and '.join(shapes)}, of which one is "
                "repeated; rules without feedback layers (fa, dfa, bp) take it."
            )
        self.branch = feedback_of_operations(unit.branch, in_shape, settings)
        self.shortcut = feedback_of_operations(unit.shortcut, in_shape, settings)

    def forward(self, v: Tensor, context: BranchesContext) -> Tensor:
        return self.branch(v, context.branch) + self.shortcut(v, context.shortcut)

    def copy_transpose(self, forward_operation: Residual) -> None:
        self.branch.copy_transpose(forward_operation.branch)
        self.shortcut.copy_transpose(forward_operation.shortcut)

    def weight_pairs(self, forward_operation: Residual) -> list[tuple[Tensor, Tensor]]:
        f = forward_operation
        return [*self.branch.weight_pairs(f.branch), *self.shortcut.weight_pairs(f.shortcut)]


class FirstUnitsFeedback(FeedbackOperation):
    """Zeros for the units that were not selected: (B, count) to (B, d)."""

    kind = "reshape"

    def forward(self, y: Tensor, context: ShapeContext) -> Tensor:
        return F.pad(y, (0, context.shape[0] - y.shape[1]))


class StandardiseAdjoint(FeedbackOperation):
    """Adjoint of a standardisation with its statistics frozen.

    Left out where the nonlinearity follows the affine map, as in ``fw-dtp``, whose feedback is standardised itself.
    """

    kind = "standardise"

    def of_feedback(self) -> FeedbackOperation:
        return StandardisedFeedback()

    def forward(self, y: Tensor, context: AffineContext) -> Tensor:
        return y * per_channel(context.inverse_std, y)


class StandardisedFeedback(FeedbackOperation):
    """Standardisation of what the feedback gives, by its own batch, as the activation that it stands for is."""

    kind = "standardise"

    def forward(self, y: Tensor, context: Any = None) -> Tensor:
        return standardised(y)


class Transmission(FeedbackOperation):
    """The signs that a layer hears, on the way back: what the weights of its feedback hear of a target.

    Both ways go through one narrow channel (Lee 2018, figure 3.3).
    """

    kind = "transmission"

    def __init__(self, function: Sign):
        super().__init__()
        self.function = Sign(function.gradient)

    def forward(self, y: Tensor, context: Any = None) -> Tensor:
        return self.function(y)


def _refuse_uncut(module: Uncut, in_shape: Size, settings: FeedbackSettings) -> FeedbackOperation:
    raise UserError(module.refusal)


def _uncut_forward(
    module: Uncut, x: Tensor, given: RedrawnContext | None, routing: Routing
) -> tuple[Tensor, RedrawnContext | None]:
    if given is None:
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            # Only what draws nothing is captured, and the generator cannot be asked then.
            return module(x), None
        before, y = _generator_of(x), module(x)
        drew = not torch.equal(before, _generator_of(x))
        return y, RedrawnContext(before, len(x), None) if drew else None
    # What it draws is seen by nobody: it draws the same again, for the samples of the clean pass.
    rows = torch.arange(given.samples, device=x.device) if given.rows is None else given.rows
    parts = []
    for part in x.split(len(rows)):
        whole = part if given.rows is None else part.new_zeros(given.samples, *part.shape[1:]).index_put((rows,), part)
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            (torch.cuda.set_rng_state if x.is_cuda else torch.set_rng_state)(given.generator)
            parts.append(module(whole) if given.rows is None else module(whole)[rows])
    return torch.cat(parts) if len(parts) > 1 else parts[0], given


def _generator_of(x: Tensor) -> Tensor:
    return torch.cuda.get_rng_state(x.device) if x.is_cuda else torch.get_rng_state()


def _inner_forward(
    module: InnerFunction, a: Tensor, given: SlopeContext | None, routing: Routing
) -> tuple[Tensor, SlopeContext]:
    # The slope of the clean pass, as its statistics: one that moves with the noise would add to every difference of two
    # passes a term of first order in the noise.
    context = SlopeContext(slope_of(module.function, a)) if given is None else given
    return module(a), context


def _residual_forward(
    unit: Residual, x: Tensor, given: BranchesContext | None, routing: Routing
) -> tuple[Tensor, BranchesContext]:
    known = (None, None) if given is None else (given.branch, given.shortcut)
    y, branch = forward_with_context(unit.branch, x, known[0], routing)
    z, shortcut = forward_with_context(unit.shortcut, x, known[1], routing)
    return y + z, BranchesContext(branch, shortcut)


def _standardise_forward(
    module: Standardise, x: Tensor, given: AffineContext | None, routing: Routing
) -> tuple[Tensor, AffineContext]:
    if given is not None:
        return (x - per_channel(given.mean, x)) * per_channel(given.inverse_std, x), given
    with torch.no_grad():
        mean, std = module.statistics(x)
    # Copied: a context must not change when the module's buffers do.
    return module(x), AffineContext(mean.clone(), 1 / (std + module.EPS))


def _drawn_forward(
    module: RandomOperation, x: Tensor, given: DrawnContext | None, routing: Routing
) -> tuple[Tensor, DrawnContext | None]:
    if not module.draws:
        return module(x), None
    # Those of the clean pass, whatever the routing: a pass with others would differ by more than was changed.
    context = DrawnContext(module.draw(x)) if given is None else given
    return module.with_numbers(x, context.numbers), context


register_feedback(
    LocallyConnected2d, lambda module, in_shape, settings: LocallyConnectedFeedback(module, settings.bias)
)
register_feedback(SameConv2d, lambda module, in_shape, settings: SameConvFeedback(module, in_shape, settings.bias))
register_feedback(
    InnerFunction, lambda module, in_shape, settings: Gate(module.function, settings.gate), _inner_forward
)
register_feedback(Residual, ResidualFeedback, _residual_forward)
# Without weights to learn, so exact: zeros where no pixel was taken, and nothing of the channels of zeros.
register_feedback(PaddedShortcut, lambda module, in_shape, settings: PoolingAdjoint(module), shape_forward)
register_feedback(Uncut, _refuse_uncut, _uncut_forward)
register_feedback(FirstUnits, lambda module, in_shape, settings: FirstUnitsFeedback(), shape_forward)
register_feedback(Standardise, lambda module, in_shape, settings: StandardiseAdjoint(), _standardise_forward)
for _type in (SLReLU, nn.Sigmoid):
    register_feedback(_type, elementwise_feedback)
# A probability comes back through tanh, whatever gave it (Lee 2018, 3.3.3); a sample, as the probability that it stood
# for.
register_feedback(Probability, lambda module, in_shape, settings: Elementwise(nn.Tanh()))
register_feedback(RandomOperation, lambda module, in_shape, settings: PassThrough(), _drawn_forward)
register_feedback(Sign, lambda module, in_shape, settings: Transmission(module))
