"""The feedback phase: several steps for each feedback layer. A function of losses, parameters and a stepping function.

This is the one place that a faster engine (batched, captured as a graph) or a distributed one (one collective for the
k-th step of every layer) replaces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Noise = tuple[Tensor, ...]


@dataclass(frozen=True)
class FeedbackProblem:
    """What one feedback layer is trained on in one batch.

    Attributes:
        layer: n, number of the forward layer it undoes.
        parameters: its weights, the only tensors that are stepped.
        iterations: K_n, how many steps.
        draw: the noise of one iteration, from the layer's own stream; it depends on no weights, so an engine may draw
            the noise of all iterations at once.
        loss: scalar for given noise, a pure function of it and of the weights.
    """

    layer: int
    parameters: tuple[Tensor, ...]
    iterations: int
    draw: Callable[[], Noise]
    loss: Callable[[Noise], Tensor]


def train_feedback(
    problems: Sequence[FeedbackProblem], step: Callable[[dict[int, tuple[Tensor, ...]]], None]
) -> dict[int, Tensor]:
    """Train feedback layers, the k-th iteration of every layer before the (k+1)-th of any.

    All gradients of iteration k are taken before any layer is stepped, so the order of the layers changes nothing, even
    for losses that look at the feedback of other layers; and the k-th steps of all layers can share one collective.

    Args:
        problems: one for each feedback layer that is trained.
        step: ``step({n: gradients})`` applies one optimizer step to the parameters of each feedback layer n. Gradients
            are those of its loss with respect to its parameters alone; no ``.grad`` of any tensor is touched here.

    Returns:
        The last loss of each layer, detached scalars on the device (nothing waits for them).
    """
    losses: dict[int, Tensor] = {}
    for k in range(max((problem.iterations for problem in problems), default=0)):
        gradients = {}
        for problem in problems:
            if k >= problem.iterations:
                continue
            loss = problem.loss(problem.draw())
            gradients[problem.layer] = torch.autograd.grad(loss, problem.parameters)
            losses[problem.layer] = loss.detach()
        step(gradients)
    return losses
