"""Means and sums of many tensors over processes, as one collective."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from dtp.models.shapes import channels_last

Gradients = dict[int, tuple[Tensor, ...]]
# (place of the parameter, name, shape, dtype, whether on the host) of each tensor in an optimizer's state.
Layout = list[tuple[int, str, torch.Size, torch.dtype, bool]]


def ranks_of(group: Any = None) -> int:
    """Number of processes in a group (None: all); 1 where nothing is distributed."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


class FlatTensors:
    """Tensors laid end to end, one flat tensor for each dtype and device, and back.

    Args:
        like: tensors whose shapes, dtypes and devices the others have.
        in_memory_order: whether numbers are laid in the order of ``like`` in memory, which must then have the same
            memory format on all ranks; otherwise they are laid in the order of the indices.
    """

    def __init__(self, like: Iterable[Tensor], in_memory_order: bool = False):
        self.like, self.in_memory_order = list(like), in_memory_order
        self._groups: dict[tuple[torch.dtype, torch.device], list[int]] = defaultdict(list)
        for i, tensor in enumerate(self.like):
            self._groups[tensor.dtype, tensor.device].append(i)

    def pack(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Copies of ``tensors``, in the order of ``like``: one vector (numbers,) for each dtype and device.

        Gradients go through it to every tensor.
        """
        return [torch.cat([self._flat(tensors[i], i) for i in places]) for places in self._groups.values()]

    def unpack(self, flats: Sequence[Tensor]) -> list[Tensor]:
        """Views of ``flats``, in the order of ``like``."""
        found: list[Tensor] = [torch.empty(0)] * len(self.like)
        for flat, places in zip(flats, self._groups.values(), strict=True):
            parts = flat.split([self.like[i].numel() for i in places])
            for i, part in zip(places, parts, strict=True):
                found[i] = self._shaped(part, i)
        return found

    def _flat(self, tensor: Tensor, i: int) -> Tensor:
        return (tensor.permute(0, 2, 3, 1) if self._channels_last(i) else tensor).reshape(-1)

    def _shaped(self, flat: Tensor, i: int) -> Tensor:
        if not self._channels_last(i):
            return flat.view(self.like[i].shape)
        n, c, h, w = self.like[i].shape
        return flat.view(n, h, w, c).permute(0, 3, 1, 2)

    def _channels_last(self, i: int) -> bool:
        return self.in_memory_order and channels_last(self.like[i])


@torch.no_grad()
def average_gradients(parameters: Sequence[Tensor]) -> None:
    """Replace each ``.grad`` by its mean over ranks, in one collective per dtype and device.

    A parameter whose gradient is None on every rank keeps None; one that has a gradient on some ranks counts as zero on
    the others, and a sparse one becomes dense. Every rank must call this with the same parameters in the same order.
    """
    ranks = ranks_of()
    if ranks == 1 or not parameters:
        return
    missing = [i for i, p in enumerate(parameters) if p.grad is None]
    flags = parameters[0].new_ones(len(parameters))
    if missing:
        flags[missing] = 0
    # Ranks may have used other rows of an embedding.
    tensors = [flags, *(torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in parameters)]
    flat = FlatTensors([flags, *parameters], in_memory_order=True)
    sums = flat.pack(tensors)
    for total in sums:
        dist.all_reduce(total)
        total.div_(ranks)
    shares, *means = flat.unpack(sums)
    # Only who lacks a gradient must know whether the others have it; nobody else waits for the device here.
    seen = shares.tolist() if missing else None
    for i, (parameter, mean) in enumerate(zip(parameters, means, strict=True)):
        parameter.grad = mean if seen is None or seen[i] else None


class GradientAverage:
    """Means over ranks of the gradients of several layers: one collective, which may be waited for later.

    Args:
        parameters: of each layer.
        group: the processes; None for all.
        weight: of this process, for shares of unequal size: its part of the samples times the number of processes.
    """

    def __init__(self, parameters: Gradients, group: Any = None, weight: float = 1.0):
        self.parameters, self.group = parameters, group
        self.scale = weight / ranks_of(group)
        self._flat: dict[tuple[int, ...], FlatTensors] = {}

    @torch.no_grad()
    def __call__(self, gradients: Gradients) -> Callable[[], Gradients]:
        """Start averaging. Returns a function that waits and gives the means."""
        layers = tuple(gradients)
        if layers not in self._flat:
            weights = [p for n in layers for p in self.parameters[n]]
            self._flat[layers] = FlatTensors(weights, in_memory_order=True)
        flat = self._flat[layers]
        sums = flat.pack([gradient for n in layers for gradient in gradients[n]])
        works = [dist.all_reduce(total.mul_(self.scale), group=self.group, async_op=True) for total in sums]

        def wait() -> Gradients:
            for work in works:
                work.wait()
            means = iter(flat.unpack(sums))
            return {n: tuple(next(means) for _ in self.parameters[n]) for n in layers}

        return wait

    @torch.no_grad()
    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Means over ranks of other tensors, with the same shapes on all, in one collective."""
        flat = FlatTensors(tensors)
        sums = flat.pack(tensors)
        for total in sums:
            dist.all_reduce(total.mul_(self.scale), group=self.group)
        return flat.unpack(sums)


def time_average(parameters: Gradients) -> float:
    """Seconds that averaging gradients of all these parameters over all ranks takes; every rank must call it."""
    average = GradientAverage(parameters)
    zeros = {n: tuple(torch.zeros_like(p) for p in of_layer) for n, of_layer in parameters.items()}
    times = []
    for _ in range(5):
        began = time.perf_counter()
        means = average(zeros)()
        # Reading a number waits for the device.
        next(iter(means.values()))[0].flatten()[0].item()
        times.append(time.perf_counter() - began)
    return min(times)


@torch.no_grad()
def average_tensors(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their means over all ranks, in place, in one collective per dtype and device."""
    ranks = ranks_of()
    if ranks == 1:
        return
    flat = FlatTensors(tensors)
    sums = flat.pack(tensors)
    for total in sums:
        dist.all_reduce(total)
        total.div_(ranks)
    for tensor, mean in zip(tensors, flat.unpack(sums), strict=True):
        tensor.copy_(mean)


def average_training(optimizers: dict[int, Optimizer], device: torch.device) -> None:
    """Average weights and the tensors of the optimizers' states over ranks that have all taken steps."""
    tensors = [t for optimizer in optimizers.values() for t in _training_tensors(optimizer) if t.is_floating_point()]
    _through_device(tensors, device, average_tensors)


@torch.no_grad()
def same_on_all_ranks(x: Tensor) -> bool:
    """Whether all ranks have the same samples, x (B, ...), in the same order; every rank must call this."""
    # Whole numbers: their sums do not depend on the order that a rank adds them in.
    of_samples = x.contiguous().reshape(len(x), -1).view(torch.uint8).sum(1, dtype=torch.int64)
    places = torch.arange(1, len(x) + 1, device=x.device)
    own = torch.stack([places.sum(), (of_samples * places).sum()])
    found = [torch.empty_like(own) for _ in range(ranks_of())]
    dist.all_gather(found, own)
    return all(torch.equal(other, own) for other in found)


class StateExchange:
    """Gives every rank what other ranks' optimizers have made of their layers: weights and optimizer states.

    One collective per dtype, each time. What tensors the states hold is asked for by objects until all optimizers have
    taken a step.
    """

    def __init__(self):
        self._layouts: dict[int, Layout] = {}
        self._settled = False

    @torch.no_grad()
    def __call__(
        self, optimizers: dict[int, Optimizer], owners: dict[int, int], device: torch.device, stepped: bool = True
    ) -> None:
        """Take over each layer from the rank that owns it.

        Args:
            optimizers: by layer, those of all layers on every rank.
            owners: rank that owns each layer.
            device: where the collective takes place.
            stepped: whether this rank has taken a step in each of its layers, now or before.
        """
        if ranks_of() == 1:
            return
        rank = dist.get_rank()
        if not self._settled:
            found: list[Any] = [None] * ranks_of()
            mine = {n: _layout(optimizer) for n, optimizer in optimizers.items() if owners[n] == rank}
            dist.all_gather_object(found, (mine, stepped))
            self._layouts = {n: layout for layouts, _ in found for n, layout in layouts.items()}
            self._settled = all(settled for _, settled in found)
        tensors, owned = [], []
        for n, optimizer in optimizers.items():
            _make_state(optimizer, self._layouts[n])
            of_layer = _training_tensors(optimizer)
            tensors += of_layer
            owned += [owners[n] == rank] * len(of_layer)

        def take_over(values: list[Tensor]) -> None:
            flat = FlatTensors(values)
            # Zero and what the owner has: their sum is exact.
            sums = flat.pack([v if own else torch.zeros_like(v) for v, own in zip(values, owned, strict=True)])
            for total in sums:
                dist.all_reduce(total)
            for value, total, own in zip(values, flat.unpack(sums), owned, strict=True):
                if not own:
                    value.copy_(total)

        _through_device(tensors, device, take_over)


def _through_device(tensors: list[Tensor], device: torch.device, function: Callable[[list[Tensor]], None]) -> None:
    """Apply ``function``, which changes tensors in place, to copies on ``device`` where they lie elsewhere.

    Adam counts its steps on the host, where NCCL does not reach.
    """
    elsewhere = [tensor for tensor in tensors if tensor.device != device]
    if not elsewhere:
        return function(tensors)
    # All of them in one transfer each way.
    flat = FlatTensors(elsewhere)
    parts = [part.to(device) for part in flat.pack(elsewhere)]
    copies = iter(flat.unpack(parts))
    function([tensor if tensor.device == device else next(copies) for tensor in tensors])
    for tensor, changed in zip(elsewhere, flat.unpack([part.to("cpu") for part in parts]), strict=True):
        tensor.copy_(changed)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _training_tensors(optimizer: Optimizer) -> list[Tensor]:
    """Weights, each followed by the tensors of its state in the order of their names."""
    tensors = []
    for parameter in _parameters(optimizer):
        state = optimizer.state.get(parameter, {})
        tensors += [parameter.detach(), *(state[name] for name in sorted(state) if isinstance(state[name], Tensor))]
    return tensors


def _layout(optimizer: Optimizer) -> Layout:
    return [
        (i, name, value.shape, value.dtype, value.device.type == "cpu")
        for i, parameter in enumerate(_parameters(optimizer))
        for name, value in sorted(optimizer.state.get(parameter, {}).items())
        if isinstance(value, Tensor)
    ]


def _make_state(optimizer: Optimizer, layout: Layout) -> None:
    """Make the tensors of a state that are missing, to be filled by another rank's."""
    parameters = _parameters(optimizer)
    for i, name, shape, dtype, on_host in layout:
        state, like = optimizer.state[parameters[i]], parameters[i]
        if name not in state:
            if shape == like.shape and dtype == like.dtype:
                state[name] = torch.zeros_like(like)
            else:
                state[name] = torch.zeros(shape, dtype=dtype, device="cpu" if on_host else like.device)
