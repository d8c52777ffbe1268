"""Small standard datasets, read by torchvision and scikit-learn and kept in memory."""

import math
import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torchvision
from sklearn.datasets import load_digits
from torchvision.datasets.utils import check_integrity

from dtp.data.base import ImageData, Part
from dtp.data.imagefolder import ImageFolderData
from dtp.data.options import DataOptions, ImageFolderOptions
from dtp.data.split import split_indices
from dtp.errors import UserError


class Digits(ImageData):
    """1797 handwritten digits, grey, 8x8, in scikit-learn: no files. A fixed stratified 20% (360) is the test part."""

    name = "digits"
    num_classes = 10
    split = "stratified"

    def load_train(self) -> Part:
        return _digits(test=False)

    def load_test(self) -> Part:
        return _digits(test=True)


@cache
def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    values, labels = load_digits(return_X_y=True)
    return np.asarray(values), np.asarray(labels)


def _digits(test: bool) -> Part:
    values, labels = _read_digits()
    # Seed 0 always: the test part must not depend on any option, or runs could not be compared.
    train_rows, test_rows = split_indices(labels, 360, seed=0, kind="stratified")
    rows = test_rows if test else train_rows
    pixels = np.round(values * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return pixels[rows], labels[rows].astype(np.int64)


class _Downloadable(ImageData):
    """A dataset whose files torchvision reads, and downloads when asked to."""

    source: type

    def prepare_data(self) -> None:
        problem = self._problem()
        if problem and self.options.download:
            self._download()
            problem = self._problem()
        if problem:
            raise UserError(problem)

    def load_train(self) -> Part:
        return self._load(train=True)

    def load_test(self) -> Part:
        return self._load(train=False)

    def _problem(self) -> str | None:
        """What is wrong with the first file that is missing or damaged."""
        raise NotImplementedError

    def _pixels(self, data: Any) -> np.ndarray:
        """torchvision's images as uint8 (N, C, H, W)."""
        raise NotImplementedError

    def _load(self, train: bool) -> Part:
        try:
            dataset = self.source(str(self.data_dir), train=train)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(self._problem() or f"{self.name} in {self.data_dir} could not be read: {error}") from error
        return self._pixels(dataset.data), np.asarray(dataset.targets, dtype=np.int64)

    def _download(self) -> None:
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            self.source(str(self.data_dir), download=True)
        except (OSError, RuntimeError, AssertionError) as error:
            # Damaged files that were there before also end here, and are better described by their own message.
            problem = self._problem()
            if problem and "no such file" in problem:
                reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
                raise UserError(
                    f"{self.name} could not be downloaded into {self.data_dir} ({reason}); check the network and the "
                    "folder, or fetch the files elsewhere and give their folder with --data-dir."
                ) from error

    def _missing(self, path: Path, folder: str) -> str:
        return (
            f"{self.name}: expected {path}, found no such file; give the folder that holds {folder} with --data-dir, "
            "or add --download to fetch the dataset."
        )

    def _damaged(self, path: Path, found: str) -> str:
        return f"{self.name}: {path} {found}; delete this file and add --download to fetch it again."


class MNIST(_Downloadable):
    """28x28 grey handwritten digits: 60,000 for training (5,000 of them held out), 10,000 for test."""

    name = "mnist"
    num_classes = 10
    val_size = 5000
    source = torchvision.datasets.MNIST

    def _problem(self) -> str | None:
        folder = f"{self.source.__name__}/raw"
        for part in ("train", "t10k"):
            for kind, header in (("images-idx3", (None, 28, 28)), ("labels-idx1", (None,))):
                path = self.data_dir / folder / f"{part}-{kind}-ubyte"
                if not path.is_file():
                    return self._missing(path, folder)
                found = _idx_damage(path, header)
                if found:
                    return self._damaged(path, found)
        return None

    def _pixels(self, data: Any) -> np.ndarray:
        return data.numpy()[:, None]


class FashionMNIST(MNIST):
    """28x28 grey clothes, split as MNIST."""

    name = "fashion-mnist"
    source = torchvision.datasets.FashionMNIST


class KMNIST(MNIST):
    """28x28 grey handwritten hiragana, split as MNIST."""

    name = "kmnist"
    source = torchvision.datasets.KMNIST


class CIFAR10(_Downloadable):
    """32x32 colour photographs: 50,000 for training (5,000 of them held out), 10,000 for test.

    In the files that torchvision reads; or where there are none, in class folders as ``imagefolder`` has them, with
    ``train/CLASS/*`` and ``test/CLASS/*``, in the data folder or in one of the dataset's name there. Classes then have
    the alphabetical order, which is the usual one, and images that of their files' names.
    """

    name = "cifar10"
    num_classes = 10
    val_size = 5000
    flip = True
    crop_padding = 4
    source = torchvision.datasets.CIFAR10

    def __init__(self, options: DataOptions, seed: int = 0):
        super().__init__(options, seed)
        self._folders: ImageFolderData | None = None
        if (self.data_dir / self.source.base_folder).is_dir():
            return
        for folder in (self.data_dir, self.data_dir / self.name):
            if all((folder / part).is_dir() for part in ("train", "test")):
                self._folders = ImageFolderData(ImageFolderOptions(data_dir=str(folder), image_size=32))
                break

    def load_train(self) -> Part:
        return super().load_train() if self._folders is None else self._folders.load_train()

    def load_val(self) -> Part | None:
        return None if self._folders is None else self._folders.load_val()

    def load_test(self) -> Part:
        return super().load_test() if self._folders is None else self._folders.load_test()

    def _problem(self) -> str | None:
        if self._folders is not None:
            # Decodes all of them, once, where a single process prepares the data.
            self.load_train()
            self.load_test()
            if (found := self._folders.num_classes) != self.num_classes:
                raise UserError(
                    f"{self.name}: expected {self.num_classes} class folders in {self._folders.data_dir / 'train'}, "
                    f"found {found}; use --data imagefolder for other classes."
                )
            return None
        folder = self.source.base_folder
        meta = (self.source.meta["filename"], self.source.meta["md5"])
        for filename, checksum in (*self.source.train_list, *self.source.test_list, meta):
            path = self.data_dir / folder / filename
            if not path.is_file():
                return self._missing(path, folder)
            if not check_integrity(str(path), checksum):
                return self._damaged(path, f"has {path.stat().st_size} bytes and not the checksum {checksum}")
        return None

    def _pixels(self, data: Any) -> np.ndarray:
        return np.ascontiguousarray(data.transpose(0, 3, 1, 2))


class CIFAR100(CIFAR10):
    """32x32 colour photographs of 100 classes, split as CIFAR-10."""

    name = "cifar100"
    num_classes = 100
    source = torchvision.datasets.CIFAR100


def _idx_damage(path: Path, expected: tuple[int | None, ...]) -> str | None:
    """What is wrong with an IDX file of bytes whose dimensions should be ``expected`` (None: any)."""
    size, header = path.stat().st_size, 4 + 4 * len(expected)
    with path.open("rb") as file:
        start = file.read(header)
    # Two zero bytes, 8 for unsigned bytes, the number of dimensions; then the dimensions, big-endian.
    if start[:4] != bytes((0, 0, 8, len(expected))) or len(start) < header:
        return f"does not begin as an IDX file of bytes with {len(expected)} dimensions"
    found = struct.unpack(f">{len(expected)}I", start[4:])
    if 0 in found:
        return "holds no images"
    if any(want not in (None, have) for want, have in zip(expected, found, strict=True)):
        return f"holds images of {found[1]}x{found[2]} pixels, expected {expected[1]}x{expected[2]}"
    if size != header + math.prod(found):
        return f"has {size} bytes, expected {header + math.prod(found)} (truncated or foreign)"
    return None
