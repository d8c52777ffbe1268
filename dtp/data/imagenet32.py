"""ImageNet at 32x32: the ten training pickles and the validation pickle, converted once to memory-mapped files."""

import pickle
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from dtp.data.base import ImageData, Part
from dtp.data.cache import cache_folder, fingerprint, written_atomically
from dtp.data.images import MappedImages
from dtp.errors import UserError

_PIXELS = 3 * 32 * 32
_TEN = [f"train_data_batch_{number}" for number in range(1, 11)]
_HOW = (
    "get Imagenet32_train.zip and Imagenet32_val.zip from the download page of image-net.org (after registration; "
    "--download cannot), unpack both into one folder and give it with --data-dir"
)


class ImageNet32(ImageData):
    """1,281,167 training images, 50 of each class held out; the official validation images (50,000) are the test part.

    ``data_dir`` holds the files as the official archives unpack (``train_data_batch_1`` .. ``_10`` and ``val_data``,
    together or in ``Imagenet32_train`` and ``Imagenet32_val``), or a re-packed form with ten files of those names in
    each of ``out_data_train`` and ``out_data_val``. They are converted once, one file in memory at a time, to ``.npy``
    files beside them (3.9 GB), or in the user's cache directory if ``data_dir`` cannot be written to.
    """

    name = "imagenet32"
    num_classes = 1000
    val_size = 50_000
    split = "balanced"
    flip = True
    crop_padding = 4

    def prepare_data(self) -> None:
        train, test = self._sources()
        self._converted("train", train)
        self._converted("test", test)

    def load_train(self) -> Part:
        return self._converted("train", self._sources()[0])

    def load_test(self) -> Part:
        return self._converted("test", self._sources()[1])

    def _sources(self) -> tuple[list[str], list[str]]:
        """Files of the training and of the test part, relative to ``data_dir``."""
        train = self._find([_TEN, _inside("Imagenet32_train", _TEN), _inside("out_data_train", _TEN)])
        test = self._find([["val_data"], ["Imagenet32_val/val_data"], _inside("out_data_val", _TEN)])
        return train, test

    def _find(self, layouts: list[list[str]]) -> list[str]:
        """The layout that has the most files here.

        Raises:
            UserError: it is not complete.
        """
        missing = [[name for name in names if not (self.data_dir / name).is_file()] for names in layouts]
        best = max(range(len(layouts)), key=lambda i: len(layouts[i]) - len(missing[i]))
        if missing[best]:
            found = len(layouts[best]) - len(missing[best])
            raise UserError(
                f"imagenet32: expected {self.data_dir / missing[best][0]}, found no such file (and {found} of the "
                f"{len(layouts[best])} files it belongs with); {_HOW}."
            )
        return layouts[best]

    def _converted(self, part: str, names: list[str]) -> Part:
        key = fingerprint(self.data_dir, names)
        folder = cache_folder(self.data_dir)
        images, labels = folder / f"dtp-{part}-{key}-images.npy", folder / f"dtp-{part}-{key}-labels.npy"
        found = _converted_part(images, labels)
        if found is None:
            rank_zero_info(f"imagenet32: converting {len(names)} files to {images}, once")
            with written_atomically(images) as pixels_path, written_atomically(labels) as labels_path:
                _convert([self.data_dir / name for name in names], pixels_path, labels_path)
            for old in folder.glob(f"dtp-{part}-*-*.npy"):
                if old not in (images, labels):
                    old.unlink(missing_ok=True)
            found = MappedImages(images), np.load(labels)
        return found


def _converted_part(images: Path, labels: Path) -> Part | None:
    """What has been converted before; None where there is none, or it has been damaged since."""
    try:
        pixels, numbers = _mapped(images, np.uint8), _mapped(labels, np.int64)
    except Exception:
        # At what is damaged numpy fails with many.
        return None
    return (MappedImages(images), np.array(numbers)) if pixels.shape == (*numbers.shape, 3, 32, 32) else None


def _mapped(path: Path, dtype: type) -> np.memmap:
    """The array of a ``.npy`` file.

    Raises:
        ValueError: numpy can read it, but not as it was written.
    """
    array = np.load(path, mmap_mode="r")
    if array.dtype != dtype or not array.flags.c_contiguous or path.stat().st_size != array.offset + array.nbytes:
        raise ValueError(f"{path} is damaged")
    return array


def _inside(folder: str, names: list[str]) -> list[str]:
    return [f"{folder}/{name}" for name in names]


