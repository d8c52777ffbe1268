"""Steps on L-DRL in expectation: all K of a batch at once where the optimizer allows it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from dtp.feedback.expected import ExpectedLDRL, Moments, Quadratic
from dtp.feedback.loop import Average, FeedbackProblem, FeedbackResult, Step, shared_weights
from dtp.feedback.momentum import momentum_moves
from dtp.feedback.steppers import is_plain, prepare_state, steps_of


def train_in_expectation(
    problems: Sequence[FeedbackProblem],
    optimizers: dict[int, Optimizer],
    step: Step | None = None,
    average: Average | None = None,
) -> FeedbackResult:
    """Train feedback layers on the mean of L-DRL: K steps in closed form, without a convolution.

    Args:
        problems: all with an expected form.
        optimizers: of each layer's feedback weights. Those of plain SGD are served in closed form; others step K times,
            and so do layers that share weights, of which each moves the others' gradients.
        step: how gradients become steps, where every step is to be taken one by one; None for the quickest way.
        average: means over ranks, of the moments alone: they meet once.

    Returns:
        The mean loss of each layer at its new weights, and how many steps were taken (as a number for ``inf``).
    """
    forms = {p.layer: _form(p) for p in problems}
    moments = {p.layer: _moments(p, forms[p.layer]) for p in problems}
    if average is not None:
        means = iter(average.mean([t for m in moments.values() for t in (m.first, m.second)]))
        moments = {n: Moments(next(means), next(means), m.drawn) for n, m in moments.items()}
    losses = {n: form.quadratic(moments[n]) for n, form in forms.items()}
    apart = step is None and not shared_weights(problems)
    at_once = [p for p in problems if apart and _in_closed_form(p, optimizers[p.layer])]
    _leap(at_once, losses, optimizers)
    _walk([p for p in problems if p not in at_once], losses, optimizers, step)
    with torch.no_grad():
        return FeedbackResult({n: loss.loss() for n, loss in losses.items()}, {p.layer: p.iterations for p in problems})


def _form(problem: FeedbackProblem) -> ExpectedLDRL:
    assert problem.expected is not None
    return problem.expected


def _moments(problem: FeedbackProblem, form: ExpectedLDRL) -> Moments:
    assert problem.clean is not None
    return form.moments(problem.clean, problem.draw() if form.drawn else ())


def _in_closed_form(problem: FeedbackProblem, optimizer: Optimizer) -> bool:
    alone = len(problem.parameters) == 1 and problem.parameters[0] is _form(problem).weight
    return alone and is_plain(optimizer, SGD)


@torch.no_grad()
def _leap(problems: Sequence[FeedbackProblem], losses: dict[int, Quadratic], optimizers: dict[int, Optimizer]) -> None:
    """All steps of some layers in closed form."""
    by_momentum: dict[float, list[FeedbackProblem]] = {}
    for problem in problems:
        by_momentum.setdefault(optimizers[problem.layer].param_groups[0]["momentum"], []).append(problem)
    for momentum, alike in by_momentum.items():
        groups = [optimizers[p.layer].param_groups[0] for p in alike]
        decaying = [losses[p.layer].decaying(g["weight_decay"]) for p, g in zip(alike, groups, strict=True)]
        moves = momentum_moves(
            [loss.curvature for loss in decaying],
            [g["lr"] for g in groups],
            momentum,
            [p.iterations for p in alike],
        )
        for problem, loss, factors in zip(alike, decaying, moves, strict=True):
            v, optimizer = loss.weight, optimizers[problem.layer]
            by_g, by_m, g_to_m, m_to_m = factors.to(v.dtype).to(v.device)
            gradient = loss.gradient()
            v.addcmul_(gradient, by_g)
            if momentum:
                prepare_state(optimizer, [v])
                velocity = optimizer.state[v]["momentum_buffer"]
                v.addcmul_(velocity, by_m)
                velocity.mul_(m_to_m).addcmul_(gradient, g_to_m)


def _walk(
    problems: Sequence[FeedbackProblem],
    losses: dict[int, Quadratic],
    optimizers: dict[int, Optimizer],
    step: Step | None,
) -> None:
    """The steps of some layers, one after the other."""
    step = step or steps_of(optimizers)
    for problem in problems:
        if math.isinf(problem.iterations):
            loss, optimizer = losses[problem.layer], optimizers[problem.layer]
            with torch.no_grad():
                loss.weight.copy_(loss.decaying(_decay(optimizer, loss.weight)).minimiser())
            # At the minimum nothing is left of the way there, such as a velocity.
            optimizer.state.pop(loss.weight, None)
    finite = [p for p in problems if not math.isinf(p.iterations)]
    for k in range(max((int(p.iterations) for p in finite), default=0)):
        with torch.no_grad():
            gradients = {
                p.layer: _form(p).reduced.gradients(p.parameters, losses[p.layer].gradient())
                for p in finite
                if k < p.iterations
            }
        # Outside, as all steps are: an optimizer or a hook of the user's own may differentiate.
        step(gradients)


def _decay(optimizer: Optimizer, weight: Tensor) -> float:
    """That of the weight's own group; 0 where it is in none, as a user's own optimizer may leave it out."""
    own = (g["weight_decay"] for g in optimizer.param_groups if any(p is weight for p in g["params"]))
    return next(own, 0.0)
