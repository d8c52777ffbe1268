"""Locks between processes of one machine. Imports no torch."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows has no flock; there the locks do nothing.
    fcntl = None


def try_lock(path: Path) -> IO[str] | None:
    """Hold the lock file ``path`` until the returned file is closed or the process ends, however it ends.

    Returns:
        None if another process holds it.
    """
    file = path.open("a")
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            file.close()
            return None
        # Some network file systems know no locks; training goes on without.
    return file


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock file ``path`` and hold it."""
    with path.open("a") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno == errno.EINTR:
                raise
        yield