def _convert(sources: list[Path], pixels_path: Path, labels_path: Path) -> None:
    """Append the pixels of all sources to one ``.npy`` file, and write all labels to another."""
    labels = []
    with pixels_path.open("wb") as file:
        # numpy pads the header so that the first dimension can be filled in afterwards, when it is known.
        _write_header(file, 0)
        start = file.tell()
        for path in sources:
            labels.append(_append(path, file))
        file.seek(0)
        _write_header(file, sum(map(len, labels)))
        assert file.tell() == start
    with labels_path.open("wb") as file:
        np.save(file, np.concatenate(labels))


def _write_header(file: Any, images: int) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (images, 3, 32, 32)}
    np.lib.format.write_array_header_1_0(file, header)


def _append(path: Path, file: Any) -> np.ndarray:
    # A function of its own, so that the pixels of one file are gone before the next is read.
    pixels, labels = read_pickle(path)
    file.write(np.ascontiguousarray(pixels))
    return labels


def read_pickle(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels, uint8 (n, 3072), channel by channel and row by row, and labels 0 .. 999, int64 (n,), of one file.

    Raises:
        UserError: truncated, or not such a file. No code in a foreign pickle is run.
    """
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
    except Exception as error:
        # A damaged pickle can fail with almost any exception.
        raise _foreign(path, f"a file that cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict) or "data" not in content or not {"labels", "fine_labels"} & content.keys():
        raise _foreign(path, "a pickle without them")
    content = {key: value.numbers if isinstance(value, _Array) else value for key, value in content.items()}
    pixels = content["data"]
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (_PIXELS,):
        raise _foreign(path, f"data {getattr(pixels, 'dtype', type(pixels))} {getattr(pixels, 'shape', '')}")
    try:
        labels = np.asarray(content["labels"] if "labels" in content else content["fine_labels"])
    except ValueError as error:
        # Lists of several lengths.
        raise _foreign(path, "labels that are not whole numbers") from error
    if labels.dtype.kind not in "iu" or labels.shape != (len(pixels),) or not len(labels):
        raise _foreign(path, f"labels {labels.dtype} {labels.shape} for {len(pixels)} images")
    if labels.min() < 1 or labels.max() > 1000:
        raise _foreign(path, f"labels from {labels.min()} to {labels.max()}")
    return pixels, labels.astype(np.int64) - 1


def _foreign(path: Path, found: str) -> UserError:
    return UserError(
        f"imagenet32: {path}: expected a pickle of a dictionary with data, uint8 (n, {_PIXELS}), and n labels from 1 "
        f"to 1000, found {found}; it is truncated or not of this dataset: {_HOW}."
    )


class _Dtype:
    """What ``numpy.dtype`` of a pickle is read into: numbers alone.

    numpy's own takes fields, objects and sizes from a pickle as they come, and then reads memory that is not the
    array's.
    """

    def __init__(self, name: str, *ignored: Any):
        if not re.fullmatch(r"[biuf][1248]", name):
            raise pickle.UnpicklingError(f"it holds an array of {name!r}, which are not numbers")
        self.numbers = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, base, names, fields, *_ = state
        if order not in ("<", ">", "|", "=") or (base, names, fields) != (None, None, None):
            raise pickle.UnpicklingError("it holds an array with fields, which are not numbers")
        self.numbers = self.numbers.newbyteorder(order)


class _Array:
    """What ``numpy.ndarray`` of a pickle is read into; ``numbers`` is the array."""

    def __init__(self, *ignored: Any):
        self.numbers = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, by_columns, content = state
        self.numbers = _numbers(content, dtype, shape, "F" if by_columns else "C")


def _numbers(content: Any, dtype: _Dtype, shape: tuple[int, ...], order: Literal["C", "F"] = "C") -> np.ndarray:
    # What Python 2 has written are bytes that come as text.
    content = content.encode("latin1") if isinstance(content, str) else content
    return np.frombuffer(content, dtype.numbers).reshape(shape, order=order)


def _array(*arguments: Any) -> _Array:
    array = _Array()
    array.numbers = _numbers(*arguments)
    return array


def _encoded(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds text in {encoding!r}")
    return text.encode(encoding)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays, as :class:`_Array`, and plain containers and refuses everything else.

    So a pickle can neither run code nor have numpy read what is not in it.
    """

    _ALLOWED = {
        # How Python 3 writes bytes in the old protocols.
        ("_codecs", "encode"): _encoded,
        ("multiarray", "_reconstruct"): _Array,
        ("multiarray", "scalar"): lambda dtype, content: _numbers(content, dtype, ()).item(),
        ("numeric", "_frombuffer"): _array,
        # Only ever an argument.
        ("numpy", "ndarray"): "ndarray",
        ("numpy", "dtype"): _Dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        for prefix in ("numpy.core.", "numpy._core."):
            module = module.removeprefix(prefix)
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is not an array")
        return self._ALLOWED[module, name]
