"""The recursion on the feedback weights as a CUDA graph: one launch for many iterations, without Python in between.

What does not depend on the weights is computed ahead (``ReducedLDRL.constants``) and copied to fixed addresses; then
the captured sequence of gradients and optimizer steps is replayed. Layers are independent, so each runs on a stream of
its own. On a CPU the same code runs with the plain function in the place of the graph.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dtp.errors import UserError, first_reason
from dtp.feedback.loop import FeedbackProblem, FeedbackResult, wait_for
from dtp.feedback.reduced import Constants, ReducedLDRL
from dtp.feedback.steppers import Stepper, capturable_stepper, prepare_state

# Of one layer: each size of batch and of part has its own, and each holds memory.
MOST_GRAPHS = 4

Replay = Callable[[], None]
Capture = Callable[[Replay], Replay]


def cuda_graph(function: Replay) -> Replay:
    """Capture ``function``, which must have run before on the current stream, and return what replays it there."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
        function()
    return graph.replay


def plain(function: Replay) -> Replay:
    """In the place of :func:`cuda_graph` where there is none."""
    return function


def recursion(
    form: ReducedLDRL, constants: Constants, batch: int, parameters: Sequence[Tensor], step: Stepper
) -> Tensor:
    """The iterations of ``constants`` in sequence: gradient, step. Returns the loss at the last one, before its step.

    Nothing in it waits for the device, looks at a value or depends on anything but tensors at fixed addresses, so it
    can be captured. ``step`` may average the gradients over ranks before it steps.
    """
    scale, last = form.scale(batch), len(constants.gradient) - 1
    for i, constant in enumerate(constants.gradient):
        quadratic = form.quadratic_gradient(constants, i)
        if i == last:
            loss = form.loss(constant, quadratic, batch)
        step(form.gradients(parameters, torch.add(constant, quadratic, alpha=scale)))
    return loss


class RecursionGraph:
    """:func:`recursion` for one layer at fixed addresses.

    The first use runs the recursion plainly and then captures it. The capture is checked: its replay must give the
    weights that the plain run gave. Where it does not, the plain recursion is used from then on, with a warning.

    Args:
        parameters: feedback weights of the layer.
        optimizer: theirs. Its hyper-parameters are read when the graph is made.
        capture: makes the graph; None for none, where the recursion is part of something larger that is captured.

    Attributes:
        failed: whether a replay was wrong, and the plain recursion is used.

    Raises:
        UserError: on the first use, where nothing can be captured.
    """

    def __init__(self, parameters: Sequence[Tensor], optimizer: Optimizer, capture: Capture | None):
        self.parameters, self.optimizer, self.capture = tuple(parameters), optimizer, capture
        self.step = capturable_stepper(optimizer, self.parameters)
        self._replays: dict[Any, tuple[Replay, Constants, Tensor]] = {}
        self.failed = False
        self._stream: Any = None

    @torch.no_grad()
    def __call__(self, form: ReducedLDRL, constants: Constants, batch: int) -> Tensor:
        """Take the steps of ``constants``. Returns the loss at the last one, a scalar that the next call overwrites."""
        if self.failed or self.capture is None:
            prepare_state(self.optimizer, self.parameters)
            return recursion(form, constants, batch, self.parameters, self.step)
        key = self._key(form, constants, batch)
        if key not in self._replays:
            # Weights or optimizer state at other addresses (a checkpoint was loaded) leave nothing to replay.
            if any(old[0] != key[0] for old in self._replays):
                self._replays.clear()
            return self._first(form, constants, batch, self.capture)
        replay, static, loss = self._replays[key]
        static.gradient.copy_(constants.gradient)
        static.q.copy_(constants.q)
        replay()
        return loss

    def stream(self, device: torch.device) -> Any:
        """The CUDA stream of this layer; None on a CPU."""
        if device.type == "cuda" and self._stream is None:
            self._stream = torch.cuda.Stream(device)
        return self._stream

    def _first(self, form: ReducedLDRL, constants: Constants, batch: int, capture: Capture) -> Tensor:
        """Run the recursion plainly on the side, capture it, check the capture."""
        prepare_state(self.optimizer, self.parameters)
        before = [t.clone() for t in self._tensors()]
        # A copy in a layout of its own: the constants of later batches are copied over it.
        static = Constants(constants.gradient.clone(), constants.q.clone(), constants.summed)
        loss = constants.gradient.new_zeros(())

        def run() -> None:
            loss.copy_(recursion(form, static, batch, self.parameters, self.step))

        run()
        after = [t.clone() for t in self._tensors()]
        _copy(before, self._tensors())
        handled = sys.exception()
        try:
            replay = capture(run)
            replay()
        except RuntimeError as error:
            # The allocator and the random generator may still be in capture: nothing on the device is safe any more.
            # The end of a capture that has failed raises an error of its own.
            reason = first_reason(error, handled)
            raise UserError(
                f"The feedback recursion could not be captured as a CUDA graph ({reason}); use --engine reduced."
            ) from error
        if any(_differ(a, b) for a, b in zip(after, self._tensors(), strict=True)):
            return self._give_up(after, loss)
        while len(self._replays) >= MOST_GRAPHS:
            self._replays.pop(next(iter(self._replays)))
        self._replays[self._key(form, constants, batch)] = replay, static, loss
        return loss

    def _give_up(self, after: Sequence[Tensor], loss: Tensor) -> Tensor:
        warnings.warn(
            "The feedback recursion goes on without a CUDA graph, more slowly: its replay differs from the plain "
            "recursion. --engine reduced avoids it.",
            stacklevel=2,
        )
        self.failed = True
        self._replays.clear()
        _copy(after, self._tensors())
        return loss

    def _tensors(self) -> list[Tensor]:
        """Everything that a step changes."""
        states = [self.optimizer.state[p] for p in self.parameters]
        return [*self.parameters, *(v for state in states for v in state.values() if isinstance(v, Tensor))]

    def _key(self, form: ReducedLDRL, constants: Constants, batch: int) -> Any:
        addresses = tuple(t.data_ptr() for t in self._tensors())
        group = self.optimizer.param_groups[0]
        settings = tuple(value for value in group.values() if isinstance(value, int | float | tuple))
        shared = (form.scale(batch), id(form.map), constants.summed)
        return (addresses, settings), shared, constants.gradient.shape, constants.q.shape, constants.q.stride()


