"""The feedback phase: several steps for each feedback layer, each layer in the form that suits it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from dtp.feedback.context import Context
from dtp.feedback.expected import ExpectedLDRL
from dtp.feedback.reduced import Constants, ReducedLDRL

Noise = tuple[Tensor, ...]
Gradients = dict[int, tuple[Tensor, ...]]
Step = Callable[[Gradients], None]


class Average(Protocol):
    """Means over ranks."""

    def __call__(self, gradients: Gradients) -> Callable[[], Gradients]:
        """Start to average gradients; what this returns waits for the means."""
        ...

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Means of other tensors, which have the same shapes on all ranks."""
        ...


@dataclass(frozen=True)
class FeedbackProblem:
    """What one feedback layer is trained on in one batch.

    Attributes:
        layer: n, number of the forward layer it undoes.
        parameters: its weights, the only tensors that are stepped.
        iterations: K_n, how many steps; ``inf``, for the minimum itself, needs ``expected``.
        draw: the noise of one iteration, from the layer's own stream; it depends on no weights, so the noise of several
            iterations may be drawn at once, in the same order.
        loss: scalar for given noise, a pure function of it and of the weights: the literal form.
        reduced: the reduced form of that loss, or None where there is none or it is not wanted.
        clean: (s_in, s_out, context) of the layer's clean pass, for the reduced form.
        stop_distance: relative distance of the Jacobians J_G and J_F^T, as the noise of an iteration shows it, at which
            the layer takes no more steps in this batch; 0 for never. For the reduced form only.
        expected: the mean of the loss over its noise, on which the layer is trained instead where there is one.
        draw_together: the noise of so many iterations, as ``draw`` would give them one after the other, joined along
            the samples; None where that is no quicker.
    """

    layer: int
    parameters: tuple[Tensor, ...]
    iterations: int | float
    draw: Callable[[], Noise]
    loss: Callable[[Noise], Tensor]
    reduced: ReducedLDRL | None = None
    clean: tuple[Tensor, Tensor, Context] | None = None
    stop_distance: float = 0.0
    expected: ExpectedLDRL | None = None
    draw_together: Callable[[int], Noise] | None = None

    def noise(self, iterations: int) -> list[Noise]:
        """The noise of the next iterations: of each, or of all together."""
        if self.draw_together is not None and iterations > 1:
            return [self.draw_together(iterations)]
        return [self.draw() for _ in range(iterations)]


def shared_weights(problems: Sequence[FeedbackProblem]) -> bool:
    """Whether two layers train the same weights: then no layer's iterations can be taken before the others'."""
    weights = [id(parameter) for problem in problems for parameter in problem.parameters]
    return len(set(weights)) < len(weights)


class LiteralGradients:
    """Gradients of a problem's loss as it is written, by automatic differentiation.

    Attributes:
        loss: value at the last iteration, a scalar on the device.
        steps: how many gradients were given.
    """

    def __init__(self, problem: FeedbackProblem):
        self.problem, self.steps = problem, 0

    def __call__(self) -> tuple[Tensor, ...] | None:
        """Gradients of the next iteration at the present weights; None when the iterations are over."""
        if self.steps == self.problem.iterations:
            return None
        self.steps += 1
        value = self.problem.loss(self.problem.draw())
        self.loss = value.detach()
        return torch.autograd.grad(value, self.problem.parameters)

    def prepare(self) -> None:
        """Nothing of it is known beforehand."""


