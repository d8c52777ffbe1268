"""A whole batch as one CUDA graph: two launches of the host in the place of hundreds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dtp.errors import UserError

Learn = Callable[[Tensor, Tensor], tuple[tuple[str, ...], Tensor]]
Replay = Callable[[], None]
# Batches that are learned from plainly before one of their kind is captured: libraries choose their algorithms, and
# optimizers make their state.
PLAIN = 3
# Each learning rate has its own graph, and each graph holds memory.
MOST = 2


class CapturedBatches:
    """Learns from batches by replaying one that was captured, wherever the next is of the same kind.

    Args:
        learn: learns from images and goals, and returns names of scalars and their values, (len(names),). A fixed
            sequence of operations on the device: nothing in it waits for the device or depends on a value there.
        capture: records what a function does, perhaps without doing it, and returns what does it.
    """

    def __init__(self, learn: Learn, capture: Callable[[Replay], Replay] | None = None):
        self.learn, self.capture = learn, capture or _cuda_graph
        self._seen: dict[Any, int] = {}
        self._largest = 0
        self._graphs: dict[Any, tuple[Replay, Sequence[Tensor], dict[str, Any]]] = {}

    def __call__(self, x: Tensor, y: Tensor, kind: Any, values: Any) -> tuple[tuple[str, ...], Tensor]:
        """Learn from a batch. What is returned holds until the next.

        Args:
            x, y: images and goals.
            kind: what else tells one sequence of operations from another.
            values: numbers that are part of the sequence, such as learning rates, and addresses.

        Raises:
            UserError: the batch cannot be captured.
        """
        kind = (kind, x.shape, x.stride(), x.dtype, y.shape, y.dtype)
        seen = self._seen[kind] = self._seen.get(kind, 0) + 1
        self._largest = max(self._largest, len(x))
        # The rest of an epoch comes once in each.
        if seen <= PLAIN or len(x) < self._largest:
            return self.learn(x, y)
        key = kind, values
        if key not in self._graphs:
            while len(self._graphs) >= MOST:
                self._graphs.pop(next(iter(self._graphs)))
            self._graphs[key] = self._captured(x, y)
        replay, static, found = self._graphs[key]
        for held, given in zip(static, (x, y), strict=True):
            held.copy_(given)
        replay()
        return found["names"], found["values"]

    def _captured(self, x: Tensor, y: Tensor) -> tuple[Replay, Sequence[Tensor], dict[str, Any]]:
        static, found = (x.clone(), y.clone()), {}

        def once() -> None:
            found["names"], found["values"] = self.learn(*static)

        try:
            replay = self.capture(once)
        except RuntimeError as error:
            # The allocator and the random generator may still be in the state of a capture: nothing can go on.
            raise UserError(
                f"A batch could not be captured as a CUDA graph ({str(error).strip().splitlines()[0]}); go on with "
                "--resume auto --capture no."
            ) from error
        return replay, static, found


def _cuda_graph(function: Replay) -> Replay:
    graph = torch.cuda.CUDAGraph()
    # What a data loader's thread does meanwhile is not part of it.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        function()
    return graph.replay
