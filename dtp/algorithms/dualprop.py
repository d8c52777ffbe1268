"""Dual propagation: every unit has two states."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from dtp.algorithms.feedback_alignment import KolenPollackSteps
from dtp.algorithms.local_losses import LocalLosses, Stages
from dtp.algorithms.options import DualPropOptions
from dtp.errors import UserError
from dtp.feedback import Context, per_sample_dot, require_several_layers
from dtp.feedback.backward import AffineOperation, BackwardMaps
from dtp.feedback.context import holds_statistics
from dtp.feedback.initial import fans, init_map
from dtp.models.network import Network
from dtp.models.precision import full_precision, no_autocast


@dataclass(frozen=True)
class Drive:
    """A_n(z), ``output`` (B, *shape), at ``z`` (B, *in), a leaf; the graph reaches z and the weights of layer n."""

    z: Tensor
    output: Tensor
    context: Context

    def back(self, signal: Tensor) -> Tensor:
        """``signal`` (B, *shape) through the transposed Jacobian of A_n at z, or the weights in its place: (B, *in)."""
        return torch.autograd.grad(self.output, self.z, signal, retain_graph=True)[0]


@dataclass(frozen=True)
class Dyads:
    """The states ``plus[n]`` and ``minus[n]`` (B, *shape) for n = 0..N, their mean's ``drives`` of n = 1..N, logits."""

    plus: list[Tensor]
    minus: list[Tensor]
    drives: dict[int, Drive]
    logits: Tensor


