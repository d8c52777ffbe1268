"""Times of the phases of a batch, without making the host wait for the device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class PhaseTimer:
    """Adds up the seconds spent inside ``with timer.measure(device):``.

    On CUDA the seconds are the device's, from events that are read only by :attr:`seconds`.
    """

    def __init__(self):
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measure(self, device: torch.device) -> Iterator[None]:
        """Count the seconds of the block, which ``device`` spends; nothing is waited for.

        A block that raises is not counted, nor one that is being captured as a CUDA graph.
        """
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            # Of a captured batch no part can be timed by itself.
            yield
        elif device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._events.append((start, end))
        else:
            begin = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - begin

    @property
    def seconds(self) -> float:
        """Seconds so far. Waits for the device where events are outstanding."""
        for start, end in self._events:
            end.synchronize()
            self._seconds += start.elapsed_time(end) / 1000
        self._events.clear()
        return self._seconds

    @seconds.setter
    def seconds(self, value: float) -> None:
        self._events.clear()
        self._seconds = value
