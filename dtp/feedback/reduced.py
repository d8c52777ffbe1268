"""L-DRL by exact algebra: the same gradient as the literal loss for half of its work or less.

A feedback layer G(y; c) = A_V(phi(y; c)) has all its weights V in one affine map that comes last, after a part phi
without weights. With the noise eps on the layer's input and eta on its output, write::

    p = phi(F(s + eps); c_eps) - phi(y; c)        q = phi(y + eta; c) - phi(y; c)

The bias cancels in every difference, and the gradient of the loss (its own scale f, m B samples) is::

    dL/dV = f * 2 / (m B) * sum [ WG(q, A_V(q)) - WG(p, eps) ]

WG(x, e) being the weight gradient of A_V for input x and output gradient e. Only A_V(q) and one weight gradient depend
on V. The rest, the constants of an iteration, is computed for many iterations as one batch, before the sequence of
steps. One feedback iteration costs 4 convolutions of the layer's size instead of 7 in :func:`~dtp.feedback.ldrl_loss`
(8 where F(s) is evaluated again, as in the published code).

For a linear A_V the recursion needs q only as the matrix sum q q^T; where that is cheaper it is what is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtp.feedback.context import Context, ShapeContext
from dtp.feedback.layers import FeedbackLayer, NotReducible, forward_with_context, layer_operations
from dtp.feedback.operations import (
    LinearFeedback,
    LinearMap,
    MaxUnpool,
    Routing,
    operation_of,
)
from dtp.models.shapes import has_hooks


@dataclass(frozen=True)
class CleanPass:
    """One layer's clean pass, and what of it all feedback iterations of the batch share.

    Attributes:
        s_out: (B, *out), y.
        context: c.
        affine: (B, ...), the value of the layer's own affine map; s_{n-1} where that is not evaluated apart.
        values: (B, ...), what the linear operations at the end of phi are given.
        phi: (B, ...), phi(y; c).
    """

    s_out: Tensor
    context: Context
    affine: Tensor
    values: Tensor
    phi: Tensor


@dataclass(frozen=True)
class Constants:
    """What k feedback iterations need that does not depend on the feedback weights.

    Attributes:
        gradient: (k, *V), the part of each gradient that is constant: -(2 f / m B) sum WG(p, eps).
        q: (k, m B, ...), or the sums of q q^T, (k, d, d).
        summed: whether ``q`` holds these sums.
        output_change: (k,), mean over samples of |F(s + eps) - y|^2; None where nobody asked for it.
    """

    gradient: Tensor
    q: Tensor
    summed: bool
    output_change: Tensor | None = None


class ReducedLDRL:
    """Gradient of L-DRL with respect to the feedback weights of one layer, in its reduced form.

    Args:
        layer: forward layer F_n.
        feedback: feedback layer G_n.
        routing, noise_samples, paper_scale: as for :func:`~dtp.feedback.ldrl_loss`.

    Raises:
        NotReducible: the layer has no such form.
    """

    def __init__(
        self,
        layer: nn.Module,
        feedback: nn.Module,
        *,
        routing: Routing = "noisy",
        noise_samples: int = 1,
        paper_scale: float | None = None,
    ):
        if not isinstance(feedback, FeedbackLayer):
            raise NotReducible(f"{type(feedback).__name__} is not made of known feedback operations")
        self.layer, self.feedback = layer, feedback
        self.routing: Routing = routing
        self.noise_samples = noise_samples
        self.factor = 1.0 if paper_scale is None else 1 / (2 * paper_scale**2)
        self.place = feedback.affine_place
        affine = feedback.operations[self.place]
        assert isinstance(affine, LinearMap)
        self.map = affine
        self.weight_free_part = self.place > 0
        # From here on phi is linear in what it is given, for one context: a difference is taken before, where an
        # unpooling has not yet made it larger.
        self.linear_from = feedback.linear_from(self.place)
        self.modules = layer_operations(layer)
        self.split = _affine_place(self.modules)
        self.rest = [] if self.split is None else range(self.split + 1, len(self.modules))

    @property
    def weight(self) -> Tensor:
        """V."""
        return self.map.weight

    @property
    def tells_distance(self) -> bool:
        """Whether :meth:`distance` is that of the Jacobians: maxima that move with the noise would be counted in it."""
        pooled = any(isinstance(operation, MaxUnpool) for operation in self.feedback.operations)
        return self.routing == "fixed" or not pooled

    def gram(self, batch: int) -> bool:
        """Whether sums of q q^T are cheaper than q itself for a batch of ``batch`` images."""
        if not isinstance(self.map, LinearFeedback):
            return False
        r, d = self.weight.shape
        samples = batch * self.noise_samples
        return d * (samples + r) < 2 * samples * r

    def bytes_per_iteration(self, clean: CleanPass, s_in: Tensor) -> int:
        """About how much memory the constants of one iteration take while they are computed."""
        samples = self.noise_samples * (2 * s_in.numel() + 4 * clean.affine.numel() + 4 * clean.phi.numel())
        return (samples + self.weight.numel()) * s_in.element_size()

    @torch.no_grad()
    def clean_pass(self, s_in: Tensor, s_out: Tensor, context: Context) -> CleanPass:
        """What the iterations of a batch share: s_in (B, *in), s_out (B, *out), context of the pass between them."""
        affine = s_in
        if self.split is not None and context.affine is not None and context.affine.dtype == s_in.dtype:
            affine = context.affine
        elif self.split is not None:
            for module in self.modules[: self.split + 1]:
                affine = module(affine)
        values = self.feedback.before_affine(s_out, context, self.linear_from)
        return CleanPass(s_out, context, affine, values, self._linear_end(values, context))

    @torch.no_grad()
    def constants(
        self,
        clean: CleanPass,
        noise: Sequence[tuple[Tensor, ...]],
        iterations: int | None = None,
        distance: bool = False,
    ) -> Constants:
        """Constants of k iterations.

        Args:
            clean: of this batch.
            noise: (eps, eta) of each iteration: (m B, *in) and (m B, *out), sample-major; or of all, joined.
            iterations: k; None for len(noise).
            distance: whether :meth:`distance` will be asked for.
        """
        k, batch = iterations or len(noise), len(clean.s_out)
        eps, eta = (_joined(parts) for parts in zip(*noise, strict=True))
        samples = k * self.noise_samples
        context = clean.context.repeat(samples)
        gradient, change = self._first_term(clean, eps, k, context, distance)
        q = eta
        if self.linear_from > 0:
            y_eta = _each(eta, samples).add(clean.s_out).flatten(0, 1)
            q = self._difference(self.feedback.before_affine(y_eta, context, self.linear_from), clean.values)
        q = self._linear_end(q, context)
        per_iteration = (k, self.noise_samples * batch)
        q, summed = q.unflatten(0, per_iteration), self.gram(batch)
        if summed:
            q = q.flatten(1, -2)
            q = q.transpose(1, 2) @ q
        if change is not None:
            change = change.reshape(k, -1).square().sum(1) / per_iteration[1]
        return Constants(gradient, q, summed, change)

    @torch.no_grad()
    def first_term(self, clean: CleanPass, eps: Tensor) -> Tensor:
        """Constant part of the gradient of one iteration, (*V); ``eps`` is (m B, *in), sample-major."""
        gradient, _ = self._first_term(clean, eps, 1, clean.context.repeat(self.noise_samples), False)
        return gradient[0]

    def _first_term(
        self, clean: CleanPass, eps: Tensor, iterations: int, context: Context, distance: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Constant parts of the gradients of k iterations, (k, *V), and F(s + eps) - y of them all for a distance."""
        batch, factor = len(clean.s_out), -self.scale(len(clean.s_out))
        change, p = self._noisy_pass(clean, eps, context, iterations * self.noise_samples, distance)
        error, per_iteration = self._as_output_of_map(eps, p), (iterations, self.noise_samples * batch)
        p, error = p.unflatten(0, per_iteration), error.unflatten(0, per_iteration)
        if type(self.map).weight_gradients is not LinearMap.weight_gradients:
            return self.map.weight_gradients(p, error).mul_(factor), change
        # One by one, each written where it belongs.
        first = self.map.weight_gradient(p[0], error[0])
        gradient = first.new_empty_strided((iterations, *first.shape), (first.numel(), *first.stride()))
        for i, to in enumerate(gradient):
            torch.mul(first if i == 0 else self.map.weight_gradient(p[i], error[i]), factor, out=to)
        return gradient, change

    def scale(self, batch: int) -> float:
        """2 f / (m B)."""
        return 2 * self.factor / (self.noise_samples * batch)

    def quadratic_gradient(self, constants: Constants, i: int) -> Tensor:
        """sum WG(q, A_V(q)) of iteration i at the present V, (*V). Call without gradients.

        The gradient of the loss is this times :meth:`scale`, plus the constant part. Nothing else is sequential.
        """
        q = constants.q[i]
        if constants.summed:
            return self.weight @ q
        return self.map.weight_gradient(q, self.map.apply_weight(q, self.weight))

    def loss(self, constant: Tensor, quadratic: Tensor, batch: int) -> Tensor:
        """Value of the loss at the present V, a scalar, from the two parts of its gradient."""
        return (self.weight * constant).sum() + 0.5 * self.scale(batch) * (self.weight * quadratic).sum()

    def distance(self, constants: Constants, i: int, quadratic: Tensor, batch: int) -> Tensor:
        """Relative distance |J_G - J_F^T| / |J_F| of the Jacobians, a scalar estimated from the noise of iteration i.

        For small noise <eps, A_V(p)> averages to sigma^2 tr(J_G J_F), |A_V(q)|^2 to sigma^2 |J_G|^2 and
        |F(s + eps) - y|^2 to sigma^2 |J_F|^2. An angle would not do in its place: a feedback layer may have the
        direction of the transpose long before it has its size.
        """
        product = -(self.weight * constants.gradient[i]).sum() / (2 * self.factor)
        square = (self.weight * quadratic).sum() / (self.noise_samples * batch)
        assert constants.output_change is not None
        change = constants.output_change[i]
        return ((square - 2 * product + change).clamp(min=0) / change).sqrt()

    def gradients(self, parameters: Sequence[Tensor], gradient: Tensor) -> tuple[Tensor, ...]:
        """Gradients of all ``parameters`` of the feedback layer: zero for the bias, which every difference cancels."""
        return tuple(gradient if p is self.weight else torch.zeros_like(p) for p in parameters)

    def _noisy_pass(
        self, clean: CleanPass, eps: Tensor, context: Context, samples: int, distance: bool
    ) -> tuple[Tensor | None, Tensor]:
        """F(s + eps) - y, where it is needed for a ``distance``, and p, each (samples * B, ...)."""
        if self.split is None:
            noisy_in = _each(eps, samples).add(clean.affine).flatten(0, 1)
            y, noisy = forward_with_context(self.layer, noisy_in, given=context, routing=self.routing)
        else:
            # The affine map of the noise alone, added to the clean value: rounding (TF32's too) is then relative to
            # the difference that is wanted, not to the activation.
            x = eps
            for module in self.modules[: self.split]:
                x = module(x)
            x = _without_bias(self.modules[self.split], x)
            if not self.rest and not self.weight_free_part:
                return x, x
            y, contexts = _each(x, samples).add_(clean.affine).flatten(0, 1), list(context)
            for position in self.rest:
                module = self.modules[position]
                y, contexts[position] = operation_of(module).forward(module, y, context[position], self.routing)
            noisy = Context(contexts)
        change = _each(y, samples).sub(clean.s_out).flatten(0, 1) if distance else None
        values = self.feedback.before_affine(y, noisy, self.linear_from)
        ends = self.feedback.positions[self.linear_from : self.place]
        if all(place is None or _same(noisy[place], context[place]) for place in ends):
            return change, self._linear_end(self._difference(values, clean.values), context)
        return change, self._difference(self._linear_end(values, noisy), clean.phi)

    def _linear_end(self, values: Tensor, context: Context) -> Tensor:
        """What phi makes of what its linear operations are given."""
        return self.feedback.before_affine(values, context, self.place, self.linear_from)

    @staticmethod
    def _difference(values: Tensor, clean: Tensor) -> Tensor:
        """(samples * B, ...) less (B, ...), in the place of ``values``."""
        return values.unflatten(0, (-1, len(clean))).sub_(clean).flatten(0, 1)

    def _as_output_of_map(self, r: Tensor, p: Tensor) -> Tensor:
        """``r`` in the shape that the affine map gives, before it is reshaped to that of the layer's input."""
        if len(self.feedback.operations) == self.place + 1:
            return r
        if isinstance(self.map, LinearFeedback):
            return r.reshape(*p.shape[:-1], self.weight.shape[0])
        return r.reshape(len(r), *self.map.apply_weight(p[:1], self.weight).shape[1:])


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _each(x: Tensor, samples: int) -> Tensor:
    """(samples * B, ...) -> (samples, B, ...)."""
    return x.unflatten(0, (samples, -1))


def _same(some: Any, other: Any) -> bool:
    """Whether two contexts of an operation are the same for it."""
    return some is other or (type(some) is type(other) is ShapeContext and some == other)


def _affine_place(modules: Sequence[nn.Module]) -> int | None:
    """Where the layer begins with an affine map, perhaps after a flatten: its place."""
    for place, module in enumerate(modules):
        if type(module) in (nn.Flatten, nn.Identity) and not has_hooks(module):
            continue
        zeros = getattr(module, "padding_mode", "zeros") == "zeros"
        known = type(module) in (nn.Linear, nn.Conv1d, nn.Conv2d) and zeros and operation_of(module).plain
        return place if known and not has_hooks(module) else None
    return None


def _without_bias(module: Any, x: Tensor) -> Tensor:
    if isinstance(module, nn.Linear):
        return F.linear(x, module.weight)
    convolution = F.conv1d if isinstance(module, nn.Conv1d) else F.conv2d
    return convolution(x, module.weight, None, module.stride, module.padding, module.dilation, module.groups)
