"""Files derived from a dataset: where they go, when they are out of date, and how they are written."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dtp.errors import UserError
from dtp.files import temporary_beside


def cache_folder(data_dir: Path) -> Path:
    """``data_dir`` if it can be written to, otherwise a folder of its own in the user's cache directory."""
    if os.access(data_dir, os.W_OK):
        return data_dir
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return user_cache / "dtp" / hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:16]


def fingerprint(root: Path, names: list[str], *settings: object) -> str:
    """Hash of the names, sizes and modification times of files under ``root``, and of ``settings``."""
    digest = hashlib.sha256(repr(settings).encode())
    for name in names:
        status = os.stat(root / name)
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to, renamed to ``path`` at the end, or removed if that fails.

    Raises:
        UserError: the file system refuses (full, read-only).
    """
    # Processes on several machines may write the same file at once: each its own copy, the last rename wins.
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} could not be written ({error}); free space there or choose another folder.") from error
    finally:
        temporary.unlink(missing_ok=True)
