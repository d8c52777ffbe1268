"""Chooses the form in which each feedback layer is trained, and trains it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dtp.errors import UserError
from dtp.feedback.expected_steps import train_in_expectation
from dtp.feedback.graphs import RecursionGraph, cuda_graph, plain, time_graph, train_feedback_in_graphs
from dtp.feedback.loop import (
    Average,
    FeedbackProblem,
    FeedbackResult,
    Step,
    shared_weights,
    time_iterations,
    train_feedback,
)
from dtp.feedback.reduced import ReducedLDRL
from dtp.feedback.steppers import capturable, steps_of


class FeedbackEngine:
    """Trains feedback layers: from the loss as it is written, in reduced form, or in reduced form as CUDA graphs.

    Args:
        name: ``literal``, ``reduced``, ``graph``, or ``auto``: a graph on a GPU where there can be one, else reduced.
        memory: bytes that a layer may take for several iterations at once; 0 for the usual on its device.
        stops_early: whether layers may take fewer iterations than were asked for.

    Attributes:
        used: by layer number, the form that the layer was last trained in: ``literal``, ``reduced``, ``graph`` or
            ``expected``.
        whole_batches: whether the caller captures whole batches, with the feedback phase in them; then no layer has a
            graph of its own.

    Raises:
        UserError: a graph is asked for where the number of iterations is not known beforehand.
    """

    def __init__(self, name: str, memory: int = 0, stops_early: bool = False):
        self.name, self.memory, self.stops_early = name, memory, stops_early
        self.used: dict[int, str] = {}
        self.whole_batches = False
        self._graphs: dict[int, RecursionGraph] = {}
        self.choose(torch.device("cpu"))

    def choose(self, device: torch.device, direct: bool = True) -> str:
        """``literal``, ``reduced`` or ``graph``: what the name comes to.

        Args:
            device: of the weights.
            direct: whether a step is nothing but the optimizer's.

        Raises:
            UserError: a graph is asked for where there can be none.
        """
        if self.name in ("literal", "reduced"):
            return self.name
        obstacle = None
        if not direct:
            obstacle = "steps of several devices, with --clip-each, or in a rule's own way are not captured"
        elif self.stops_early:
            obstacle = "how many iterations --feedback-stop-distance leaves is not known beforehand"
        if obstacle and self.name == "graph":
            raise UserError(f"--engine graph: {obstacle}; use --engine auto.")
        return "graph" if not obstacle and (self.name == "graph" or device.type == "cuda") else "reduced"

    def describe(self, n: int, form: ReducedLDRL | str) -> str:
        """In words: how layer n is trained, whose reduced form is ``form``, or that has none because of ``form``."""
        if self.name == "literal":
            return "literal, as asked"
        if isinstance(form, str):
            return f"literal: {form}"
        if self.used.get(n) != "graph":
            return "reduced"
        return f"reduced, {'in batches' if self.whole_batches else 'its recursion'} replayed as one graph"

    def train(
        self,
        problems: Sequence[FeedbackProblem],
        optimizers: dict[int, Optimizer],
        step: Step | None = None,
        average: Average | None = None,
    ) -> FeedbackResult:
        """Train every layer for its iterations.

        Args:
            problems: one for each layer.
            optimizers: of each layer's feedback weights.
            step: how gradients become steps, as for :func:`~dtp.feedback.train_feedback`; None for nothing but a step
                of each optimizer, which is quicker and can be captured.
            average: how gradients of this rank become those of all, likewise; None for one rank.
        """
        if not problems:
            return FeedbackResult({}, {})
        expected = [problem for problem in problems if problem.expected is not None]
        if expected:
            known = train_in_expectation(expected, optimizers, step, average)
            others = self.train([p for p in problems if p.expected is None], optimizers, step, average)
            self.used = {**(self.used if others.losses else {}), **{p.layer: "expected" for p in expected}}
            return FeedbackResult({**others.losses, **known.losses}, {**others.steps, **known.steps})
        memory = self._memory_on(problems[0].parameters[0].device)
        self.used = {problem.layer: "literal" if problem.reduced is None else "reduced" for problem in problems}
        graphs = self._graphs_of(problems, optimizers, step is None and average is None)
        if not graphs:
            return train_feedback(problems, step or steps_of(optimizers), memory, average)
        others = train_feedback([p for p in problems if p.layer not in graphs], steps_of(optimizers), memory)
        graphed = train_feedback_in_graphs([p for p in problems if p.layer in graphs], graphs, memory)
        self.used.update({n: "reduced" if graph.failed else "graph" for n, graph in graphs.items()})
        return FeedbackResult({**others.losses, **graphed.losses}, {**others.steps, **graphed.steps})

    def _graphs_of(
        self,
        problems: Sequence[FeedbackProblem],
        optimizers: dict[int, Optimizer],
        direct: bool,
    ) -> dict[int, RecursionGraph]:
        """The graphs of the layers that are trained in one."""
        engine = self.choose(problems[0].parameters[0].device, direct)
        if engine != "graph" or shared_weights(problems):
            return {}
        return {
            problem.layer: self._graph(problem, optimizers[problem.layer])
            for problem in problems
            if problem.reduced is not None and capturable(optimizers[problem.layer])
        }

    def forget_graphs(self) -> None:
        """Drop all graphs: what they hold of the device is gone or free for others, and they are made anew when needed.

        For the end of a fit, when Lightning frees the workspaces of cuBLAS, at whose addresses they would go on.
        """
        self._graphs.clear()

    def costs(
        self,
        problems: Sequence[FeedbackProblem],
        optimizers: dict[int, Optimizer],
        direct: bool = True,
    ) -> dict[int, float]:
        """Seconds that each problem takes in a batch, measured in the form that :meth:`train` would take.

        Weights and states of optimizers are what they were. In the literal or reduced form the steps are left out, see
        :func:`~dtp.feedback.loop.time_iterations`. Graphs are dropped: most layers will be others' to train.

        Args:
            problems, optimizers: as for :meth:`train`.
            direct: whether neither ``step`` nor ``average`` will be given.
        """
        if not problems:
            return {}
        memory = self._memory_on(problems[0].parameters[0].device)
        graphs = self._graphs_of(problems, optimizers, direct)
        costs = {p.layer: time_iterations(p, memory) for p in problems if p.layer not in graphs}
        for problem in problems:
            if problem.layer in graphs:
                with _unchanged(optimizers[problem.layer], problem.parameters):
                    costs[problem.layer] = time_graph(problem, graphs, memory)
        self.forget_graphs()
        return costs

    def _memory_on(self, device: torch.device) -> int:
        if self.memory or device.type != "cuda":
            return self.memory or 64 << 20
        return min(4096 << 20, torch.cuda.get_device_properties(device).total_memory // 16)

    def _graph(self, problem: FeedbackProblem, optimizer: Optimizer) -> RecursionGraph:
        known = self._graphs.get(problem.layer)
        if known is None or known.optimizer is not optimizer or not _same(known.parameters, problem.parameters):
            capture = cuda_graph if problem.parameters[0].device.type == "cuda" else plain
            capture = None if self.whole_batches else capture
            known = RecursionGraph(problem.parameters, optimizer, capture)
            self._graphs[problem.layer] = known
        return known


@contextmanager
def _unchanged(optimizer: Optimizer, parameters: Sequence[Tensor]) -> Iterator[None]:
    """Afterwards the parameters and their optimizer's state are what they were, at the same addresses."""
    weights = [p.detach().clone() for p in parameters]
    known = [p for p in parameters if p in optimizer.state]
    states = {p: {name: (v, _copied(v)) for name, v in optimizer.state[p].items()} for p in known}
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, before in zip(parameters, weights, strict=True):
                parameter.copy_(before)
                optimizer.state.pop(parameter, None)
                if parameter in states:
                    optimizer.state[parameter] = {name: _restored(*pair) for name, pair in states[parameter].items()}


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _restored(value: Any, before: Any) -> Any:
    return value.copy_(before) if isinstance(value, Tensor) else before


def _same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return [id(p) for p in some] == [id(p) for p in others]
