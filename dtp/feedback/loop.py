"""The feedback phase: several steps for each feedback layer. A function of losses, parameters and a stepping function.

This is the one place that a faster engine (batched, captured as a graph) or a distributed one (one collective for the
k-th step of every layer) replaces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeedbackProblem:
    """What one feedback layer is trained on in one batch.

    Attributes:
        layer: n, number of the forward layer it undoes.
        parameters: its weights, the only tensors that are stepped.
        iterations: K_n, how many steps.
        loss: draws its own noise and returns a scalar; called K_n times.
    """

    layer: int
    parameters: tuple[Tensor, ...]
    iterations: int
    loss: Callable[[], Tensor]


def train_feedback(
    problems: Sequence[FeedbackProblem], step: Callable[[int, tuple[Tensor, ...]], None]
) -> dict[int, Tensor]:
    """Solve independent feedback problems, the k-th iteration of every layer before the (k+1)-th of any.

    The layers do not depend on each other, so the order between them changes nothing; this order lets the k-th steps of
    all layers share one collective.

    Args:
        problems: one for each feedback layer that is trained.
        step: ``step(n, gradients)`` applies one optimizer step to the parameters of feedback layer n. Gradients are
            those of its loss with respect to its parameters alone; no ``.grad`` of any tensor is touched here.

    Returns:
        The last loss of each layer, detached scalars on the device (nothing waits for them).
    """
    losses: dict[int, Tensor] = {}
    for k in range(max((problem.iterations for problem in problems), default=0)):
        for problem in problems:
            if k >= problem.iterations:
                continue
            loss = problem.loss()
            gradients = torch.autograd.grad(loss, problem.parameters)
            step(problem.layer, gradients)
            losses[problem.layer] = loss.detach()
    return losses
