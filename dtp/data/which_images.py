"""Which images a folder of class folders holds, wherever it lies. Imports no torch."""

import functools
import hashlib
import os
from contextlib import suppress
from pathlib import Path

# Those of torchvision.
IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@functools.cache
def images_in(root: Path) -> str:
    """The images under ``root`` in words, the same for a copy and another for other images; empty where there are none.

    That is their number, and a hash of their names and sizes. It is found once in a process: a sweep asks for each of
    its runs, and there may be a million. Whoever wants it anew calls ``images_in.cache_clear()``.
    """
    parts = [part for part in ("train", "val", "test") if (root / part).is_dir()] or [""]
    sizes: dict[str, int] = {}
    for path, below, files in (found for part in parts for found in os.walk(root / part, followlinks=True)):
        # Class folders may be links; one to a folder that holds it has no end.
        below[:] = [name for name in below if not name.startswith(".") and not _holds(os.path.join(path, name), path)]
        folder = os.path.relpath(path, root).replace(os.sep, "/")
        for name in files:
            if name.lower().endswith(IMG_EXTENSIONS) and not name.startswith("."):
                # A link to nothing: whoever reads the images says so.
                with suppress(OSError):
                    sizes[f"{folder}/{name}"] = os.stat(os.path.join(path, name)).st_size
    if not sizes:
        return ""
    digest = hashlib.sha256()
    for name in sorted(sizes):
        digest.update(f"{name}\0{sizes[name]}\0".encode(errors="surrogateescape"))
    folders = len(set(map(os.path.dirname, sizes)))
    return f"{len(sizes)} images in {folders} folders (digest {digest.hexdigest()[:16]})"


def _holds(link: str, path: str) -> bool:
    """Whether ``link`` is a link to ``path``, or to a folder above it."""
    if not os.path.islink(link):
        return False
    return os.path.join(os.path.realpath(path), "").startswith(os.path.join(os.path.realpath(link), ""))
