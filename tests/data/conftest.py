"""Tiny datasets in the file formats of the real ones."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image


def random_images(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.fixture
def write_idx():
    """Writes the four IDX files of MNIST (or of a dataset of its form) and returns the training images."""

    def write(root: Path, source: str = "MNIST", train: int = 60, test: int = 20) -> np.ndarray:
        folder = root / source / "raw"
        folder.mkdir(parents=True)
        for part, count in (("t10k", test), ("train", train)):
            images, labels = random_images(count, 28, 28), (np.arange(count) % 10).astype(np.uint8)
            header = struct.pack(">4B3I", 0, 0, 8, 3, *images.shape)
            (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
            (folder / f"{part}-labels-idx1-ubyte").write_bytes(
                struct.pack(">4BI", 0, 0, 8, 1, count) + labels.tobytes()
            )
        return images

    return write


@pytest.fixture
def write_cifar10(monkeypatch):
    """Writes CIFAR-10's pickles, with checksums that torchvision is made to accept, and returns the training images."""

    def write(root: Path) -> np.ndarray:
        source = torchvision.datasets.CIFAR10
        folder = root / source.base_folder
        folder.mkdir(parents=True)
        names = [name for name, _ in (*source.train_list, *source.test_list)]
        images = random_images(len(names) * 10, 3072)
        for number, name in enumerate(names):
            content = {"data": images[number * 10 : (number + 1) * 10], "labels": list(range(10))}
            (folder / name).write_bytes(pickle.dumps(content))
        (folder / source.meta["filename"]).write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
        for module in ("torchvision.datasets.cifar.check_integrity", "dtp.data.small.check_integrity"):
            monkeypatch.setattr(module, lambda path, md5=None: Path(path).stat().st_size > 0)
        return images[:50].reshape(50, 3, 32, 32)

    return write


@pytest.fixture
def write_imagenet32():
    """Writes ImageNet32's files, 20 images of 4 classes in each, and returns training images and labels (0-based)."""

    def write(root: Path, train: str = "", test: str | list[str] = "val_data", key: str = "labels", protocol: int = 4):
        names = [f"train_data_batch_{number}" for number in range(1, 11)]
        tests = [test] if isinstance(test, str) else test
        images, labels = random_images(200 + 20 * len(tests), 3072), np.tile([1, 2, 999, 1000], 50 + 5 * len(tests))
        for number, name in enumerate([f"{train}{name}" for name in names] + tests):
            rows = slice(20 * number, 20 * (number + 1))
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pickle.dumps({"data": images[rows], key: labels[rows].tolist()}, protocol))
        return images[:200].reshape(-1, 3, 32, 32), labels[:200] - 1

    return write


@pytest.fixture
def write_folder():
    """Writes PNG files into class folders; each image has one colour, of its class and number."""

    def write(root: Path, classes=("cat", "dog"), count: int = 10, size=(8, 8), mode: str = "RGB") -> None:
        for label, name in enumerate(classes):
            (root / name).mkdir(parents=True)
            for number in range(count):
                colour = (100 * label + number, 20, 200) if mode == "RGB" else 100 * label + number
                Image.new(mode, size, colour).save(root / name / f"{number:03}.png")

    return write
