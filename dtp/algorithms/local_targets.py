"""The base of all rules with local targets: activations cut between layers, targets, local losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dtp.algorithms.local_losses import LocalLosses
from dtp.algorithms.options import TargetOptions
from dtp.contracts import gradients, handed_back, require_loss_value, unedited
from dtp.errors import UserError
from dtp.feedback import Context, DrawnContext, forward_with_context
from dtp.feedback.context import BranchesContext
from dtp.models.precision import full_precision, grad_enabled, no_autocast


@dataclass(frozen=True)
class Activations:
    """One forward pass, cut between layers.

    Attributes:
        s: ``s[n]`` for n = 0..N, (B, *shape), detached float32 (or float64); ``s[0]`` is the input. It is what
            :meth:`LocalTargets.activation` makes of the layer's output, by default that itself.
        contexts: ``contexts[n]`` for n = 1..N (``contexts[0]`` is empty): what layer n hands to its feedback.
        outputs: ``outputs[n]`` is what layer n put out; its graph reaches the weights of layer n, and only those.
    """

    s: list[Tensor]
    contexts: list[Context]
    outputs: list[Tensor]

    @property
    def logits(self) -> Tensor:
        """Output of the network (B, classes), detached."""
        return full_precision(self.outputs[-1].detach())

    def select(self, rows: slice) -> Activations:
        """Those of some images of the batch, as constants."""
        s = [activation[rows] for activation in self.s]
        contexts = [context.select(rows) for context in self.contexts]
        return Activations(s, contexts, [output.detach()[rows] for output in self.outputs])


class LocalTargets(LocalLosses):
    """Template for rules in which each layer learns from its own target.

    On every batch it computes the activations, then the targets, from :meth:`first_target` downwards by
    :meth:`lower_target`. Then it takes one step of the forward weights on the sum of the layers' :meth:`forward_loss`.
    No gradient crosses a layer boundary. A rule overrides the hooks in which it differs.

    Layers are numbered n = 1..N; ``self.network[n]`` is F_n.
    """

    Options = TargetOptions
    options: TargetOptions

    def _require_no_step(self, why: str) -> None:
        """Raise UserError for a ``beta``, where targets come from no step of that length: ``why`` in words."""
        if self.options.beta != 1:
            raise UserError(f"--beta: expected 1, for {why}, found {self.options.beta}; leave it out.")

    # --- hooks: what rules differ in ----------------------------------------------------------------------------------

    @property
    def top(self) -> int:
        """Number of the highest layer that has a target: the last one, or the one below, and the last learns the task.

        Raises:
            UserError: from :meth:`targets`, it is neither.
        """
        return self.network.depth

    def activation(self, n: int, output: Tensor, s_in: Tensor) -> Tensor:
        """s_n as targets and feedback see it, (B, *shape), of what layer n put out; a constant. Default: the output.

        ``s_in`` is s_{n-1}. It must be a pure function, for noisy passes go through it too.
        """
        return output

    def kept(self, n: int) -> dict[str, Any]:
        """What the context of layer n is to hold besides, as keywords of :func:`~dtp.feedback.forward_with_context`."""
        return {}

    def first_target(self, activations: Activations, y: Tensor) -> Tensor:
        """Target of layer :attr:`top`, (B, *shape). Default: t_N = s_N - beta d loss / d s_N, loss per sample."""
        s = activations.s[self.network.depth]
        return s - self.options.beta * self.loss_gradient(s, y)

    def lower_target(self, n: int, targets: dict[int, Tensor], activations: Activations) -> Tensor:
        """Target of layer n-1, (B, *shape), from ``targets`` of the layers n and above."""
        raise UserError(f"{type(self).__name__} does not say how targets go down; define lower_target in it.")

    def forward_loss(self, n: int, output: Tensor, target: Tensor) -> Tensor:
        """Local loss of layer n: half the squared distance to its target, summed over features, mean over samples.

        Times ``local_loss_scale``.

        ``output`` (B, *shape) carries gradients to the weights of layer n; ``target`` is constant.
        """
        # The gradient of a product takes an operation more; that of F.mse_loss is contiguous even where maps are
        # channels-last, so that all below it is slower.
        squares = (output - target).square().sum()
        return 0.5 * self.options.local_loss_scale * (squares / len(output))

    # --- the template -------------------------------------------------------------------------------------------------

    def training_batch(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        activations = self.activations(x)
        self.forward_step(activations, self.targets(activations, y), y)
        return activations.logits, {}

    def forward_step(self, activations: Activations, targets: dict[int, Tensor], y: Tensor) -> None:
        """One step of the forward weights on the local losses."""
        weights = self.forward_parameters
        self.step(self.forward_optimizer, weights, self._local_gradients(activations, targets, y, weights))

    def losses(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        activations = self.activations(x)
        return activations.logits, self.local_losses(activations, self.targets(activations, y), y)

    def activations(self, x: Tensor, gradients: bool = True) -> Activations:
        """One forward pass in which every layer starts from a detached input."""
        s, contexts, outputs = [full_precision(x.detach())], [Context()], [x.detach()]
        with grad_enabled(gradients):
            for n in range(1, self.network.depth + 1):
                output, context = forward_with_context(self.network[n], s[-1], **self.kept(n))
                outputs.append(output)
                contexts.append(context)
                with torch.no_grad(), unedited(self, "activation", [("the output", output), ("s_in", s[-1])]):
                    s.append(self._tensor("activation", self.activation(n, full_precision(output.detach()), s[-1])))
        return Activations(s, contexts, outputs)

    def output_from(self, n: int, v: Tensor, activations: Activations, samples: int = 1) -> Tensor:
        """s_N for other inputs ``v`` (m B, *shape of s_{n-1}) of layer n, with the contexts of ``activations``.

        Normalisations use the clean pass's statistics. ``samples`` is m. Gradients flow unless the caller cuts them.
        """
        for k in range(n, self.network.depth + 1):
            output, _ = forward_with_context(self.network[k], v, given=activations.contexts[k].repeat(samples))
            v = self.activation(k, output, v)
        return v

    def targets(self, activations: Activations, y: Tensor) -> dict[int, Tensor]:
        """Targets t_n by layer number, (B, *shape), constants."""
        depth = self.network.depth
        if self.top not in (depth, depth - 1):
            raise UserError(
                f"top: expected {depth}, the last layer, or {depth - 1}, the one below it, found {self.top}; fix "
                f"{type(self).__name__}."
            )
        if self.top < 1:
            return {}
        with torch.no_grad(), no_autocast(activations.s[0]):
            seen = [(f"activations.s[{n}]", s) for n, s in enumerate(activations.s)]
            with unedited(self, "first_target", seen):
                first = self.first_target(activations, y)
            targets = {self.top: self._target("first_target", self.top, first, activations)}
            for n in range(self.top, 1, -1):
                with unedited(self, "lower_target", [*seen, (f"targets[{n}]", targets[n])]):
                    lower = self.lower_target(n, targets, activations)
                targets[n - 1] = self._target("lower_target", n - 1, lower, activations)
        return targets

    def _tensor(self, hook: str, found: Any) -> Tensor:
        if not isinstance(found, Tensor):
            raise handed_back(self, hook, "a tensor", found)
        return found

    def _target(self, hook: str, n: int, found: Any, activations: Activations) -> Tensor:
        target = self._tensor(hook, found)
        self._require_shape(n, target, activations.s[n], f"{hook} of ")
        return target

    def _require_shape(self, n: int, target: Tensor, activation: Tensor, hook: str = "") -> None:
        if target.shape != activation.shape:
            # Broadcasting would go on silently, with another rule than was meant.
            raise UserError(
                f"The target of layer {n} has shape {tuple(target.shape)}; expected that of its activation, "
                f"{tuple(activation.shape)}. Fix {hook}{type(self).__name__}."
            )

    def local_losses(self, activations: Activations, targets: dict[int, Tensor], y: Tensor) -> dict[int, Tensor]:
        """The local loss of each layer n = 1..N, scalars whose graphs are disjoint."""
        losses = {}
        for n in range(1, self.network.depth + 1):
            output = full_precision(activations.outputs[n])
            if self._learns_task(n):
                losses[n] = self.task_loss(output, y)
            else:
                self._require_shape(n, targets[n], output)
                with unedited(self, "forward_loss", [("output", output), ("target", targets[n])]):
                    losses[n] = self.forward_loss(n, output, targets[n])
                trained = any(p.requires_grad for p in self.network[n].parameters())
                require_loss_value(self, "forward_loss", losses[n], trained)
        return losses

    def gradient_scale(self, n: int) -> float:
        return 1.0 if self._learns_task(n) else self.options.beta * self.options.local_loss_scale

    def _learns_task(self, n: int) -> bool:
        return n == self.network.depth and (n > self.top or self.options.output_loss == "task")

    def _local_gradients(
        self, activations: Activations, targets: dict[int, Tensor], y: Tensor, weights: Sequence[Tensor]
    ) -> list[Tensor]:
        return gradients(self, self.network, self.local_losses(activations, targets, y).values(), weights)


def evaluate_purely(layer: nn.Module, x: Tensor, context: Context) -> Tensor:
    """What ``layer`` makes of ``x`` (B, *in), with gradients, while its running statistics stay as they are.

    It draws no random numbers; those of the pass that ``context`` is of are used again.
    """
    drawn = _drawn(context)
    buffers = {f"layer.{name}": buffer.clone() for name, buffer in layer.named_buffers()}
    return torch.func.functional_call(_Again(layer, drawn), buffers, (x,), tie_weights=False)


def _drawn(context: Context) -> Context:
    """Of a context the random numbers alone, those within residual units too."""
    return Context(
        BranchesContext(_drawn(item.branch), _drawn(item.shortcut))
        if isinstance(item, BranchesContext)
        else item
        if isinstance(item, DrawnContext)
        else None
        for item in context
    )


class _Again(nn.Module):
    def __init__(self, layer: nn.Module, given: Context):
        super().__init__()
        self.layer, self.given = layer, given

    def forward(self, x: Tensor) -> Tensor:
        return forward_with_context(self.layer, x, self.given)[0]
