import numpy as np
import pytest

from dtp.data.sampler import OrderedBatches, TrainingBatches
from dtp.errors import UserError


def collect(batches) -> list[tuple[int, list[int]]]:
    return [(epoch, positions.tolist()) for epoch, positions in batches]


def test_a_pass_holds_each_image_at_most_once_and_drops_the_partial_batch():
    batches = TrainingBatches(size=103, batch_size=10, seed=0)
    first = collect(batches)
    seen = [position for _, positions in first for position in positions]
    assert len(first) == len(batches) == 10
    assert len(set(seen)) == len(seen) == 100


def test_each_pass_has_its_own_order_and_the_seed_decides_it():
    batches = TrainingBatches(100, 10, seed=0)
    first, second = collect(batches), collect(batches)
    assert [epoch for epoch, _ in first + second] == [0] * 10 + [1] * 10
    assert first != [(0, positions) for _, positions in second]
    assert collect(TrainingBatches(100, 10, seed=0)) == first
    assert collect(TrainingBatches(100, 10, seed=1)) != first


def test_a_seed_has_the_order_that_it_had_in_the_first_release():
    batches = TrainingBatches(10, 5, seed=0)
    assert collect(batches) == [(0, [4, 7, 9, 2, 0]), (0, [3, 1, 6, 8, 5])]
    assert collect(batches) == [(1, [7, 9, 5, 2, 3]), (1, [0, 8, 4, 1, 6])]


def test_fewer_images_than_a_batch_make_one_partial_batch():
    batches = TrainingBatches(size=7, batch_size=10, seed=0)
    assert len(batches) == 1
    assert sorted(collect(batches)[0][1]) == list(range(7))


def test_ranks_share_each_global_batch_whatever_their_number():
    alone = collect(TrainingBatches(100, 12, seed=0))
    shared = [collect(TrainingBatches(100, 12, seed=0, rank=rank, ranks=3)) for rank in range(3)]
    assert {len(part) for part in shared} == {len(alone)}
    for batch, parts in zip(alone, zip(*shared, strict=True), strict=True):
        assert {len(positions) for _, positions in parts} == {4}
        assert sorted(batch[1]) == sorted(position for _, positions in parts for position in positions)


def test_batches_that_ranks_cannot_share_evenly_are_refused():
    for batch_size, instead in ((32, 30), (2, 3)):
        with pytest.raises(UserError, match=f"multiple of the 3 devices.*found {batch_size}; give {instead} or"):
            TrainingBatches(100, batch_size, seed=0, ranks=3)


def test_ranks_with_less_than_a_batch_each_hold_equally_many():
    shared = [collect(TrainingBatches(11, 12, seed=0, rank=rank, ranks=3)) for rank in range(3)]
    assert [[len(positions) for _, positions in part] for part in shared] == [[3]] * 3


def test_fewer_images_than_ranks_are_refused_and_as_many_are_not():
    assert sorted(next(iter(TrainingBatches(3, 9, 0, rank, 3)))[1].tolist() for rank in range(3)) == [[0], [1], [2]]
    with pytest.raises(UserError, match="training image per device, found 2 for 3 devices"):
        TrainingBatches(2, 9, seed=0, ranks=3)


@pytest.mark.parametrize("done", [0, 3, 9, 10, 24])
def test_an_iterator_starts_after_the_batches_done_and_runs_one_length(done):
    batches = TrainingBatches(100, 10, seed=0)
    stream = [batch for _ in range(4) for batch in collect(batches)]
    resumed = TrainingBatches(100, 10, seed=0, batches_done=lambda: done)
    assert collect(resumed) == stream[done : done + 10]
    assert len(resumed) == 10


def test_the_place_is_read_when_the_iterator_is_made():
    done = 3
    batches = TrainingBatches(100, 10, seed=0, batches_done=lambda: done)
    expected, iterator = collect(batches), iter(batches)
    done = 7
    assert collect(iterator) == expected


@pytest.mark.parametrize("ranks", [1, 3])
def test_evaluation_holds_every_image_once_in_order(ranks):
    parts = [OrderedBatches(25, 4, rank, ranks) for rank in range(ranks)]
    seen = [np.concatenate([positions for _, positions in part]).tolist() for part in parts]
    assert [len(part) for part in parts] == [len(list(part)) for part in parts]
    assert seen == [list(range(rank, 25, ranks)) for rank in range(ranks)]
