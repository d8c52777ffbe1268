"""Which images make up which batch, on which rank.

Training is one endless stream of batches. Batch number k of the run is batch ``k % n`` of the pass ``k // n`` over
the data, where n is the number of batches in one pass, and each pass has its own order. Where a run stands in the
stream is the number of batches it has trained on, which Lightning counts and saves in every checkpoint. So an
iterator made at any moment starts at the right place: a new epoch, a resume at a batch or at the end of an epoch, an
epoch cut short by ``limit_train_batches`` or ``max_steps``, or a look at the loader that Lightning throws away.
Lightning's own epoch counters cannot be used for this: on a resume it makes the first iterator before it tells the
sampler the epoch, and under ``max_steps`` it counts an epoch twice.
"""

from collections.abc import Callable, Iterator

import numpy as np

from dtp.data.hashing import ORDER, permutation
from dtp.errors import UserError

# (pass over the data, positions in the dataset): all that a worker needs to know to make one batch.
Batch = tuple[int, np.ndarray]


class TrainingBatches:
    """Batch sampler for training: a new order in each pass over the data, the same number of batches on every rank.

    The last, partial batch of a pass is dropped, unless it is the only one. Rank r takes every ``ranks``-th image of
    each batch, so that batch k over all ranks together holds the same images however many ranks share it.

    Args:
        size: number of images in the training set.
        batch_size: images per batch, over all ranks.
        seed: of the order, the same on every rank.
        ranks: number of processes that share the data.
        batches_done: returns how many batches the run has trained on. Without it each new iterator is the next pass.

    Raises:
        UserError: there are fewer images than ranks, or a batch cannot be divided evenly.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        batches_done: Callable[[], int] | None = None,
    ):
        require_one_each("train", size, ranks)
        require_even_shares(batch_size, ranks)
        self.size, self.seed, self.rank, self.ranks = size, seed, rank, ranks
        self.batch_size = min(batch_size, size - size % ranks)
        self.batches_done = batches_done
        self._next = 0

    def __len__(self) -> int:
        """Batches in one pass over the data, the same on each rank."""
        return self.size // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        # Not a generator itself: the place in the stream is read when the iterator is made, also without workers.
        start = self._next if self.batches_done is None else self.batches_done()
        return self._stream(start, start + len(self))

    def _stream(self, start: int, stop: int) -> Iterator[Batch]:
        # Only here, when the first batch is fetched: a DataLoader with workers makes iterators that it never uses.
        self._next = stop
        shuffled, order = None, np.empty(0, dtype=np.int64)
        for number in range(start, stop):
            epoch, batch = divmod(number, len(self))
            if epoch != shuffled:
                shuffled, order = epoch, permutation(self.size, self.seed, ORDER, epoch)
            whole = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield epoch, whole[self.rank :: self.ranks]


class OrderedBatches:
    """Batch sampler for evaluation: every image once, in order; rank r takes every ``ranks``-th.

    The last ranks may hold one image, and so one batch, fewer than the first.
    """

    def __init__(self, size: int, batch_size: int, rank: int = 0, ranks: int = 1):
        self.positions = np.arange(rank, size, ranks)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.positions) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.positions), self.batch_size):
            yield 0, self.positions[start : start + self.batch_size]


def require_one_each(part: str, size: int, ranks: int) -> None:
    """Raise UserError unless each of ``ranks`` ranks can have an image of ``part``: train, val or test."""
    if size < ranks:
        kind, more = {
            "train": ("training", ", a smaller --val-size or more data"),
            "val": ("validation", ", a larger --val-size (0 for none) or more data"),
            "test": ("test", " or more data"),
        }[part]
        raise UserError(
            f"Expected at least one {kind} image per device, found {size} for {ranks} devices; use fewer devices{more}."
        )


def require_even_shares(batch_size: int, ranks: int) -> None:
    """Raise UserError unless ``ranks`` ranks can have equally many of ``batch_size`` images."""
    if batch_size % ranks:
        raise UserError(
            f"--batch-size: expected a multiple of the {ranks} devices, which share each batch evenly, found "
            f"{batch_size}; give {max(batch_size // ranks, 1) * ranks} or use another number of devices."
        )
