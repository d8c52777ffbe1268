"""A whole batch as one CUDA graph: the host launches twice instead of hundreds of times."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from dtp.errors import UserError, first_reason
from dtp.models.modules import RandomOperation
from dtp.models.network import Network
from dtp.models.shapes import has_hooks

Learn = Callable[[Tensor, Tensor], tuple[tuple[str, ...], Tensor]]
Replay = Callable[[], None]
Capture = Callable[[Replay, Sequence[torch.Generator]], Replay]
# Batches that are learned from plainly before one of their kind is captured: libraries choose their algorithms, and
# optimizers make their state.
PLAIN = 3


class CapturedBatches:
    """Learns from batches by replaying one that was captured, wherever the next is of the same kind.

    Random numbers of a replay are those that the generators would have given without it, and leave them in the same
    state. One graph is kept, for each holds the memory of a batch: another learning rate is captured anew, from its
    second batch on. The first makes what is kept for such numbers, as rates on the device, and where they change with
    every batch none is captured.

    Args:
        learn: learns from images and goals, and returns names of scalars and their values, (len(names),). A fixed
            sequence of operations on the device: nothing in it waits for the device or depends on a value there.
        capture: records what a function does, perhaps without doing it, and returns what does it. It is also given the
            generators that the function draws from.
        generators: what gives these, besides torch's own.
    """

    def __init__(
        self,
        learn: Learn,
        capture: Capture | None = None,
        generators: Callable[[], Sequence[torch.Generator]] = list,
    ):
        self.learn, self.capture, self.generators = learn, capture or _cuda_graph, generators
        self.forget()

    def forget(self) -> None:
        """Begin anew: drop the graph, its memory, and what was seen."""
        self._seen: dict[Any, int] = {}
        # By kind, the numbers of the batch before.
        self._before: dict[Any, Any] = {}
        self._largest = 0
        self._graph: tuple[Any, Replay, Sequence[Tensor], dict[str, Any]] | None = None
        self._captures = 0

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
        # The generators themselves: others may come to have their addresses.
        fixed = values, tuple(self.generators())
        key, is_new = (kind, fixed), self._before.get(kind) != fixed
        self._before[kind] = fixed
        # The rest of an epoch comes once in each.
        is_rest = len(x) < self._largest
        if self._graph is not None and self._graph[0] != key and not is_rest:
            # First, for its memory is needed.
            self._graph = None
        if seen <= PLAIN or is_new or is_rest:
            return self.learn(x, y)
        if self._graph is None:
            self._graph = key, *self._captured(x, y)
        _, replay, static, found = self._graph
        for held, given in zip(static, (x, y), strict=True):
            held.copy_(given)
        replay()
        return found["names"], found["values"]

    def _captured(self, x: Tensor, y: Tensor) -> tuple[Replay, Sequence[Tensor], dict[str, Any]]:
        static, found = (x.clone(), y.clone()), {}
        if not self._captures:
            # A node of autograd that still lives, in a dead cycle say, belongs to the stream that it was made on; and a
            # capture that waits for another stream fails. Once, for it takes as long as many batches.
            gc.collect()
        self._captures += 1

        def once() -> None:
            found["names"], found["values"] = self.learn(*static)

        before = sys.exception()
        try:
            replay = self.capture(once, self.generators())
        except RuntimeError as error:
            # The allocator and the random generator may still be in the state of a capture: nothing can go on. The
            # end of a capture that has failed raises an error of its own.
            raise UserError(
                f"A batch could not be captured as a CUDA graph ({first_reason(error, before)}); go on with --resume "
                "auto --capture no."
            ) from error
        return replay, static, found


def _cuda_graph(function: Replay, generators: Sequence[torch.Generator]) -> Replay:
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        # A replay then draws from where the generator is, and moves it on as what was captured would have.
        graph.register_generator_state(generator)
    # What a data loader's thread does meanwhile is not part of it.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        function()
    return graph.replay


def repeats(network: Network, modules: Iterable[torch.nn.Module]) -> bool:
    """Whether a rule's modules do the same operations on every batch, and draw nothing.

    Of a user's own modules that is not known: what they do on the host would be done once.

    Args:
        network: the rule's.
        modules: all of the rule, with those of its feedback.
    """
    varies = any(
        isinstance(module, RandomOperation | _DropoutNd)
        or has_hooks(module)
        # It weighs its statistics by a count that the host reads.
        or (isinstance(module, _BatchNorm) and module.momentum is None)
        for module in modules
    )
    # A network of the user's own is one more list of layers, unless it has a pass of its own.
    listed = type(network).forward is Network.forward
    known = all(map(_is_shipped, network.layers.modules() if listed else network.modules()))
    return known and not varies


def _is_shipped(module: torch.nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] in ("torch", "dtp")
