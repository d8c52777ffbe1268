import numpy as np
import pytest
import torch

from dtp.data.augmentation import Augmentation

IMAGES = np.random.default_rng(0).integers(1, 256, (64, 3, 8, 8), dtype=np.uint8)
INDICES = np.arange(64)


@pytest.mark.parametrize("mode", ["edge", "zeros"])
def test_each_image_is_a_window_of_its_padded_self_maybe_mirrored(mode):
    made = Augmentation(flip=True, crop_padding=2, padding_mode=mode, seed=1)(IMAGES, 0, INDICES)
    padded = np.pad(IMAGES, ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge" if mode == "edge" else "constant")
    found = set()
    for image, source in zip(made, padded, strict=True):
        places = [
            (top, left, mirrored)
            for top in range(5)
            for left in range(5)
            for mirrored in (False, True)
            if np.array_equal(image[..., ::-1] if mirrored else image, source[:, top : top + 8, left : left + 8])
        ]
        assert len(places) == 1
        found.update(places)
    assert {top for top, _, _ in found} == {left for _, left, _ in found} == set(range(5))
    assert {mirrored for _, _, mirrored in found} == {False, True}


def test_images_are_turned_upside_down_independently_of_mirroring():
    images = np.arange(4, dtype=np.uint8).reshape(1, 1, 2, 2).repeat(4000, 0)
    made = Augmentation(True, 0, "edge", seed=0, flip_vertical=True)(images, 0, np.arange(4000))
    corners, counts = np.unique(made[:, 0, 0, 0], return_counts=True)
    assert list(corners) == [0, 1, 2, 3] and (abs(counts - 1000) < 120).all()


def test_nothing_is_mirrored_where_it_is_not_asked_for():
    for flip, vertical in ((False, False), (False, True), (True, False)):
        _, _, mirrored, upside_down = Augmentation(flip, 2, "edge", 0, vertical).draw(0, INDICES)
        assert (mirrored.any(), upside_down.any()) == (flip, vertical)


def test_draws_are_those_of_earlier_versions_with_and_without_vertical_mirroring():
    """A resumed run goes on with the images it would have seen."""
    indices = np.array([0, 1, 2, 49_999, 1_281_166, 5])
    for vertical, upside_down in ((False, [0] * 6), (True, [0, 0, 0, 1, 0, 1])):
        drawn = Augmentation(True, 4, "edge", seed=7, flip_vertical=vertical).draw(3, indices)
        known = [3, 4, 3, 8, 6, 2], [3, 3, 8, 3, 6, 5], [0, 0, 1, 0, 0, 0], upside_down
        assert all(np.array_equal(found, expected) for found, expected in zip(drawn, known, strict=True))


def test_half_of_the_images_are_mirrored():
    images = np.broadcast_to(np.arange(2, dtype=np.uint8), (10000, 1, 1, 2))
    made = Augmentation(flip=True, crop_padding=0, padding_mode="edge", seed=0)(images, 0, np.arange(10000))
    assert abs(made[:, 0, 0, 0].mean() - 0.5) < 0.02


def test_an_image_is_augmented_alike_in_any_batch():
    augmentation = Augmentation(flip=True, crop_padding=2, padding_mode="edge", seed=0)
    together = augmentation(IMAGES, 3, INDICES)
    order = np.random.default_rng(1).permutation(64)
    parts = [augmentation(IMAGES[rows], 3, INDICES[rows]) for rows in np.array_split(order, 5)]
    assert np.array_equal(np.concatenate(parts), together[order])


def test_epochs_and_seeds_differ_and_the_images_given_are_left_alone():
    before = IMAGES.copy()
    made = [
        Augmentation(True, padding, "edge", seed)(IMAGES, epoch, INDICES)
        for padding in (0, 2)
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len({batch.tobytes() for batch in made}) == 8
    assert np.array_equal(IMAGES, before)


def test_no_global_generator_is_used():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    Augmentation(True, 2, "edge", 0)(IMAGES, 0, INDICES)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
