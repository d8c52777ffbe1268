"""The split of training images into training and validation."""

from typing import Literal

import numpy as np

from dtp.data.hashing import SPLIT, counter_hash
from dtp.errors import UserError

# random: any images. stratified: from each class in proportion to its size. balanced: equally many from each class.
SplitKind = Literal["random", "stratified", "balanced"]


def split_indices(labels: np.ndarray, held_out: int, seed: int, kind: SplitKind) -> tuple[np.ndarray, np.ndarray]:
    """Indices (sorted) of the images kept and of the ``held_out`` images; a function of the arguments only."""
    luck = counter_hash(seed, SPLIT, np.arange(len(labels)))
    if kind == "random":
        order = np.argsort(luck, kind="stable")
    else:
        # Place of each image within its own class, in random order: 0 for the first of every class, and so on.
        by_class = np.lexsort((luck, labels))
        sizes = np.bincount(labels)
        starts = np.cumsum(sizes) - sizes
        place = np.empty(len(labels))
        place[by_class] = np.arange(len(labels)) - starts[labels[by_class]]
        if kind == "stratified":
            place = (place + 0.5) / sizes[labels]
        order = np.lexsort((luck, place))
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def count_held_out(val_size: float, available: int, name: str) -> int:
    """Number of images that ``val_size`` (a count, a fraction below 1, or 0) stands for.

    Raises:
        UserError: negative, not a whole number, or nothing would be left to train on.
    """
    whole = float(val_size).is_integer()
    if not val_size >= 0 or (val_size > 1 and not whole):
        raise UserError(
            f"--val-size {val_size:g}: expected a whole number of images, a fraction below 1 or 0; "
            "give for example 5000 or 0.1."
        )
    count = int(val_size) if whole else max(1, round(val_size * available))
    if count >= available:
        raise UserError(
            f"--val-size {count}: {name} has {available} training images, so at most {available - 1} can be held out; "
            "give a smaller --val-size."
        )
    return count
