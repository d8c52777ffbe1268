"""Images in any folder with one folder per class."""

import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image
from torchvision.transforms import functional

from dtp.data.base import ImageData, Part
from dtp.data.cache import cache_folder, fingerprint, written_atomically
from dtp.data.image_files import Files, list_images
from dtp.data.images import Images
from dtp.data.options import ImageFolderOptions
from dtp.data.split import split_indices
from dtp.data.statistics import Statistics, cached_statistics, compute_statistics
from dtp.errors import UserError
from dtp.system.memory import available_cores

# Decoded images are kept in memory when all of them take no more bytes than this.
MEMORY_LIMIT = 2**30
_TEST_SHARE = 0.1


class ImageFolderData(ImageData):
    """Images in ``train/CLASS/*``, ``test/CLASS/*`` and perhaps ``val/CLASS/*``, or in ``CLASS/*`` alone.

    Classes are numbered in alphabetical order. Images are converted to RGB, resized (bilinear) so that the shorter
    side has ``image_size`` pixels, and centre-cropped. Without a ``test`` folder a fixed stratified tenth of the
    images is the test part; without a ``val`` folder a stratified tenth of the rest is held out for validation
    (with one, ``--val-size`` still overrides it).
    """

    Options = ImageFolderOptions

    name = "imagefolder"
    split = "stratified"
    flip = True

    def __init__(self, options: ImageFolderOptions, seed: int = 0):
        super().__init__(options, seed)
        self.image_size = options.image_size
        self.crop_padding = options.image_size // 8
        self._files: dict[str, Files] = {}
        self._decoded: dict[str, Images] = {}
        self._own_statistics: Statistics | None = None

    def prepare_data(self) -> None:
        self._scan()
        # Decodes every image once, whatever the normalisation: a broken file is found before training.
        self.own_statistics(self._images("train"))
        # Those that are kept in memory are decoded for that.
        others = [] if self._fits_in_memory() else ["val", "test"] if self.options.val_size is None else ["test"]
        for part in others:
            if part in self._files:
                self._statistics_of(part, self._images(part))

    def load_train(self) -> Part:
        return self._load("train")

    def load_val(self) -> Part | None:
        self._scan()
        return self._load("val") if "val" in self._files else None

    def load_test(self) -> Part:
        return self._load("test")

    def own_statistics(self, train: Images) -> Statistics:
        if self._own_statistics is None:
            # Once, also where they cannot be stored.
            self._own_statistics = self._statistics_of("train", train)
        return self._own_statistics

    def _statistics_of(self, part: str, images: Images) -> Statistics:
        """Of the images of a part; they also stand for that all of these can be decoded."""
        names, of_part = self._files[part].names, "" if part == "train" else f"-{part}"
        path = cache_folder(self.data_dir) / f".dtp-statistics{of_part}-{self.image_size}.json"
        key = fingerprint(self.data_dir, names, self.image_size)

        def compute() -> Statistics:
            role = {"train": "training", "val": "validation"}.get(part, part)
            rank_zero_info(f"imagefolder: computing the mean and std of {len(names)} {role} images, once")
            return compute_statistics(_chunks(images))

        return cached_statistics(path, key, images.shape[1], compute)

    def _load(self, part: str) -> Part:
        self._scan()
        return self._images(part), self._files[part].labels

    def _scan(self) -> None:
        if self._files:
            return
        classes, self._files = find_images(self.data_dir)
        self.num_classes = len(classes)

    def _images(self, part: str) -> Images:
        if part not in self._decoded:
            images: Images = ImageFiles(self.data_dir, self._files[part].names, self.image_size)
            if self._fits_in_memory():
                images = self._all_decoded(part, images)
            self._decoded[part] = images
        return self._decoded[part]

    def _fits_in_memory(self) -> bool:
        return sum(len(files.names) for files in self._files.values()) * 3 * self.image_size**2 <= MEMORY_LIMIT

    def _all_decoded(self, part: str, files: "ImageFiles") -> np.ndarray:
        """The images of a part in memory; decoded once, and read from one file in later runs."""
        folder, names = cache_folder(self.data_dir), f".dtp-images-{part}-{self.image_size}"
        path = folder / f"{names}-{fingerprint(self.data_dir, files.names, self.image_size)}.npy"
        try:
            with path.open("rb") as file:
                images, checksum = np.load(file), file.read()
            if images.shape == files.shape and images.dtype == np.uint8 and checksum == _checksum(images):
                return images
        except Exception:
            # Not there yet, or damaged, at which numpy fails with many exceptions.
            pass
        images = np.concatenate(list(_chunks(files)))
        try:
            with written_atomically(path) as temporary, temporary.open("wb") as file:
                np.save(file, images)
                # What reads such files passes over what comes behind the array.
                file.write(_checksum(images))
            for other in folder.glob(f"{names}-*.npy"):
                if other != path:
                    # Of files that have changed since.
                    other.unlink(missing_ok=True)
        except UserError:
            # It only saves time.
            pass
        return images


