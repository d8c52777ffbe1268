"""Rules for networks that settle: contrastive Hebbian learning and generalised recirculation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtp.algorithms.base import Algorithm
from dtp.algorithms.options import CHLOptions, ContrastiveOptions, GeneRecOptions
from dtp.errors import UserError
from dtp.feedback import layer_operations, require_own_weights
from dtp.feedback.layers import is_layer_function
from dtp.models.network import Network
from dtp.models.precision import full_precision, no_autocast


@dataclass(frozen=True)
class Phase:
    """A settled network: ``h[k]`` (B, d_k) for k = 0..N, and ``residual``, the largest change of a unit at the end."""

    h: list[Tensor]
    residual: Tensor


class Contrastive(Algorithm):
    """Template of the rules of bidirectional networks of fully connected layers (Lee 2018, chapter 1).

    Hidden units relax by h_k <- h_k + dt (f(W_k h_{k-1} + b_k + g U_k h_{k+1}) - h_k), all layers at once, until no
    unit changes by more than ``settling_tolerance`` or ``settling_steps`` are over; output units are sigmoids. In the
    free phase only the input is held, in the clamped phase, which starts from there, the one-hot label too. Everything
    is outer products of activities: no automatic differentiation, and each layer sees its own two sides alone.
    ``train/settling_free`` and ``train/settling_clamped`` are the residuals.

    Evaluation uses the output of the free phase. The loss is the cross-entropy of the sigmoids, summed over classes.

    One pass upwards may take the place of the free phase (``free_phase`` feedforward), for half the cost. The clamped
    phase then feeds back how far the units above are from that pass, U_k (h_{k+1} - h-_{k+1}), not the units: feedback
    in one phase alone would teach hidden units the label, not the error, and networks stay at chance.

    Left out by the sources: dt, steps and tolerance (0.1, 100, 1e-5), whether layers relax in turn (at once), that
    difference, and first weights, which must be small, for large symmetric ones have several states of rest.
    """

    Options = ContrastiveOptions
    options: ContrastiveOptions
    learns_any_loss = False
    uses_autograd = False
    waits = "whether a phase has settled is looked at after every tenth step"

    def __init__(self, network: Network, options: ContrastiveOptions | None = None, seed: int = 0):
        super().__init__(network, options, seed)
        # The linear map and the nonlinearity of each layer, by its number.
        self._maps = {n: _parts(n, network[n], last=n == network.depth) for n in range(1, network.depth + 1)}
        for n, shape in enumerate(network.shapes[:-1], 1):
            if self._linear(n).in_features != shape.numel():
                raise UserError(
                    "Networks that settle are made of linear layers that see the whole of what is below, found one in "
                    f"layer {n} for {self._linear(n).in_features} of {shape.numel()} values; use --model mlp."
                )

    # --- hooks --------------------------------------------------------------------------------------------------------

    def update(self, free: tuple[Tensor, Tensor], clamped: tuple[Tensor, Tensor]) -> Tensor:
        """Direction of a weight matrix, (d_k, d_{k-1}), summed over samples, before the factor g^(k-N).

        ``free`` and ``clamped`` are (h_k, h_{k-1}), (B, d_k) and (B, d_{k-1}), of the two phases.
        """
        raise UserError(f"{type(self).__name__} does not say what weights learn; define update in it.")

    def feedback_weight(self, k: int) -> Tensor:
        """U_k, (d_k, d_{k+1}), from layer k+1 to hidden layer k. Default: the transpose of W_{k+1}."""
        return self._linear(k + 1).weight.detach().t()

    # --- the template -------------------------------------------------------------------------------------------------

    def training_batch(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits, gradients, scalars = self._learned(x, y)
        self.step(self.forward_optimizer, self.forward_parameters, gradients)
        return logits, scalars

    def forward_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        logits, gradients, _ = self._learned(x, y)
        return logits, gradients

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad(), no_autocast(x):
            return self._logits(self.free_phase(x))

    @torch.no_grad()
    def phases(self, x: Tensor, y: Tensor) -> tuple[Phase, Phase]:
        """The network at rest with images (B, C, H, W), and with the labels (B,) as well."""
        with no_autocast(x):
            free = self.free_phase(x)
            label = self.task.wanted(y, like=free.h[-1])
            return free, self._settle([*free.h[:-1], label], free)

    def free_phase(self, x: Tensor) -> Phase:
        """The network at rest with images alone; it starts from one pass upwards, or is that pass."""
        h = [full_precision(x).flatten(1)]
        for k in range(1, self.network.depth + 1):
            h.append(self._function(k)(self._linear(k)(h[-1])))
        if self.options.free_phase == "feedforward":
            return Phase(h, h[0].new_zeros(()))
        return self._settle(h)

    def _settle(self, h: list[Tensor], free: Phase | None = None) -> Phase:
        """``h`` relaxed: all but the input, or, after the ``free`` phase, all but input and output."""
        o, N = self.options, self.network.depth
        moving = range(1, N + 1 if free is None else N)
        passed = free.h if free is not None and o.free_phase == "feedforward" else None
        # The input is held, and so is what it drives.
        drive = self._linear(1)(h[0])
        residual = h[0].new_zeros(())
        for step in range(1, o.settling_steps + 1):
            changes = {}
            for k in moving:
                a = drive if k == 1 else self._linear(k)(h[k - 1])
                if k < N:
                    above = h[k + 1] if passed is None else h[k + 1] - passed[k + 1]
                    a = a + o.gain * F.linear(above, self.feedback_weight(k))
                changes[k] = o.relaxation * (self._function(k)(a) - h[k])
            h = [unit + changes[k] if k in changes else unit for k, unit in enumerate(h)]
            # Not after every step: a device would be waited for.
            if step % 10 == 0 or step == o.settling_steps:
                residual = torch.stack([change.abs().max() for change in changes.values()] or [residual]).max()
                if residual <= o.settling_tolerance:
                    break
        return Phase(h, residual)

    @torch.no_grad()
    def _learned(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        """Logits, gradients, and what is logged of the two phases."""
        with no_autocast(x):
            free, clamped = self.phases(x, y)
            scalars = {"settling_free": free.residual, "settling_clamped": clamped.residual}
            return self._logits(free), self._gradients(free, clamped), scalars

    def _gradients(self, free: Phase, clamped: Phase) -> list[Tensor]:
        N, batch, by_parameter = self.network.depth, len(free.h[0]), {}

        def add(parameter: Tensor, gradient: Tensor) -> None:
            # Layers may share their weights.
            known = by_parameter.get(id(parameter))
            by_parameter[id(parameter)] = gradient if known is None else known + gradient

        for k in range(1, N + 1):
            linear, factor = self._linear(k), -(self.options.gain ** (k - N)) / batch
            pairs = [(phase.h[k], phase.h[k - 1]) for phase in (free, clamped)]
            add(linear.weight, factor * self.update(*pairs))
            if linear.bias is not None:
                add(linear.bias, factor * (clamped.h[k] - free.h[k]).sum(0))
        return [by_parameter[id(parameter)] for parameter in self.forward_parameters]

    def _logits(self, free: Phase) -> Tensor:
        return self._linear(self.network.depth)(free.h[-2])

    def _linear(self, k: int) -> nn.Linear:
        return self._maps[k][0]

    def _function(self, k: int) -> nn.Module:
        return self._maps[k][1]


class CHL(Contrastive):
    """Contrastive Hebbian learning (Movellan 1991; Xie and Seung 2003; Lee 2018, chapter 1)::

        dW_k = g^(k-N) (h+_k h+_{k-1}^T - h-_k h-_{k-1}^T),    U_k = W_{k+1}^T

    with h- at rest under the input, and h+ under input and label. For small g the rule is backprop of the cross-entropy
    of sigmoids. It is local in space, except for the transposed feedback weights. Each product needs one phase only,
    but both are applied together after the second phase, so that of the first must be stored.

    Left out by the sources: the gain of Lee's form, which has no factor g^(k-N) (1; ``gain`` 1 is that form), and all
    that :class:`Contrastive` names.
    """

    Options = CHLOptions
    options: CHLOptions

    def update(self, free: tuple[Tensor, Tensor], clamped: tuple[Tensor, Tensor]) -> Tensor:
        return clamped[0].t() @ clamped[1] - free[0].t() @ free[1]


class GeneRec(Contrastive):
    """Generalised recirculation (O'Reilly 1996; Lee 2018, chapter 1): dW_k = (h+_k - h-_k) h-_{k-1}^T.

    ``generec_form`` midpoint uses the mean of the two phases as the sender. With symmetrised this is also made
    symmetric over both directions of a connection, which gives exactly contrastive Hebbian learning. Feedback weights
    are the transposes or independent random weights.

    Left out by the sources: feedback gains other than 1. Here the factor g^(k-N) of ``chl`` is used, so that the
    symmetrised form equals ``chl`` for every gain. Independent feedback weights are fixed and drawn like the forward
    weights that they replace, from PyTorch's distribution.
    """

    Options = GeneRecOptions
    options: GeneRecOptions

    def __init__(self, network: Network, options: GeneRecOptions | None = None, seed: int = 0):
        super().__init__(network, options, seed)
        # Of k = 1..N-1; none where U_k is the transpose. A ModuleList, of whose items torch's types do not know.
        self.feedback: Any = nn.ModuleList()
        if self.options.feedback_weights == "random":
            for k in range(1, network.depth):
                above = self._linear(k + 1).weight
                feedback = nn.Linear(*above.shape, bias=False, device=above.device, dtype=above.dtype)
                nn.init.uniform_(feedback.weight, -(above.shape[1] ** -0.5), above.shape[1] ** -0.5)
                self.feedback.append(feedback.requires_grad_(False))

    def feedback_weight(self, k: int) -> Tensor:
        return self.feedback[k - 1].weight if len(self.feedback) else super().feedback_weight(k)

    def feedback_weights(self) -> dict[int, list[tuple[Tensor, Tensor]]]:
        pairs = {k + 1: (self.feedback_weight(k), self._linear(k + 1).weight.t()) for k in range(1, self.network.depth)}
        return {k: [pair] for k, pair in pairs.items()} if len(self.feedback) else {}

    def update(self, free: tuple[Tensor, Tensor], clamped: tuple[Tensor, Tensor]) -> Tensor:
        (h_free, v_free), (h, v), form = free, clamped, self.options.generec_form
        if form == "plain":
            return (h - h_free).t() @ v_free
        change = 0.5 * (h - h_free).t() @ (v + v_free)
        return change if form == "midpoint" else change + 0.5 * (h + h_free).t() @ (v - v_free)


def _parts(n: int, layer: nn.Module, last: bool) -> tuple[nn.Linear, nn.Module]:
    """The linear map of layer n and its nonlinearity, a sigmoid for the last layer.

    Raises:
        UserError: the layer is not made of these.
    """
    modules = [module for module in layer_operations(layer) if not isinstance(module, nn.Flatten | nn.Identity)]
    if (
        len(modules) != (1 if last else 2)
        or not isinstance(modules[0], nn.Linear)
        or not all(is_layer_function(module) for module in modules[1:])
    ):
        found = ", ".join(type(module).__name__ for module in modules) or "nothing"
        raise UserError(
            "Networks that settle are made of linear layers with an elementwise nonlinearity each, the last without; "
            f"found {found} in layer {n}: use --model mlp."
        )
    require_own_weights(modules[0], f"layer {n}")
    return modules[0], nn.Sigmoid() if last else modules[1]