class DualProp(KolenPollackSteps, LocalLosses):
    """Dual propagation (Høier, Staudt, Zach 2023; Høier, Zach 2024): contrastive learning in a single phase::

        m_n = alpha s+_n + (1 - alpha) s-_n,   d_n = A_{n+1}^T (s+_{n+1} - s-_{n+1})
        s+_n = f(A_n m_{n-1} + (1 - alpha) d_n),   s-_n = f(A_n m_{n-1} - alpha d_n)
        dW_n = (s+_n - s-_n) m_{n-1}^T / beta

    That is the form of 2024 (``form`` lagrangian): output states are a step of (1 - alpha) beta down, and of alpha beta
    up the loss gradient at the forward pass. The form of 2023 (dyadic) has alpha and 1 - alpha the other way round in
    the states, and takes that gradient at the present output, or for the squared loss of classes, as published, in
    closed form. alpha is ``mix``, beta ``nudge``. All states start from the forward pass and are updated layer by
    layer (``order``, ``sweeps``).

    For small beta the rule is backprop. The error is of order beta^2 for alpha 1/2, else of order beta; linear networks
    have none. With ReLU the error comes from the units whose sign the feedback flips. Feedback goes through the
    transposes of the forward weights, and within a residual unit as in backprop. Max-pooling is part of A_{n+1} here,
    so states are those before it. Random numbers and normalisation statistics are those of the forward pass. The latter
    are constants, as for other rules: below a normalisation the limit is backprop that takes them for such, and differs
    from backprop itself by a tenth of the update's length and more.

    The convolutional networks of 2023 were trained by autograd with another derivative of ReLU, on the mean loss of a
    batch of B: the order bw with nudge 2 / B, but for the senders m, which are the forward pass there.

    With ``backward`` kolen-pollack the feedback goes through weights of its own, which take the forward weights' steps
    and decay as they do (2023). Biases decay too, as in the authors' code. The decay is beside the optimizer, as in
    ``kp``; theirs is inside it.

    Left out by the papers: which of the four orders is needed. Not implemented: the damped iteration, which no
    published run uses.
    """

    Options = DualPropOptions
    options: DualPropOptions
    biases_decay = True

    def __init__(self, network: Network, options: DualPropOptions | None = None, seed: int = 0):
        super().__init__(network, options, seed)
        require_several_layers(list(network))
        o = self.options
        if self._closed_form and not (1 - o.mix) * o.nudge < 1:
            raise UserError(
                f"--nudge: expected less than 1 / (1 - mix), {1 / (1 - o.mix):g}, where the second output state of the "
                f"squared loss is still finite, found {o.nudge}."
            )
        if o.order == "fw" and o.sweeps < network.depth:
            raise UserError(
                f"--sweeps: expected at least {network.depth}, the number of layers, for feedback comes down one layer "
                f"in each sweep upwards, found {o.sweeps}; give that or --order bw."
            )
        if o.backward_init != "default" and not self.mirrors_steps:
            raise UserError(
                f"--backward-init {o.backward_init}: expected --backward kolen-pollack, found {o.backward}, which has "
                "no backward weights of its own; give that, or leave this out."
            )
        self.stages = Stages(network)
        if self.mirrors_steps:
            self.feedback = BackwardMaps(network)
            self.require_steps()
            for operation in self.feedback.operations:
                init_map(operation.backward_map.weight, *fans(operation.module), o.backward_init)

    @property
    def mirrors_steps(self) -> bool:
        return self.options.backward == "kolen-pollack"

    def feedback_weights(self) -> dict[int, list[tuple[Tensor, Tensor]]]:
        return self.feedback.beside_forward(_weight) if self.mirrors_steps else {}

    def losses(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        with no_autocast(x), self.feedback.in_place(_weight) if self.mirrors_steps else nullcontext():
            dyads = self.dyads(x, y)
            signals = {n: (dyads.minus[n] - dyads.plus[n]) / self.options.nudge for n in dyads.drives}
            return dyads.logits, {n: per_sample_dot(drive.output, signals[n]) for n, drive in dyads.drives.items()}

    def dyads(self, x: Tensor, y: Tensor) -> Dyads:
        """The states of all units for images (B, C, H, W) and goals."""
        N, alpha, drives = self.network.depth, self.options.mix, {}
        mean = [full_precision(x.detach())]
        for n in range(1, N + 1):
            drives[n] = self._drive(n, mean[n - 1])
            mean.append(self._function(n, drives[n].output))
        plus, minus, logits = list(mean), list(mean), mean[N]
        contexts = {n: drive.context for n, drive in drives.items()}
        # A first pass sends gradients through the statistics of its batch too, those that follow do not.
        stale = {n for n, context in contexts.items() if holds_statistics(context)}

        def drive(n: int) -> Drive:
            if n in stale:
                drives[n] = self._drive(n, mean[n - 1], contexts[n])
                stale.discard(n)
            return drives[n]

        # Shares of the feedback of the two states.
        up, down = (1 - alpha, alpha) if self.options.form == "lagrangian" else (alpha, 1 - alpha)
        for n in self._sequence():
            a = drive(n).output.detach()
            if n == N:
                plus[n], minus[n] = self._output_states(a, logits, y, up, down)
            else:
                feedback = drive(n + 1).back(plus[n + 1] - minus[n + 1])
                plus[n], minus[n] = self._function(n, a + up * feedback), self._function(n, a - down * feedback)
                stale.add(n + 1)
            mean[n] = alpha * plus[n] + (1 - alpha) * minus[n]
        return Dyads(plus, minus, {n: drive(n) for n in drives}, logits)

    def _output_states(self, a: Tensor, logits: Tensor, y: Tensor, up: float, down: float) -> tuple[Tensor, Tensor]:
        beta = self.options.nudge
        if self._closed_form:
            label = self.task.wanted(y, like=a)
            return (a + up * beta * label) / (1 + up * beta), (a - down * beta * label) / (1 - down * beta)
        gradient = self.loss_gradient(logits if self.options.form == "lagrangian" else a, y)
        return a - up * beta * gradient, a + down * beta * gradient

    @property
    def _closed_form(self) -> bool:
        """Whether the output states minimise the squared loss instead of following its gradient."""
        return self.options.form == "dyadic" and self.task.has_linear_units(self.options.loss)

    def gradient_scale(self, n: int) -> float:
        up, down = self.options.mix * self.options.nudge, (1 - self.options.mix) * self.options.nudge
        return 1 / ((1 + up) * (1 - down)) if self._closed_form else 1.0

    def _sequence(self) -> list[int]:
        """Numbers of the layers in the order of their updates."""
        up, K = list(range(1, self.network.depth + 1)), self.options.sweeps
        down = up[::-1]
        return {"bw": down * K, "fw": up * K, "fwbw": down + (up + down) * (K - 1)}[self.options.order]

    def _drive(self, n: int, z: Tensor, given: Context | None = None) -> Drive:
        # Nothing is sent back to the images.
        z = z.detach().requires_grad_(n > 1)
        with torch.enable_grad():
            return Drive(z, *self.stages.affine(n, z, given))

    @torch.no_grad()
    def _function(self, n: int, a: Tensor) -> Tensor:
        return self.stages.function(n, a.detach())


def _weight(operation: AffineOperation) -> Tensor:
    return operation.backward_map.weight