def _checksum(images: np.ndarray) -> bytes:
    return zlib.crc32(np.ascontiguousarray(images).data).to_bytes(4, "little")


class ImageFiles:
    """Image files that are decoded when indexed."""

    def __init__(self, root: Path, names: list[str], image_size: int):
        self.root, self.names = root, names
        self.shape = (len(names), 3, image_size, image_size)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return np.stack([decode(self.root / self.names[index], self.shape[-1]) for index in indices])


def decode(path: Path, image_size: int) -> np.ndarray:
    """One image file as uint8 (3, image_size, image_size).

    Raises:
        UserError: it is not an image, or truncated.
    """
    try:
        with Image.open(path) as file:
            image = _eight_bits(file).convert("RGB")
        if image.size != (image_size, image_size):
            # torchvision takes images and numbers too, which its types do not say.
            pictures: Any = functional
            image = pictures.center_crop(pictures.resize(image, image_size), image_size)
        return np.asarray(image).transpose(2, 0, 1)
    except Exception as error:
        # PIL's decoders fail with many exceptions on damaged files.
        raise UserError(
            f"{path}: expected an image, found a file that cannot be decoded ({error}); repair or remove it."
        ) from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey images of 16 bits scaled to 8; PIL would clip them to white."""
    # What is read in 32 bits has 16 in a PNG, and is scaled to them in a PGM.
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError("floating-point, 32-bit and signed pixels have no known range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    return image


def find_images(data_dir: Path) -> tuple[list[str], dict[str, Files]]:
    """Class names, and the files of the parts ``train``, ``test`` and perhaps ``val``; as :func:`list_images`.

    Without folders for parts, a fixed tenth of the images is the test part.
    """
    classes, files = list_images(data_dir)
    return _split_off_test(data_dir, classes, files[""]) if "" in files else (classes, files)


def _split_off_test(data_dir: Path, classes: list[str], files: Files) -> tuple[list[str], dict[str, Files]]:
    count = round(_TEST_SHARE * len(files.names))
    if count == 0:
        raise UserError(f"imagefolder: expected at least 10 images in {data_dir}, found {len(files.names)}; add some.")
    rank_zero_info(f"imagefolder: {data_dir} has no test folder; a fixed tenth, {count} images, is the test part")
    # Seed 0 always: the test part must not depend on any option, or runs could not be compared.
    kept, held_out = split_indices(files.labels, count, seed=0, kind="stratified")

    def take(rows: np.ndarray) -> Files:
        return Files([files.names[row] for row in rows], files.labels[rows])

    return classes, {"train": take(kept), "test": take(held_out)}


def _chunks(images: Images) -> Iterator[np.ndarray]:
    """All images in order, 256 at a time, fetched by as many threads as there are processors for us."""
    threads = available_cores()
    rows = np.arange(len(images))
    pending = [rows[start : start + 256] for start in range(0, len(rows), 256)]
    with ThreadPoolExecutor(threads) as pool:
        # A few chunks per thread at a time, so that a set that does not fit in memory is never held in it.
        for start in range(0, len(pending), 2 * threads):
            yield from pool.map(images.__getitem__, pending[start : start + 2 * threads])