class ReducedGradients:
    """The same gradients in reduced form; constants are computed for as many iterations as ``memory`` bytes hold."""

    def __init__(self, problem: FeedbackProblem, memory: int):
        assert problem.reduced is not None and problem.clean is not None
        self.problem, self.form, self.steps = problem, problem.reduced, 0
        s_in, s_out, context = problem.clean
        self.clean, self.batch = self.form.clean_pass(s_in, s_out, context), len(s_out)
        self.scale = self.form.scale(self.batch)
        # Where a layer may stop, no noise is drawn ahead: what is drawn must not depend on the memory.
        most = 1 if problem.stop_distance > 0 else memory // self.form.bytes_per_iteration(self.clean, s_in)
        self.iterations = int(problem.iterations)
        self.chunk = max(1, min(self.iterations, most))
        self._begin = self._end = 0

    @torch.no_grad()
    def __call__(self) -> tuple[Tensor, ...] | None:
        k, problem = self.steps, self.problem
        if k == self.iterations:
            return None
        self.prepare()
        i = k - self._begin
        constant, quadratic = self._constants.gradient[i], self.form.quadratic_gradient(self._constants, i)
        aligned = (
            problem.stop_distance > 0
            and self.form.distance(self._constants, i, quadratic, self.batch) <= problem.stop_distance
        )
        if aligned or k == self.iterations - 1:
            self.loss = self.form.loss(constant, quadratic, self.batch)
        if aligned:
            return None
        self.steps += 1
        return self.form.gradients(problem.parameters, constant.add_(quadratic, alpha=self.scale))

    @torch.no_grad()
    def prepare(self) -> None:
        """Compute the constants of the next iteration, and of those after it that fit, unless they are there."""
        k, problem = self.steps, self.problem
        if k == self._end and k < self.iterations:
            self._begin, self._end = k, min(k + self.chunk, self.iterations)
            count = self._end - self._begin
            self._constants: Constants = self.form.constants(
                self.clean, problem.noise(count), count, distance=problem.stop_distance > 0
            )


@dataclass(frozen=True)
class FeedbackResult:
    """What the feedback phase of a batch came to, by layer number.

    Attributes:
        losses: last loss of each layer, detached scalars on the device (nothing waits for them).
        steps: how many steps each layer took (``inf`` for the minimum itself); a scalar tensor where another rank has
            counted them.
    """

    losses: dict[int, Tensor]
    steps: dict[int, int | float | Tensor]


def train_feedback(
    problems: Sequence[FeedbackProblem], step: Step, memory: int = 1 << 26, average: Average | None = None
) -> FeedbackResult:
    """Train feedback layers, the k-th iteration of every layer before the (k+1)-th of any.

    All gradients of iteration k are taken before any layer is stepped, so the order of the layers changes nothing, even
    for losses that look at the feedback of other layers; and the k-th steps of all layers can share one collective.

    Args:
        problems: one for each feedback layer that is trained.
        step: ``step({n: gradients})`` applies one optimizer step to the parameters of each feedback layer n. Gradients
            are those of its loss with respect to its parameters alone; no ``.grad`` of any tensor is touched here.
        memory: bytes that a layer in reduced form may take for the constants of several iterations at once.
        average: what makes of the gradients of this rank those of all; while it is under way, the constants of the next
            iterations are computed.
    """
    sources = {problem.layer: _source(problem, memory) for problem in problems if problem.iterations > 0}
    active = dict(sources)
    while active:
        found = {n: source() for n, source in active.items()}
        gradients = {n: values for n, values in found.items() if values is not None}
        active = {n: active[n] for n in gradients}
        if average is not None and active:
            wait = average(gradients)
            for source in active.values():
                source.prepare()
            gradients = wait()
        if active:
            step(gradients)
    return FeedbackResult({n: s.loss for n, s in sources.items()}, {n: s.steps for n, s in sources.items()})


def time_iterations(problem: FeedbackProblem, memory: int = 1 << 26) -> float:
    """Seconds that a problem's iterations take in a batch, from a few of them; no weight is stepped.

    Noise is drawn for it; who wants a run to go on as if it had not been must restore the stream.
    """
    few = replace(problem, iterations=min(4, problem.iterations), stop_distance=0.0)
    # The first ones find memory and choose algorithms.
    for _ in range(2):
        wait_for(problem.parameters[0])
        began = time.perf_counter()
        source = _source(few, memory)
        while source() is not None:
            pass
        wait_for(problem.parameters[0])
        seconds = time.perf_counter() - began
    return seconds * problem.iterations / few.iterations


def _source(problem: FeedbackProblem, memory: int) -> LiteralGradients | ReducedGradients:
    return LiteralGradients(problem) if problem.reduced is None else ReducedGradients(problem, memory)


def wait_for(tensor: Tensor) -> None:
    """Wait until all that was asked of the tensor's device is done."""
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)
