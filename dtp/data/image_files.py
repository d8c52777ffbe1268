"""The image files in a folder of class folders, and which they are wherever the folder lies. Imports no torch."""

import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dtp.errors import UserError

# Those of torchvision.
IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class Files(NamedTuple):
    """Image files of one part, relative to ``data_dir``, sorted by class and name, with labels (int64)."""

    names: list[str]
    labels: np.ndarray


def list_images(data_dir: Path) -> tuple[list[str], dict[str, Files]]:
    """Class names, and the files of the parts ``train``, ``test`` and perhaps ``val``, or of the one part ``""``.

    A class folder may be a link. Within it links are followed to files of the same class folder alone.

    Raises:
        UserError: no such layout, a class folder without images or one that cannot be read, parts with different
            classes, or a link by which images would count twice or for another class.
    """
    if not data_dir.is_dir():
        raise UserError(f"imagefolder: expected a folder of class folders, found no folder {data_dir}; fix --data-dir.")
    for part in ("train", "val", "test"):
        _require_there(data_dir / part)
    parts = [part for part in ("train", "val", "test") if (data_dir / part).is_dir()]
    if not parts:
        classes = _class_names(data_dir)
        _require_apart(data_dir, {"": classes})
        return classes, {"": _find_files(data_dir, "", classes)}
    if not {"train", "test"} <= set(parts):
        raise UserError(
            f"imagefolder: expected both train and test in {data_dir}, found only {' and '.join(parts)}; add the other "
            "one, or give a folder of class folders with --data-dir."
        )
    found = {part: _class_names(data_dir / part) for part in parts}
    classes = found["train"]
    for part, others in found.items():
        if others != classes:
            odd = sorted(set(others) ^ set(classes))
            raise UserError(
                f"imagefolder: expected the same classes in {data_dir / 'train'} and {data_dir / part}, found "
                f"{odd[0]} in only one of them ({len(odd)} such classes); make the class folders agree."
            )
    _require_apart(data_dir, found)
    return classes, {part: _find_files(data_dir, part, classes) for part in parts}


def _class_names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".")]
            classes = sorted(entry.name for entry in shown if entry.is_dir())
    except OSError as error:
        raise _unreadable(error) from error
    for entry in shown:
        _require_there(entry)
    if not classes:
        raise UserError(
            f"imagefolder: expected class folders in {folder}, found none; give a folder that holds train and test, or "
            "one folder per class, with --data-dir."
        )
    return classes


def _find_files(data_dir: Path, part: str, classes: list[str]) -> Files:
    folder, names, labels = data_dir / part, [], []
    for label, class_name in enumerate(classes):
        try:
            inside = sorted(_image_names(folder / class_name, data_dir))
        except OSError as error:
            raise _unreadable(error) from error
        if not inside:
            raise UserError(
                f"imagefolder: expected images ({' '.join(IMG_EXTENSIONS)}) in {folder / class_name}, found none; "
                "add some or remove the folder."
            )
        names += inside
        labels += [label] * len(inside)
    return Files(names, np.asarray(labels, dtype=np.int64))


def _unreadable(error: OSError) -> UserError:
    return UserError(
        f"imagefolder: {error.filename}: cannot be read ({error.strerror}); fix its permissions, or take it out of "
        "the folder of images."
    )


def _require_apart(data_dir: Path, classes: dict[str, list[str]]) -> None:
    """Raise UserError where, by a link, a class folder is that of another class, lies in one, or holds ``data_dir``.

    Args:
        classes: names by part.
    """
    folders = [(os.path.realpath(data_dir / part / name), part, name) for part in classes for name in classes[part]]
    # Compared by their parts, a folder comes right before what lies in it.
    folders.sort(key=lambda found: (found[0].split(os.sep), *found[1:]))
    root = os.path.realpath(data_dir) + os.sep
    for (real, part, name), following in zip(folders, [*folders[1:], None], strict=True):
        if root.startswith(os.path.join(real, "")):
            raise UserError(
                f"imagefolder: {data_dir / part / name} is a link to {real}, which holds all classes; remove it."
            )
        if following is None:
            continue
        other, other_part, other_name = following
        # A class may be the same in two parts, and a whole part another one, val a link to test.
        if other_name != name if other == real else other.startswith(os.path.join(real, "")):
            raise UserError(
                f"imagefolder: expected class folders without images in common, found that "
                f"{data_dir / other_part / other_name} is or lies in {data_dir / part / name}; remove the link."
            )


def _image_names(folder: Path, root: Path) -> Iterator[str]:
    """Regular files in ``folder`` and the folders in it that have the ending of an image, relative to ``root``.

    Raises:
        OSError: a folder cannot be read.
        UserError: a link to another folder, or out of ``folder``.
    """
    own = os.path.join(os.path.realpath(folder), "")
    waiting = [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                is_image = entry.name.lower().endswith(IMG_EXTENSIONS) and not entry.name.startswith(".")
                if entry.is_dir():
                    if entry.is_symlink():
                        raise UserError(
                            f"imagefolder: {entry.path} is a link to a folder, whose images would count twice or for "
                            "another class; remove it, or put the folder itself there."
                        )
                    waiting.append(entry.path)
                elif is_image and entry.is_symlink() and not os.path.realpath(entry.path).startswith(own):
                    raise UserError(
                        f"imagefolder: {entry.path} is a link out of its class folder, to "
                        f"{os.path.realpath(entry.path)}; put the file itself there, or a hard link to it."
                    )
                elif is_image and entry.is_file():
                    yield os.path.relpath(entry.path, root)
                elif is_image or not os.path.splitext(entry.name)[1]:
                    _require_there(entry)


def _require_there(entry: os.DirEntry | Path) -> None:
    """Raise UserError for a link to nothing, in whose place may be images or a folder: they'd be left out silently."""
    if not entry.name.startswith(".") and os.path.islink(entry) and not os.path.exists(entry):
        raise UserError(
            f"imagefolder: {os.fspath(entry)} is a link to {os.readlink(entry)}, which is not there; remove it, or put "
            "that there."
        )


@functools.cache
def images_in(root: Path) -> str:
    """The images under ``root`` in words, the same for a copy and another for other images.

    That is their number, and a hash of their names and sizes; empty where they cannot be listed, of which whoever reads
    them tells. It is found once in a process: a sweep asks for each of its runs, and there may be a million. Whoever
    wants it anew calls ``images_in.cache_clear()``.
    """
    try:
        classes, parts = list_images(root)
        names = sorted(name for files in parts.values() for name in files.names)
        sizes = [os.stat(root / name).st_size for name in names]
    except (UserError, OSError):
        return ""
    digest = hashlib.sha256()
    for name, size in zip(names, sizes, strict=True):
        digest.update(f"{name.replace(os.sep, '/')}\0{size}\0".encode(errors="surrogateescape"))
    return f"{len(names)} images of {len(classes)} classes (digest {digest.hexdigest()[:16]})"
