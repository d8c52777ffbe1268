"""Mean and standard deviation of every dataset, per channel, of pixels scaled to [0, 1]; and how they are used."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dtp.data.cache import written_atomically
from dtp.errors import UserError


@dataclass(frozen=True)
class Statistics:
    """``mean`` and ``std`` hold one number per channel, for pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


# Over the whole training part, validation images included, as published everywhere.
STATISTICS = {
    "digits": Statistics((0.3054,), (0.3761,)),
    "mnist": Statistics((0.1307,), (0.3081,)),
    "fashion-mnist": Statistics((0.2860,), (0.3530,)),
    "kmnist": Statistics((0.1918,), (0.3483,)),
    "cifar10": Statistics((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Statistics((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet32": Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}

# std3x reproduces published runs on CIFAR-10 that tripled the mean over images of each image's own std, a common slip.
_TRIPLED_STD = {"cifar10": (0.2023, 0.1994, 0.2010)}

# The same for all channels of all datasets.
_FIXED = {"meanstd05": (0.5, 0.5), "unit": (0.0, 1.0)}


def used_statistics(own: Statistics, mode: str, name: str = "") -> Statistics:
    """What is subtracted and divided by.

    Args:
        mode: ``standard`` (its own), ``std3x`` (its mean, three times its std), ``meanstd05`` (0.5 and 0.5), or
            ``unit`` (0 and 1, which leaves pixels in [0, 1]).
        name: of the dataset.

    Raises:
        UserError: ``mode`` is none of these.
    """
    if mode == "standard":
        return own
    if mode == "std3x":
        return Statistics(own.mean, tuple(3 * std for std in _TRIPLED_STD.get(name, own.std)))
    if mode not in _FIXED:
        # A dataset of the user's own may have another word for the option.
        raise UserError(
            f"--normalisation: expected one of standard, std3x, {', '.join(_FIXED)}, found {mode!r}; for other "
            "values override own_statistics, which standard takes."
        )
    mean, std = _FIXED[mode]
    return Statistics((mean,) * len(own.mean), (std,) * len(own.mean))


def compute_statistics(batches: Iterable[np.ndarray]) -> Statistics:
    """Exact statistics of uint8 batches (B, C, H, W). A channel that never varies gets the std of one grey level."""
    histogram = np.zeros((0, 256))
    for batch in batches:
        counts = [np.bincount(batch[:, channel].ravel(), minlength=256) for channel in range(batch.shape[1])]
        histogram = np.asarray(counts) + (histogram if len(histogram) else 0)
    levels = np.arange(256) / 255
    share = histogram / histogram.sum(axis=1, keepdims=True)
    mean = share @ levels
    std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(axis=1))
    return Statistics(tuple(mean.tolist()), tuple(np.maximum(std, 1 / 255).tolist()))


def cached_statistics(path: Path, key: str, channels: int, compute: Callable[[], Statistics]) -> Statistics:
    """The statistics stored in the JSON file ``path`` under ``key``.

    Where there are none that :func:`compute_statistics` can have found of so many channels, they are computed and
    stored there.
    """
    try:
        stored = json.loads(path.read_text())
        found = Statistics(tuple(stored[key]["mean"]), tuple(stored[key]["std"]))
        possible = all(0 <= mean <= 1 for mean in found.mean) and all(1 / 255 <= std <= 1 for std in found.std)
        if possible and len(found.mean) == len(found.std) == channels:
            return found
    except (OSError, ValueError, KeyError, TypeError):
        # Not there yet, or damaged.
        pass
    computed = compute()
    try:
        with written_atomically(path) as temporary:
            temporary.write_text(json.dumps({key: {"mean": computed.mean, "std": computed.std}}, indent=1))
    except UserError:
        # It only saves time.
        pass
    return computed
