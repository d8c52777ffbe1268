import dataclasses
import os

import numpy as np
import pytest
import torch

from dtp.data import DATA
from dtp.data.base import ImageData
from dtp.data.options import DataOptions
from dtp.data.small import Digits
from dtp.errors import UserError


def digits(seed: int = 0, **options) -> Digits:
    data = Digits(DataOptions(**options), seed)
    data.prepare_data()
    data.setup()
    return data


def batches(loader) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(loader)


def same(first, second) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(first, second, strict=True)
    )


def test_every_dataset_of_the_registry_is_one():
    for entry in DATA.entries.values():
        assert issubclass(entry.load(), ImageData)
        assert entry.load().Options is entry.load_options()
        assert entry.load().name == entry.name


def test_batches_are_normalised_float_images_and_integer_labels():
    x, y = next(iter(digits().train_dataloader()))
    assert x.shape == (128, 1, 8, 8) and x.dtype == torch.float32
    assert y.shape == (128,) and y.dtype == torch.int64


def test_training_images_have_mean_zero_and_std_one():
    x = torch.cat([x for x, _ in batches(digits(val_size=0.0, batch_size=1437).train_dataloader())])
    assert abs(x.mean()) < 1e-3 and abs(x.std() - 1) < 1e-3


def test_normalisation_is_of_pixels_in_the_unit_interval():
    plain = batches(digits(normalisation="unit").test_dataloader())[0][0]
    assert plain.min() == 0 and plain.max() == 1
    for mode in ("standard", "std3x", "meanstd05"):
        data = digits(normalisation=mode)
        (mean,), (std,) = data.statistics
        assert torch.allclose(batches(data.test_dataloader())[0][0], (plain - mean) / std, atol=1e-6)


def test_of_fewer_images_than_are_usually_held_out_a_tenth_is():
    class Few(ImageData):
        name, num_classes, val_size = "few", 2, 50

        def load_train(self):
            images = np.random.default_rng(0).integers(0, 256, (40, 1, 2, 2), np.uint8)
            return images, np.arange(40) % 2

        load_test = load_train

    data = Few(DataOptions())
    data.setup()
    assert data.sizes == {"train": 36, "val": 4, "test": 40}


def test_shape_and_classes_are_known_after_setup_and_not_before():
    data = digits()
    assert (data.input_shape, data.num_classes) == ((1, 8, 8), 10)
    assert data.statistics == ((0.3054,), (0.3761,))
    with pytest.raises(RuntimeError, match="setup"):
        _ = Digits(DataOptions()).input_shape


def test_setup_twice_changes_nothing():
    data = digits()
    parts = data._parts
    data.setup("fit")
    assert data._parts is parts


def test_training_and_validation_are_disjoint_and_depend_on_the_split_seed_only():
    def held_out(**options):
        return digits(**options)._parts["val"].indices.tolist()

    data = digits()
    train, val = (data._parts[part].indices.tolist() for part in ("train", "val"))
    assert len(val) == 144 and sorted(train + val) == list(range(1437))
    assert held_out(seed=5, batch_size=7, num_workers=1, flip=True) == val
    assert held_out(split_seed=1) != val


def test_validation_and_test_are_in_order_complete_and_not_augmented():
    plain, augmented = digits(), digits(flip=True, crop_padding=2)
    for part in ("val_dataloader", "test_dataloader"):
        assert same(batches(getattr(plain, part)()), batches(getattr(augmented, part)()))
    assert sum(len(y) for _, y in batches(plain.test_dataloader())) == 360
    assert not same(batches(plain.train_dataloader()), batches(augmented.train_dataloader()))


def test_no_validation_images_give_no_loader():
    data = digits(val_size=0.0)
    assert data.val_dataloader() == []
    assert len(data._parts["train"]) == 1437


def test_workers_change_neither_order_nor_augmentation():
    alone, helped = (digits(flip=True, crop_padding=2, num_workers=n).train_dataloader() for n in (0, 2))
    for _ in range(2):
        assert same(batches(alone), batches(helped))


