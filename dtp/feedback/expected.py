"""L-DRL in expectation: the mean over infinitely many noise probes.

The loss is quadratic in the feedback weights V and the noise is white, so its mean over the noise is known and needs no
convolution. Write the forward layer F(s) = rho(a), a = W s + b, and h(a) = phi(rho(a)), phi being what the feedback
does before its affine map, all with the switches, slopes and statistics of the clean pass. Where h acts on each value
by itself, the probes move a_i by xi_i of variance sigma^2 |w_i|^2 (w_i the weights that reach i), and::

    E[p_i eps_j] = sigma^2 d_i W_ij,    d_i = E[h_i'(a_i + xi_i)] = E[h_i(a_i + xi_i) xi_i] / Var xi_i

by Stein's identity, whatever sigma; q_i has the variance sigma^2 v_i and is independent of the others. So::

    E[dL/dV] = 2 f sigma^2 (N * V - D * W)

elementwise, f being the loss's own scale: D sums d, and N sums v, over the positions that a weight reaches, means over
the batch. V goes towards (D / N) * W, each channel and tap at a rate of its own. Means of one Gaussian variable are
taken by Gauss-Hermite quadrature.

Left out is what the mean of q adds, WG(mu, A_V mu): mu is of the order of sigma^2 and 0 where the feedback has no
nonlinearity (algorithms specification, section 12).

Where h does not act so (``noisy`` routing), the first term can be drawn with some noise samples, once per batch, while
the second stays in expectation.

All this looks at W, where a rule that draws its probes sees only what W makes of them: it is a simulation of that rule
in the limit of many probes, not a claim about what a neuron could compute.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtp.feedback.adjoints import LocallyConnectedFeedback, SameConvFeedback, StandardiseAdjoint
from dtp.feedback.context import Context
from dtp.feedback.layers import NotReducible, layer_operations
from dtp.feedback.operations import (
    BatchNormAdjoint,
    ConvFeedback,
    DropoutAdjoint,
    Elementwise,
    FeedbackOperation,
    Gate,
    LinearFeedback,
    MaxUnpool,
    PassThrough,
    Routing,
    SampleNormAdjoint,
    Unflatten,
    operation_of,
    sum_over_images,
    windows_overlap,
)
from dtp.feedback.reduced import ReducedLDRL
from dtp.models.modules import LocallyConnected2d, SameConv2d
from dtp.models.precision import full_precision
from dtp.models.shapes import has_hooks


class NotExpected(NotReducible):
    """A layer's mean over the noise is not known; the text is the reason."""


# Operations of a feedback layer that act on each value by itself, and those of them that are linear. A flatten moves no
# value past another.
_LINEAR = (BatchNormAdjoint, DropoutAdjoint, Gate, PassThrough, SampleNormAdjoint, StandardiseAdjoint, Unflatten)
_BY_VALUE = (Elementwise, *_LINEAR)
# Affine maps of which it is known which weights reach where, each with what it undoes.
_MAPS = {
    LinearFeedback: (nn.Linear,),
    ConvFeedback: (nn.Conv1d, nn.Conv2d),
    SameConvFeedback: (SameConv2d,),
    LocallyConnectedFeedback: (LocallyConnected2d,),
}


@dataclass(frozen=True)
class Moments:
    """What the noise comes to in a batch, means over its images.

    Attributes:
        first: D, broadcastable to V; or, where ``drawn``, the constant part of the gradient itself, (*V).
        second: N, broadcastable to V.
        drawn: whether ``first`` is of noise samples instead of an expectation.
    """

    first: Tensor
    second: Tensor
    drawn: bool


@dataclass(frozen=True)
class Quadratic:
    """A loss whose gradient is h * V + g, elementwise.

    Attributes:
        weight: V, the weights themselves.
        curvature: h, broadcastable to V, at least 0.
        at_zero: g, the gradient at V = 0, (*V).
    """

    weight: Tensor
    curvature: Tensor
    at_zero: Tensor

    def gradient(self) -> Tensor:
        """At the present V, (*V)."""
        return torch.addcmul(self.at_zero, self.curvature, self.weight)

    def loss(self) -> Tensor:
        """At the present V, a scalar; 0 at V = 0."""
        return torch.addcmul(self.at_zero, self.curvature, self.weight, value=0.5).mul_(self.weight).sum()

    def minimiser(self) -> Tensor:
        """V of the least loss, (*V), and the present V where the loss does not depend on it."""
        return torch.where(self.curvature > 0, -self.at_zero / self.curvature, self.weight)

    def decaying(self, decay: float) -> Quadratic:
        """This and a penalty ``decay`` / 2 |V|^2."""
        return Quadratic(self.weight, self.curvature + decay, self.at_zero) if decay else self


