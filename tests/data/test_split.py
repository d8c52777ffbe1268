import numpy as np
import pytest

from dtp.data.split import count_held_out, split_indices
from dtp.errors import UserError

LABELS = np.repeat([0, 1, 2], [10, 30, 60])


@pytest.mark.parametrize("kind", ["random", "stratified", "balanced"])
def test_the_parts_are_disjoint_and_hold_everything(kind):
    kept, held_out = split_indices(LABELS, 20, 0, kind)
    assert len(held_out) == 20
    assert sorted([*kept, *held_out]) == list(range(100))
    assert kept.tolist() == sorted(kept) and held_out.tolist() == sorted(held_out)


@pytest.mark.parametrize("kind", ["random", "stratified", "balanced"])
def test_the_seed_decides_the_split(kind):
    splits = [split_indices(LABELS, 20, seed, kind)[1].tolist() for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


def test_a_seed_holds_out_the_images_that_it_did_in_the_first_release():
    # Weights of earlier runs are validated, and those of folders without a test part tested, on these.
    assert split_indices(LABELS, 10, 0, "stratified")[1].tolist() == [3, 10, 17, 30, 49, 51, 58, 69, 76, 92]


def test_stratified_is_in_proportion_to_the_classes():
    assert np.bincount(LABELS[split_indices(LABELS, 20, 0, "stratified")[1]]).tolist() == [2, 6, 12]


def test_stratified_is_within_half_an_image_of_the_proportion():
    labels = np.repeat([0, 1, 2], [5, 5, 90])
    counts = np.bincount(labels[split_indices(labels, 10, 0, "stratified")[1]], minlength=3)
    assert (abs(counts - [0.5, 0.5, 9]) <= 0.5).all()


@pytest.mark.parametrize("kind", ["stratified", "balanced"])
def test_luck_says_which_classes_have_one_image_more(kind):
    labels = np.repeat([0, 1, 2], 10)
    held_out = [split_indices(labels, 4, seed, kind)[1] for seed in range(20)]
    assert {int(np.bincount(labels[images]).argmax()) for images in held_out} == {0, 1, 2}


def test_balanced_is_equally_many_of_each_class_as_far_as_they_reach():
    assert np.bincount(LABELS[split_indices(LABELS, 15, 0, "balanced")[1]]).tolist() == [5, 5, 5]
    assert np.bincount(LABELS[split_indices(LABELS, 50, 0, "balanced")[1]]).tolist() == [10, 20, 20]


@pytest.mark.parametrize(("val_size", "count"), [(0, 0), (1, 1), (0.1, 10), (99.0, 99), (0.001, 1), (0.018, 2)])
def test_a_size_is_a_count_or_a_fraction(val_size, count):
    assert count_held_out(val_size, 100, "mnist") == count


@pytest.mark.parametrize("val_size", [-1, -0.1, 1.5, float("nan"), float("inf"), 100, 5000])
def test_impossible_sizes_are_refused_with_the_flag(val_size):
    with pytest.raises(UserError, match=f"--val-size {val_size:g}: "):
        count_held_out(val_size, 100, "mnist")
