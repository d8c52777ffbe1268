import pickle
import warnings

import numpy as np
import pytest
import torch

from dtp.cli.train import main
from dtp.data.imagefolder import ImageFolderData
from dtp.data.options import DataOptions, ImageFolderOptions
from dtp.data.small import CIFAR10, CIFAR100, KMNIST, MNIST, Digits, FashionMNIST
from dtp.data.statistics import STATISTICS
from dtp.errors import UserError


def test_digits_use_all_grey_levels_and_a_test_part_that_no_option_changes():
    images, labels = Digits(DataOptions(), seed=0).load_train()
    assert set(np.unique(images)) == {round(level * 255 / 16) for level in range(17)}
    test, test_labels = Digits(DataOptions(split_seed=1), seed=1).load_test()
    assert len(labels) + len(test_labels) == 1797 and len(test) == 360
    assert np.bincount(test_labels).min() >= 35
    assert np.array_equal(test, Digits(DataOptions()).load_test()[0])


@pytest.mark.parametrize("dataset", [MNIST, FashionMNIST, KMNIST])
def test_files_in_the_mnist_format_are_read(tmp_path, write_idx, dataset):
    images = write_idx(tmp_path, dataset.source.__name__)
    data = dataset(DataOptions(str(tmp_path), val_size=10, normalisation="unit", batch_size=100))
    data.prepare_data()
    data.setup()
    (x, y), (val, val_labels) = next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))
    assert (len(x), len(val), len(data._parts["test"])) == (50, 10, 20)
    assert data.input_shape == (1, 28, 28)
    read = {(pixels.numpy().tobytes(), int(label)) for pixels, label in zip([*x, *val], [*y, *val_labels], strict=True)}
    pixels = (torch.from_numpy(images)[:, None].float() * torch.tensor(1 / 255)).numpy()
    written = {(image.tobytes(), number % 10) for number, image in enumerate(pixels)}
    assert read == written


def test_only_photographs_are_flipped_and_cropped_by_default():
    assert [(d.flip, d.crop_padding) for d in (CIFAR10, CIFAR100)] == [(True, 4)] * 2
    assert [(d.flip, d.crop_padding) for d in (Digits, MNIST, FashionMNIST, KMNIST)] == [(False, 0)] * 4


@pytest.mark.parametrize("dataset", [MNIST, FashionMNIST, KMNIST, CIFAR10, CIFAR100])
def test_missing_files_are_named_with_the_flags_that_help(tmp_path, dataset):
    with pytest.raises(UserError, match=r"no such file.*--data-dir.*--download") as caught:
        dataset(DataOptions(str(tmp_path))).prepare_data()
    assert str(tmp_path) in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train-images-idx3-ubyte", None, "truncated"),
        ("t10k-labels-idx1-ubyte", None, "truncated"),
        ("train-labels-idx1-ubyte", b"", "IDX file"),
        ("t10k-images-idx3-ubyte", b"<html>not found</html>", "IDX file"),
        ("t10k-images-idx3-ubyte", bytes((0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 7)), "1x1 pixels"),
        ("t10k-images-idx3-ubyte", bytes((0, 0, 8, 3, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 28)), "holds no images"),
        ("train-labels-idx1-ubyte", bytes((0, 0, 8, 1, 0, 0, 0, 0)), "holds no images"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path, write_idx, name, content, words):
    write_idx(tmp_path)
    path = tmp_path / "MNIST" / "raw" / name
    path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    with pytest.raises(UserError, match=words) as caught:
        MNIST(DataOptions(str(tmp_path))).prepare_data()
    assert str(path) in str(caught.value)


def test_a_failed_download_says_why(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr(MNIST, "source", type("MNIST", (), {"__new__": refuse}))
    with pytest.raises(UserError, match="could not be downloaded.*network is unreachable.*--data-dir"):
        MNIST(DataOptions(str(tmp_path), download=True)).prepare_data()


def test_cifar10_is_read_channel_first(tmp_path, write_cifar10):
    images = write_cifar10(tmp_path)
    data = CIFAR10(DataOptions(str(tmp_path), val_size=10))
    data.prepare_data()
    data.setup()
    assert np.array_equal(data.load_train()[0], images)
    assert data.input_shape == (3, 32, 32)


class Warns:
    def __reduce__(self):
        return warnings.warn, ("made by an older version",)


def test_nothing_is_seen_of_what_pickles_of_another_version_warn_of(tmp_path, monkeypatch, write_cifar10, recwarn):
    write_cifar10(tmp_path)
    path = tmp_path / CIFAR10.source.base_folder / "data_batch_1"
    path.write_bytes(pickle.dumps({**pickle.loads(path.read_bytes()), "note": Warns()}))
    monkeypatch.chdir(tmp_path)
    size = "--val-size 0 --batch-size 10 --limit-train-batches 1 --max-epochs 1 --widths 8".split()
    assert main(["--data", "cifar10", "--data-dir", ".", *size]) == 0
    assert not recwarn.list


def test_a_damaged_cifar_file_is_named(tmp_path, write_cifar10):
    write_cifar10(tmp_path)
    path = tmp_path / CIFAR10.source.base_folder / "data_batch_3"
    path.write_bytes(b"")
    with pytest.raises(UserError, match="checksum.*--download") as caught:
        CIFAR10(DataOptions(str(tmp_path))).prepare_data()
    assert str(path) in str(caught.value)


TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def class_folders(tmp_path, write_folder):
    """Colours 20 c + number of each class c, 30 images for training and 2 for test."""
    for part, count in (("train", 3), ("test", 2)):
        write_folder(tmp_path / "data" / "cifar10" / part, TEN[:10], count, size=(32, 32), mode="L")
    return tmp_path / "data"


@pytest.mark.parametrize("place", ["", "cifar10"])
def test_cifar10_is_read_from_class_folders_too(class_folders, place):
    data = CIFAR10(DataOptions(str(class_folders / place), val_size=10))
    data.prepare_data()
    data.setup()
    assert data.sizes == {"train": 20, "val": 10, "test": 20} and data.input_shape == (3, 32, 32)
    # What is peculiar to the dataset stays so.
    assert data.statistics == (STATISTICS["cifar10"].mean, STATISTICS["cifar10"].std)
    assert data._augmentation().flip and data._augmentation().crop_padding == 4
    images, labels = data.load_train()
    assert np.array_equal(labels, np.repeat(np.arange(10), 3))
    expected = (100 * labels + np.tile(np.arange(3), 10)).clip(0, 255)
    assert np.array_equal(images[:, 0, 5, 5], expected) and (images == images[:, :1, :1, :1]).all()
    folder = ImageFolderData(ImageFolderOptions(str(class_folders / "cifar10")))
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(data.load_test(), folder.load_test(), strict=True))


def test_files_of_cifar10_go_before_class_folders(class_folders, write_cifar10):
    images = write_cifar10(class_folders)
    assert np.array_equal(CIFAR10(DataOptions(str(class_folders))).load_train()[0], images)


def test_another_number_of_class_folders_is_another_dataset(class_folders):
    with pytest.raises(UserError, match="cifar100: expected 100 class folders.*found 10; use --data imagefolder"):
        CIFAR100(DataOptions(str(class_folders / "cifar10"), download=True)).prepare_data()
