"""Locks between processes of one machine. Imports no torch."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from dtp.system.signals import Stopped, stop_request

try:
    import fcntl
except ImportError:  # Windows has no flock; there the locks do nothing.
    fcntl = None

PERIOD = 0.05
# After so many seconds a process says whom it waits for.
SILENCE = 1.0


def try_lock(path: Path) -> IO[str] | None:
    """Hold the lock file ``path`` until the returned file is closed or the process ends, however it ends.

    Returns:
        None if another process holds it.

    Raises:
        OSError: the file cannot be written, or is a link.
    """
    # Not through a link, which whoever may write into the folder could point at any file of ours, and not waiting for
    # the reader of a pipe.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    file = os.fdopen(os.open(path, flags, 0o666), "r+", encoding="utf-8", errors="replace")
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
def locked(path: Path, remove: bool = False) -> Iterator[None]:
    """Wait for the lock file ``path`` and hold it. Who has to wait for long says for whom.

    Args:
        remove: the file, at the end.

    Raises:
        OSError: the file cannot be written, or is a link.
        Stopped: a signal asks to stop while we wait.
    """
    with _wait_for(path) as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            if remove:
                # Before it is let go: whoever waits for it then finds that it has another file than the next one.
                with suppress(OSError):
                    path.unlink()


def _wait_for(path: Path) -> IO[str]:
    begin, told, before = time.monotonic(), False, stop_request.signum
    while True:
        file = try_lock(path)
        if file is not None and _is_there(file, path):
            return file
        if file is not None:
            file.close()
            continue
        if not told and time.monotonic() - begin >= SILENCE:
            told = True
            print(f"waiting for {_holder(path)}, which holds {path}", file=sys.stderr, flush=True)
        # While jobs are stopped, what they have come to is still noted under a lock.
        if stop_request.signum is not None and not (stop_request.training and stop_request.signum == before):
            raise Stopped(f"Stopped by {stop_request.name} while it waited for {_holder(path)}, which holds {path}.")
        time.sleep(PERIOD)


def _is_there(file: IO[str], path: Path) -> bool:
    """Whether ``path`` is still the name of ``file``; the one before us may have removed it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.lstat(path))
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")[:100].strip() or "another process"
    except OSError:
        return "another process"
