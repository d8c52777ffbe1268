"""Random numbers that are a function of counters, with no state and no generator.

Every random choice about data (order, augmentation, splits) is a hash of what it is for: a seed, an epoch, an image.
So it does not depend on workers, ranks, batch size, library versions or any global generator, and there is nothing to
save in a checkpoint.
"""

from typing import Any

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1

# What a hash is used for, mixed in first so that different uses of one seed are independent.
ORDER, AUGMENTATION, SPLIT = 1, 2, 3


def _mix(value: Any) -> Any:
    """The output function of splitmix64: a bijection of 64-bit integers that passes for random."""
    value = value + _GOLDEN
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def counter_hash(*counters: int | np.ndarray) -> np.ndarray:
    """64 random bits (uint64) for each tuple of counters: integers, modulo 2^64, or arrays that broadcast together."""
    state = np.uint64(0)
    with np.errstate(over="ignore"):
        for counter in counters:
            word = np.uint64(counter & _MASK) if isinstance(counter, int) else np.asarray(counter).astype(np.uint64)
            state = _mix(state ^ _mix(word))
    return np.asarray(state)


def permutation(length: int, *counters: int) -> np.ndarray:
    """A random order of ``range(length)`` (int64), a function of ``length`` and the counters only."""
    return np.argsort(counter_hash(*counters, np.arange(length)), kind="stable")