def test_more_workers_than_cores_have_no_warning_of_torch(recwarn):
    digits(num_workers=len(os.sched_getaffinity(0)) + 1).train_dataloader()
    assert not recwarn.list


def test_the_seed_decides_order_and_augmentation():
    first, again, other = (batches(digits(seed, flip=True).train_dataloader()) for seed in (0, 0, 1))
    assert same(first, again) and not same(first, other)


def test_loaders_use_no_global_generator():
    state = torch.get_rng_state()
    data = digits(flip=True, crop_padding=2)
    batches(data.train_dataloader()), batches(data.val_dataloader())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("option", "value"), [("batch_size", 0), ("num_workers", -1), ("crop_padding", -1), ("val_size", -5.0)]
)
def test_options_out_of_range_are_refused_by_name(option, value):
    with pytest.raises(UserError, match=rf"--{option.replace('_', '-')}.* {value:g}\b"):
        digits(**{option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [("batch_size", "x"), ("batch_size", None), ("batch_size", 2.5), ("normalisation", "x"), ("num_workers", [1])],
)
def test_options_of_another_type_are_refused_by_name(option, value):
    with pytest.raises(UserError, match=f"--{option.replace('_', '-')}: expected"):
        digits(**{option: value})


class Stripes(ImageData):
    """A user's own dataset: only the images and what they are."""

    name = "stripes"
    num_classes = 2
    labels = np.arange(40) % 2

    def load_train(self):
        return np.full((40, 1, 4, 4), 51, dtype=np.uint8), self.labels

    load_test = load_train


def test_a_users_own_dataset_needs_two_methods():
    data = Stripes(DataOptions(batch_size=4))
    data.prepare_data()
    data.setup()
    assert data.statistics[0] == pytest.approx((0.2,))
    assert len(data.train_dataloader()) == 9 and len(data._parts["val"]) == 4


def test_a_part_without_images_is_refused():
    class Nothing(Stripes):
        def load_test(self):
            return np.empty((0, 1, 4, 4), np.uint8), np.empty(0, np.int64)

    with pytest.raises(UserError, match="and at least one, found 0 images and 0 labels"):
        Nothing(DataOptions()).setup()


def test_the_seed_decides_which_images_are_turned_upside_down():
    turned = []
    for seed in (0, 1):
        plain, found = (
            next(iter(digits(seed, flip_vertical=flip, val_size=0.0, batch_size=1437).train_dataloader()))[0]
            for flip in (False, True)
        )
        # In the same order; an image is known by its pixels.
        turned.append({a.numpy().tobytes() for a, b in zip(plain, found, strict=True) if not torch.equal(a, b)})
        assert all(torch.equal(b, a) or torch.equal(b, a.flip(1)) for a, b in zip(plain, found, strict=True))
    assert turned[0] and turned[1] and turned[0] != turned[1]


@pytest.mark.parametrize(
    ("labels", "words"), [(np.arange(40) % 3, "from 0 to 1, found 0 to 2"), (np.zeros(3), "3 labels")]
)
def test_labels_that_do_not_fit_are_refused(labels, words):
    data = Stripes(DataOptions())
    data.labels = labels
    with pytest.raises(UserError, match=words):
        data.setup()


class Own(ImageData):
    name, num_classes = "own", 3
    images = np.zeros((4, 1, 2, 2), dtype=np.uint8)
    labels = np.arange(4) % 3

    def load_train(self):
        return self.images, self.labels

    load_test = load_train


@pytest.mark.parametrize("labels", [[0.0, 1.0, 2.0, 1.0], torch.tensor([0, 1, 2, 1]), np.array([0, 1, 2, 1], "u1")])
def test_labels_may_be_whole_numbers_of_any_kind(labels, monkeypatch):
    monkeypatch.setattr(Own, "labels", labels)
    assert Own(DataOptions())._checked((Own.images, labels), "training", "load_train")[1].tolist() == [0, 1, 2, 1]


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ([0, 1, 0.5, 2], "found 0.5"),
        ([0, 1, float("nan"), 2], "found nan"),
        ([0, 1, float("inf"), 2], "found inf"),
        (["a", "b", "c", "d"], "found none"),
        ([[0], [1], [2], [1]], r"found an array of shape \(4, 1\)"),
        ([[0], [1, 2], [], []], "found none"),
        (1, r"found an array of shape \(\)"),
        (None, "found none"),
    ],
)
def test_labels_that_are_not_whole_numbers_are_refused(labels, found, monkeypatch):
    monkeypatch.setattr(Own, "labels", labels)
    with pytest.raises(UserError, match=f"Own: expected training labels, one whole number for each, {found}"):
        Own(DataOptions()).setup()