class ExpectedLDRL:
    """The mean of L-DRL over its noise for one feedback layer.

    Args:
        layer: forward layer F_n.
        feedback: feedback layer G_n.
        sigma: standard deviation of the noise.
        routing, noise_samples, paper_scale: as for :func:`~dtp.feedback.ldrl_loss`; ``noise_samples`` for a first term
            that must be drawn.
        nodes: of the quadrature for variances, of which means of slopes take half; 1 is the limit of small noise.

    Attributes:
        drawn: why the first term is drawn; empty where its mean is known.

    Raises:
        NotExpected: not even the second term's mean is known.
    """

    def __init__(
        self,
        layer: nn.Module,
        feedback: nn.Module,
        sigma: float,
        *,
        routing: Routing = "fixed",
        noise_samples: int = 1,
        paper_scale: float | None = None,
        nodes: int = 5,
    ):
        try:
            self.reduced = ReducedLDRL(
                layer, feedback, routing=routing, noise_samples=noise_samples, paper_scale=paper_scale
            )
        except NotReducible as error:
            raise NotExpected(str(error)) from error
        feedback = self.reduced.feedback
        self.layer, self.feedback, self.sigma, self.nodes = layer, feedback, sigma, nodes
        self.factor, self.map, self.modules = self.reduced.factor, self.reduced.map, layer_operations(layer)
        # Operations of the feedback before its affine map, each with its place in the forward layer; all that are
        # looked up there have one.
        place = self.reduced.place
        self.before: list[tuple[FeedbackOperation, Any]] = list(
            zip(feedback.operations[:place], feedback.positions[:place], strict=True)
        )
        position = feedback.positions[place]
        assert position is not None
        self.place = position
        # What undoes the pooling, and the place of that in the forward layer; None where nothing is pooled.
        self._unpooling = next(((operation, n) for operation, n in self.before if type(operation) is MaxUnpool), None)
        self._require_separate_values()
        self.drawn = self._why_drawn(routing)

    def _require_separate_values(self) -> None:
        """Whether noise on the layer's output reaches each input of the affine map by itself."""
        unpooled = False
        for operation, position in self.before:
            kind = type(operation)
            if kind is MaxUnpool and not unpooled:
                unpooled = True
                pool = self.modules[position]
                overlapping = operation.mode == "add" and windows_overlap(pool)
            elif kind is Elementwise and unpooled and overlapping:
                raise NotExpected("a nonlinearity follows the unpooling of windows that overlap")
            elif kind is Unflatten and unpooled:
                raise NotExpected("a flatten stands before its pooling")
            elif kind is SampleNormAdjoint and unpooled and isinstance(self.modules[position], nn.LayerNorm):
                raise NotExpected("a LayerNorm, whose values differ by position, stands before its pooling")
            elif kind not in _BY_VALUE or (kind is Gate and operation.gate != "forward"):
                raise NotExpected(f"its feedback has {kind.__name__}, which does not act on each value by itself")
            if has_hooks(operation):
                raise NotExpected("its feedback has hooks")
        kind = type(self.map)
        if kind not in _MAPS and "over_positions" not in vars(kind):
            raise NotExpected(f"{kind.__name__} does not say which weights reach where")

    def _why_drawn(self, routing: Routing) -> str:
        """Why the mean of the first term is not known; empty where it is."""
        forward = self.modules[self.place]
        known = type(forward) in _MAPS.get(type(self.map), ()) and operation_of(forward).plain
        if not known or any(has_hooks(module) for module in self.modules):
            return "its affine map is not one of the known ones, or has hooks"
        if any(type(module) not in (nn.Flatten, nn.Identity) for module in self.modules[: self.place]):
            return "its affine map does not come first"
        undone = {position: operation for operation, position in self.before}
        for position, module in enumerate(self.modules[self.place + 1 :], self.place + 1):
            if type(undone.get(position)) is MaxUnpool:
                if routing == "noisy":
                    return "the maxima move with the noise (--routing noisy)"
            elif type(undone.get(position)) not in _BY_VALUE or any(
                type(undone[position]) is operation and type(module) is not of
                for operation, of in ((PassThrough, nn.Identity), (Unflatten, nn.Flatten))
            ):
                return f"{type(module).__name__} does not act on each value by itself"
        return ""

    @property
    def weight(self) -> Tensor:
        """V."""
        return self.map.weight

    @property
    def transpose(self) -> Tensor:
        """W, the forward weights in the shape of V, a view."""
        return self.map.transpose_of(self.modules[self.place])

    @torch.no_grad()
    def moments(self, clean: tuple[Tensor, Tensor, Context], noise: Sequence[Tensor] = ()) -> Moments:
        """D and N of a batch.

        Args:
            clean: (s_in, s_out, context) of the clean pass; where the context does not hold the value of the affine
                map, that is computed again.
            noise: (eps, eta) of one iteration, for a first term that is drawn.
        """
        s_in, s_out, context = clean
        second = self._second(s_out, context)
        if self.drawn:
            first = self.reduced.first_term(self.reduced.clean_pass(s_in, s_out, context), noise[0])
            return Moments(first, second, True)
        a = context.affine
        if a is None:
            # Nobody asked the clean pass to keep it.
            a = s_in
            for module in self.modules[: self.place + 1]:
                a = module(a)
        return Moments(self._first(full_precision(a), context), second, False)

    @torch.no_grad()
    def quadratic(self, moments: Moments) -> Quadratic:
        """The mean loss as a function of V."""
        scale = 2 * self.factor * self.sigma**2
        if moments.drawn:
            at_zero = moments.first
        else:
            # Laid out as V, not as W: what lies across V costs a CPU several times as much in all that follows.
            at_zero = torch.empty_like(self.weight).copy_(self.transpose)
            at_zero.mul_((-scale * moments.first).to(at_zero.dtype))
        return Quadratic(self.weight, scale * moments.second, at_zero)

    def _first(self, a: Tensor, context: Context) -> Tensor:
        """D: means of h' around ``a``, the value of the affine map."""
        if len(self.modules) == self.place + 1 and not self.before:
            return self.map.over_positions(torch.ones_like(a[0]))
        pool = self._pool(context)
        cells = a if pool is None else pool(a)
        slopes = self._clean_slopes(context)

        def h(x: Tensor) -> Tensor:
            return self._after_affine(x, context, slopes)

        if self.nodes == 1:
            d = _slope(h, cells)
        else:
            std = self.map.squares_reaching(self.transpose).sqrt_().mul_(self.sigma)
            # Where no weight reaches, any slope will do: it is multiplied by none.
            std = std.clamp_(min=math.sqrt(torch.finfo(std.dtype).eps))
            std = std if pool is None else pool(std[None].expand(a.shape))
            d = torch.zeros_like(cells)
            # About half the nodes: as exact for polynomials as the variance with all of them, of which q is squared.
            for z, weight in _nodes(self.nodes // 2 + 1):
                d.add_(h(torch.add(cells, std, alpha=z)), alpha=weight * z)
            d.div_(std)
        return self._summed(d, context)

    def _second(self, s_out: Tensor, context: Context) -> Tensor:
        """N: variances of q over sigma^2."""
        if not self.before:
            return self.map.over_positions(torch.ones_like(s_out[0]))
        slopes = self._clean_slopes(context)

        def phi(y: Tensor) -> Tensor:
            return self._before_map(y, context, slopes)

        if all(isinstance(operation, _LINEAR + (MaxUnpool,)) for operation, _ in self.before):
            v = phi(torch.ones_like(s_out)).square()
        elif self.nodes == 1:
            v = _slope(phi, s_out).square()
        else:
            clean = phi(s_out)
            mean, v = torch.zeros_like(clean), torch.zeros_like(clean)
            for z, weight in _nodes(self.nodes):
                q = phi(s_out + self.sigma * z).sub_(clean)
                mean.add_(q, alpha=weight)
                v.addcmul_(q, q, value=weight)
            v.addcmul_(mean, mean, value=-1).div_(self.sigma**2)
        return self._summed(v, context)

    def _summed(self, cells: Tensor, context: Context) -> Tensor:
        """Values of the cells, at the positions that they came from, summed over those and averaged over images."""
        unpooling = self._unpooling
        if unpooling is None:
            summed = sum_over_images(cells)
        else:
            summed = unpooling[0].summed(cells, context[unpooling[1]])
        return self.map.over_positions(summed.div_(len(cells)))

    def _pool(self, context: Context):
        """What takes the values at the switches of the clean pass; None where nothing is pooled."""
        if self._unpooling is None:
            return None
        _, position = self._unpooling
        module, known = self.modules[position], context[position]
        return lambda x: operation_of(module).forward(module, x, known, "fixed")[0]

    def _clean_slopes(self, context: Context) -> dict[int, Tensor]:
        """Slopes of the clean pass, and masks of its dropouts, by place, at the cells."""
        pool, pooled_at = self._pool(context), -1 if self._unpooling is None else self._unpooling[1]
        gates = [(operation, position) for operation, position in self.before if type(operation) is Gate]
        slopes = {position: gate.slope_in(context[position]) for gate, position in gates}
        dropped = [position for operation, position in self.before if type(operation) is DropoutAdjoint]
        slopes |= {n: context[n].numbers for n in dropped if context[n] is not None}
        return {n: pool(slope) if pool is not None and n < pooled_at else slope for n, slope in slopes.items()}

    def _after_affine(self, x: Tensor, context: Context, slopes: dict[int, Tensor]) -> Tensor:
        """h of the cells, (B, *cells), what pools and unpools left out."""
        undone = {position: operation for operation, position in self.before}
        # Nonlinearities that x has still to go through.
        elus = 0
        for position in range(self.place + 1, len(self.modules)):
            module = self.modules[position]
            if _is_elu(module):
                elus += 1
            elif type(undone[position]) is DropoutAdjoint and position in slopes:
                x, elus = _elu(x, elus) * slopes[position], 0
            elif type(undone[position]) is not MaxUnpool:
                x, _ = operation_of(module).forward(module, _elu(x, elus), context[position], "fixed")
                elus = 0
        return self._before_map(x, context, slopes, elus)

    def _before_map(self, y: Tensor, context: Context, slopes: dict[int, Tensor], elus: int = 0) -> Tensor:
        """phi of the cells after so many ELUs, the unpooling left out."""
        for operation, position in self.before:
            if position in slopes:
                y, elus = _elu(y, elus) * slopes[position], 0
            elif type(operation) is Elementwise and _is_elu(operation.function):
                elus += 1
            elif type(operation) is not MaxUnpool:
                y = operation(_elu(y, elus), None if position is None else context[position])
                elus = 0
        return _elu(y, elus)


def _is_elu(module: nn.Module) -> bool:
    return type(module) is nn.ELU and module.alpha == 1 and not has_hooks(module)


def _elu(x: Tensor, times: int) -> Tensor:
    """ELU applied ``times`` times, on a CPU quicker than one by one.

    expm1 is slow there; what exp less 1 loses is lost in differences anyway. Below 0 values stay there.
    """
    if times == 0:
        return x
    if x.device.type != "cpu" or x.requires_grad:
        for _ in range(times):
            x = F.elu(x)
        return x
    below = torch.clamp_max(x, 0)
    for _ in range(times):
        below = below.exp_().sub_(1)
    # e^x - 1 is nowhere less than x.
    return torch.maximum(x, below, out=below)


def _slope(function: Any, x: Tensor) -> Tensor:
    """Derivative of a function of each value by itself, in the shape that it gives them."""
    y, pull = torch.func.vjp(lambda x: function(x.clone()), x)[:2]
    return pull(torch.ones_like(y))[0].reshape(y.shape)


@lru_cache(maxsize=32)
def _nodes(count: int) -> list[tuple[float, float]]:
    """Nodes and weights of the mean over a standard normal variable; a node at 0 is left out, where changes are 0."""
    z, weights = np.polynomial.hermite_e.hermegauss(count)
    kept = np.abs(z) > 1e-12
    weights = weights / weights.sum()
    return list(zip(z[kept].tolist(), weights[kept].tolist(), strict=True))
