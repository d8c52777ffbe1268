"""Batches made on the device: the same as those of the loader. Here the device is the CPU."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dtp.data import on_device
from dtp.data.augmentation import Augmentation
from dtp.data.base import ImageData
from dtp.data.batches import ImageBatches
from dtp.data.on_device import DeviceBatches, wanted_on_device
from dtp.data.options import DataOptions
from dtp.data.statistics import Statistics
from dtp.errors import UserError

CPU = torch.device("cpu")


class Noise(ImageData):
    """47 random pictures for training and validation, 11 for test; two classes."""

    name, num_classes = "noise", 2
    shape = (3, 6, 5)

    def load_train(self):
        return self._make(47, 0)

    def load_test(self):
        return self._make(11, 1)

    def _make(self, count, seed):
        random = np.random.default_rng(seed)
        return random.integers(0, 256, (count, *self.shape), dtype=np.uint8), random.integers(0, 2, count)


class GreyNoise(Noise):
    shape = (1, 7, 7)


def loaders(kind, part, **options):
    """The loader of a part by either path."""
    made = []
    for where in ("no", "yes"):
        data = kind(DataOptions(batch_size=8, data_on_device=where, **options), seed=3)
        data.setup()
        made.append(getattr(data, f"{part}_dataloader")())
    return made


@pytest.mark.parametrize("kind", [Noise, GreyNoise])
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("mode", ["edge", "zeros"])
@pytest.mark.parametrize("vertical", [True, False])
def test_training_batches_are_bit_identical_to_the_loaders(kind, flip, padding, mode, vertical):
    options = {"flip": flip, "flip_vertical": vertical, "crop_padding": padding, "padding_mode": mode}
    host, device = loaders(kind, "train", **options)
    assert isinstance(host.dataset, ImageBatches) and isinstance(device.dataset, DeviceBatches)
    for _ in range(3):  # three epochs: other orders, other crops
        pairs = list(zip(host, device, strict=True))
        assert len(pairs) == 5
        for (x, y), (found_x, found_y) in pairs:
            assert torch.equal(found_x, x) and torch.equal(found_y, y)
            assert found_x.dtype == torch.float32 and found_x.is_contiguous() and found_y.dtype == torch.int64


@pytest.mark.parametrize("part", ["val", "test"])
def test_evaluation_batches_are_bit_identical_with_the_last_partial_one(part):
    host, device = loaders(Noise, part, val_size=11, flip=True, crop_padding=2)
    pairs = list(zip(host, device, strict=True))
    assert [len(x) for _, (x, _) in pairs] == [8, 3]
    for (x, y), (found_x, found_y) in pairs:
        assert torch.equal(found_x, x) and torch.equal(found_y, y)


def test_crops_reach_all_corners_of_the_padded_image():
    augmentation = Augmentation(flip=True, crop_padding=2, padding_mode="zeros", seed=0)
    top, left, mirrored, upside_down = augmentation.draw(0, np.arange(2000))
    for offsets in (top, left):
        assert set(offsets) == set(range(5))
    assert set(mirrored) == {0, 1} and set(upside_down) == {0}


def test_workers_and_pinning_are_left_out_on_the_device():
    _, device = loaders(Noise, "train", num_workers=2)
    assert device.num_workers == 0 and not device.pin_memory and not device.persistent_workers


def make_part(count=100, shape=(3, 8, 8)):
    # Of more images than it holds, as a part of a split is.
    images, labels = np.zeros((2 * count, *shape), dtype=np.uint8), np.zeros(2 * count, dtype=np.int64)
    return ImageBatches(images, labels, np.arange(count), Statistics((0.5,) * 3, (0.5,) * 3))


@pytest.mark.parametrize(
    ("option", "device", "free", "expected"),
    [
        ("auto", "cpu", 0, False),
        ("yes", "cpu", 0, True),
        ("no", "cuda", 1 << 40, False),
        ("auto", "cuda", 4 * 2 * 19200, True),
        ("auto", "cuda", 4 * 2 * 19200 - 1, False),
        ("auto", "cuda", 1000, False),
        ("yes", "cuda", 2 * 19200, True),
    ],
)
def test_images_go_to_a_gpu_by_themselves_when_they_take_a_quarter_of_its_memory(
    option, device, free, expected, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    assert wanted_on_device(option, [make_part(), make_part()], torch.device(device)) is expected


def test_images_that_do_not_fit_are_refused_in_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 10, 1 << 30))
    with pytest.raises(UserError, match=r"--data-on-device yes: expected .* GiB of free memory .* use .* no"):
        wanted_on_device("yes", [make_part()], torch.device("cuda"))


def test_later_changes_of_the_source_do_not_reach_the_device():
    part = make_part()
    placed = DeviceBatches(part, CPU)
    before = placed.__getitems__((0, np.arange(4)))[0].clone()
    part.images[:] = 255
    assert torch.equal(placed.__getitems__((0, np.arange(4)))[0], before)


class Counted:
    """Images that tell how many bytes of them were read at once."""

    def __init__(self, images):
        self.images, self.shape, self.most = images, images.shape, 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, indices):
        read = self.images[indices]
        self.most = max(self.most, read.nbytes)
        return read


@pytest.mark.parametrize(("limit", "most"), [(7 * 192 + 5, 7 * 192), (100, 192)])
def test_images_are_sent_in_parts_so_that_the_host_holds_no_second_copy(limit, most, monkeypatch):
    part = make_part()
    images = np.random.default_rng(0).integers(0, 256, part.images.shape, dtype=np.uint8)
    part.images, part.indices = Counted(images), np.arange(99, 0, -1)
    monkeypatch.setattr(on_device, "PART", limit)
    placed = DeviceBatches(part, CPU)
    assert part.images.most == most and placed._images.dtype == torch.uint8
    np.testing.assert_array_equal(placed._images.numpy(), images[part.indices])


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True)])
def test_batches_are_pinned_only_for_a_gpu_that_trains(device, pinned, monkeypatch):
    """A GPU that is there but not used stays untouched: pinning would start CUDA."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    data = Noise(DataOptions(batch_size=8, data_on_device="no"))
    data.setup()
    data.trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device(device)), global_rank=0, world_size=1
    )
    assert data.train_dataloader().pin_memory is pinned and data.test_dataloader().pin_memory is pinned