@pytest.mark.parametrize("shape", [(0, 1, 2, 2), (4, 0, 2, 2), (4, 1, 0, 2), (4, 1, 2, 0), ()])
def test_images_without_pixels_are_refused(shape, monkeypatch):
    monkeypatch.setattr(Own, "images", np.zeros(shape, dtype=np.uint8))
    with pytest.raises(UserError, match="expected (as many )?training images"):
        Own(DataOptions()).setup()


@pytest.mark.parametrize(("name", "channels"), [("digits", 3), ("digits", 1), ("cifar10", 1), ("cifar10", 3)])
@pytest.mark.parametrize("mode", ["standard", "std3x"])
def test_a_users_own_dataset_with_a_name_of_ours_has_the_statistics_of_its_images(name, channels, mode, monkeypatch):
    images = np.zeros((4, channels, 2, 2), dtype=np.uint8)
    images[:2] = 255
    monkeypatch.setattr(Own, "images", images)
    monkeypatch.setattr(Own, "name", name)
    data = Own(DataOptions(normalisation=mode))
    data.setup()
    assert data.statistics == ((0.5,) * channels, ((1.5 if mode == "std3x" else 0.5),) * channels)


def test_a_normalisation_that_only_a_users_own_dataset_knows_is_refused():
    class Options(DataOptions):
        """Any word will do."""

        normalisation: str = "mine"

    data = Own(dataclasses.dataclass(Options)())
    with pytest.raises(UserError, match="^--normalisation: expected one of standard, .*, unit, found 'mine'"):
        data.setup()


def test_a_class_derived_from_one_of_ours_keeps_its_statistics_where_it_keeps_the_channels():
    class Derived(Digits):
        def load_train(self):
            images, labels = super().load_train()
            return images.repeat(self.channels, 1), labels

        load_test = load_train

    found = {}
    for Derived.channels in (1, 3):
        data = Derived(DataOptions())
        data.setup()
        found[data.channels] = data.statistics
    assert found[1] == ((0.3054,), (0.3761,))
    assert found[3][0] == pytest.approx((0.3054,) * 3, abs=1e-4)


@pytest.mark.parametrize("pca", [0, 5])
def test_validation_images_of_another_shape_are_refused(pca):
    class Odd(Digits):
        def load_val(self):
            images, labels = self.load_test()
            return images[:, :, 1:7, 1:7], labels

    with pytest.raises(
        UserError, match=r"validation images of the shape of the training.*\(1, 8, 8\), found \(1, 6, 6\)"
    ):
        Odd(DataOptions(pca=pca)).setup()


def test_a_loader_before_the_images_are_read_says_what_to_call():
    data = Digits(DataOptions())
    for loader in (data.train_dataloader, data.val_dataloader, data.test_dataloader):
        with pytest.raises(UserError, match=r"Digits: expected images .* call prepare_data\(\) and setup\(\)"):
            loader()


def test_what_is_given_for_options_and_is_none_is_told():
    with pytest.raises(UserError, match=r"Digits: expected its options, Digits.Options\(...\), found 'data'"):
        Digits("data")
