"""Noise of the feedback phase: one random stream for each feedback layer, apart from all other randomness."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from dtp.models.shapes import channels_last


class NoiseStreams:
    """Gaussian noise from one ``torch.Generator`` per feedback layer.

    A layer's noise depends on (seed, rank, layer) and on how much of it was drawn, never on other layers, so layers may
    be trained in any order or place. The states belong into the checkpoint: then a run that stopped anywhere goes on
    with the very noise it would have had.

    Args:
        seed: the run's seed.
        rank: of this process; ranks that see different images need different noise.
    """

    def __init__(self, seed: int, rank: int = 0):
        self.seed = seed
        self.rank = rank
        self._generators: dict[int, torch.Generator] = {}
        self._restored: dict[int, Tensor] = {}
        self._common: set[int] = set()
        self._epoch = 0

    def normal(self, n: int, shape: Sequence[int], scale: float, like: Tensor, common: bool = False) -> Tensor:
        """Noise of standard deviation ``scale`` for layer n, of ``shape``, with the dtype and device of ``like``.

        It also has the memory format of ``like``, and numbers follow each other in memory as they were drawn.
        ``common`` noise, of layers that have no other, is the same on every rank: where it has nothing to do with the
        images that the rank sees.
        """
        if common:
            self._common.add(n)
        return self.normals(n, [shape], scale, [like], 1)[0]

    def normals(
        self, n: int, shapes: Sequence[Sequence[int]], scale: float, likes: Sequence[Tensor], times: int
    ) -> list[Tensor]:
        """As often as ``times`` the noise of each of ``shapes`` in turn, the numbers that :meth:`normal` would give.

        Draws for one shape follow each other along the first dimension, (times * shape[0], ...), written in place.
        """
        maps, rooms = [channels_last(like) for like in likes], []
        for (rows, *shape), like, last in zip(shapes, likes, maps, strict=True):
            drawn = (times, rows, *shape[1:], shape[0]) if last else (times, rows, *shape)
            rooms.append(torch.empty(drawn, dtype=like.dtype, device=like.device))
        for i in range(times):
            for room in rooms:
                room[i].normal_(0.0, scale, generator=self._generator(n, room.device))
        joined = [room.flatten(0, 1) for room in rooms]
        return [noise.movedim(-1, 1) if last else noise for noise, last in zip(joined, maps, strict=True)]

    def generators(self) -> list[torch.Generator]:
        """Those that have been drawn from."""
        return list(self._generators.values())

    def state_dict(self) -> dict[str, Any]:
        """The seed and, by layer, the state of each stream that was drawn from: uint8 tensors on the CPU."""
        states = {n: generator.get_state() for n, generator in self._generators.items()}
        states = {**self._restored, **states}
        return {"seed": self.seed, "epoch": self._epoch, "states": states, "common": sorted(self._common)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the streams that gave ``state``, with their seed; ``rank`` stays that of this process.

        A stream whose generator is on another kind of device than before, with states of another size, starts anew.
        """
        self.seed, self._epoch = state["seed"], state["epoch"]
        self._generators.clear()
        self._restored, self._common = dict(state["states"]), set(state["common"])

    def restart(self, epoch: int, other: dict[str, Any] | None = None) -> None:
        """Begin fresh streams for a rank that has no saved state, different from those of any earlier start.

        Noise that is common to all ranks goes on as in ``other``, the saved state of another rank.
        """
        self._generators.clear()
        self._restored.clear()
        if other is not None:
            self.load_state_dict(other)
            self._restored = {n: state for n, state in self._restored.items() if n in self._common}
        self._epoch = epoch

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Within it noise comes from copies of the streams; after it they go on as if none had been drawn.

        Their generators stay the same objects, which captured graphs draw from.
        """
        own, restored, common = self._generators, self._restored, self._common
        self._restored, self._common = self.state_dict()["states"], set(common)
        self._generators = {}
        try:
            yield
        finally:
            self._generators, self._restored, self._common = own, restored, common

    def _generator(self, n: int, device: torch.device) -> torch.Generator:
        generator = self._generators.get(n)
        if generator is None or generator.device != device:
            numbers = (0, n, 0) if n in self._common else (self.rank, n, self._epoch)
            generator = seeded_generator(device, self.seed, *numbers)
            state = self._restored.pop(n, None)
            # States of CPU and CUDA generators have other sizes; on another kind of device the stream starts anew.
            if state is not None and state.shape == generator.get_state().shape:
                generator.set_state(state)
            self._generators[n] = generator
        return generator


@contextmanager
def seeded_randomness(device: torch.device, *numbers: int | str) -> Iterator[None]:
    """Within it torch's global generators, of the CPU and of ``device``, draw what is a function of ``numbers`` alone.

    After it they go on as if it had not been.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    before = [generator.get_state() for generator in generators]

    def put_back() -> None:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)

    try:
        for generator in generators:
            generator.manual_seed(_mix(*numbers))
        yield
    except BaseException:
        # After a failed capture torch refuses to set that of a GPU, which must not hide why.
        with suppress(RuntimeError):
            put_back()
        raise
    put_back()


def seeded_generator(device: torch.device, *numbers: int) -> torch.Generator:
    """A generator on ``device`` whose numbers are a function of ``numbers`` alone."""
    return torch.Generator(device).manual_seed(_mix(*numbers))


def _mix(*numbers: int | str) -> int:
    """A 63-bit seed; neighbouring arguments give unrelated seeds, which ``manual_seed`` alone does not promise."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