def _differ(a: Tensor, b: Tensor) -> bool:
    """By more than sums in another order make of rounding; diverged weights, NaN in both, do not."""
    return bool((a - b).norm() > 1e-3 * a.norm() + 1e-12)


def _copy(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    for a, b in zip(source, target, strict=True):
        b.copy_(a)


def train_feedback_in_graphs(
    problems: Sequence[FeedbackProblem], graphs: dict[int, RecursionGraph], memory: int
) -> FeedbackResult:
    """:func:`~dtp.feedback.train_feedback` for layers in reduced form, each on a CUDA stream of its own.

    Args:
        problems: all in reduced form.
        graphs: of each layer, from one batch to the next.
        memory: bytes that a layer may take for the constants of several iterations at once.
    """
    losses, streams = {}, []
    for problem in problems:
        if problem.iterations == 0:
            continue
        device, form = problem.parameters[0].device, problem.reduced
        assert form is not None and problem.clean is not None
        # Of the present stream, which uses and frees it.
        losses[problem.layer] = problem.parameters[0].new_zeros(())
        current = torch.cuda.current_stream(device) if device.type == "cuda" else None
        stream = graphs[problem.layer].stream(device)
        with _on(stream, after=current):
            s_in, s_out, context = problem.clean
            clean = form.clean_pass(s_in, s_out, context)
            most = max(1, memory // form.bytes_per_iteration(clean, s_in))
            for size in even_parts(int(problem.iterations), most):
                constants = form.constants(clean, problem.noise(size), size)
                loss = graphs[problem.layer](form, constants, len(s_out))
            losses[problem.layer].copy_(loss)
        if stream is not None:
            streams.append((stream, current))
    for stream, current in streams:
        current.wait_stream(stream)
    return FeedbackResult(losses, {problem.layer: problem.iterations for problem in problems if problem.iterations})


def time_graph(problem: FeedbackProblem, graphs: dict[int, RecursionGraph], memory: int) -> float:
    """Seconds that a layer takes in a batch, captured beforehand. Its weights take the steps."""
    # The first time plainly, and captured.
    train_feedback_in_graphs([problem], graphs, memory)
    wait_for(problem.parameters[0])
    began = time.perf_counter()
    train_feedback_in_graphs([problem], graphs, memory)
    wait_for(problem.parameters[0])
    return time.perf_counter() - began


def even_parts(total: int, most: int) -> list[int]:
    """``total`` in the fewest parts of at most ``most``, of at most two sizes: each size is a graph of its own."""
    count = -(-total // most)
    return [total * (i + 1) // count - total * i // count for i in range(count)]


@contextmanager
def _on(stream: Any, after: Any) -> Iterator[None]:
    """Run on ``stream``, once all that was asked of the stream ``after`` is done; None: where it is."""
    if stream is None:
        yield
        return
    stream.wait_stream(after)
    with torch.cuda.stream(stream):
        yield
