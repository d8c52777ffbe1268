"""Tiny datasets in the file formats of the real ones."""

import pickle
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image


def random_images(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)


def write_idx(root: Path, source: str = "MNIST", train: int = 60, test: int = 20) -> np.ndarray:
    """Write the four IDX files of MNIST (or of a dataset of its form) and return the training images."""
    folder = root / source / "raw"
    folder.mkdir(parents=True)
    for part, count in (("t10k", test), ("train", train)):
        images, labels = random_images(count, 28, 28), (np.arange(count) % 10).astype(np.uint8)
        header = struct.pack(">4B3I", 0, 0, 8, 3, *images.shape)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, count) + labels.tobytes())
    return images


def write_cifar10(root: Path) -> np.ndarray:
    """Write CIFAR-10's pickles and return the training images; their checksums are not the published ones."""
    source = torchvision.datasets.CIFAR10
    folder = root / source.base_folder
    folder.mkdir(parents=True)
    names = [name for name, _ in (*source.train_list, *source.test_list)]
    images = random_images(len(names) * 10, 3072)
    for number, name in enumerate(names):
        content = {"data": images[number * 10 : (number + 1) * 10], "labels": list(range(10))}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / source.meta["filename"]).write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    return images[:50].reshape(50, 3, 32, 32)


def accept_any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have torchvision and dtp take a file that is not empty for the published one."""
    for module in ("torchvision.datasets.cifar.check_integrity", "dtp.data.small.check_integrity"):
        monkeypatch.setattr(module, lambda path, md5=None: Path(path).stat().st_size > 0)


def write_imagenet32(
    root: Path,
    train: str = "",
    test: str | list[str] = "val_data",
    key: str = "labels",
    protocol: int = 4,
) -> tuple[np.ndarray, np.ndarray]:
    """Write ImageNet32's files, 20 images of 4 classes in each; return training images and labels (0-based)."""
    names = [f"train_data_batch_{number}" for number in range(1, 11)]
    tests = [test] if isinstance(test, str) else test
    images, labels = random_images(200 + 20 * len(tests), 3072), np.tile([1, 2, 999, 1000], 50 + 5 * len(tests))
    for number, name in enumerate([f"{train}{name}" for name in names] + tests):
        rows = slice(20 * number, 20 * (number + 1))
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps({"data": images[rows], key: labels[rows].tolist()}, protocol))
    return images[:200].reshape(-1, 3, 32, 32), labels[:200] - 1


def write_folder(
    root: Path,
    classes: Sequence[str] = ("cat", "dog"),
    count: int = 10,
    size: tuple[int, int] = (8, 8),
    mode: str = "RGB",
) -> None:
    """Write PNG files into class folders; each image has one colour, of its class and number."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(count):
            colour = (100 * label + number, 20, 200) if mode == "RGB" else 100 * label + number
            Image.new(mode, size, colour).save(root / name / f"{number:03}.png")
