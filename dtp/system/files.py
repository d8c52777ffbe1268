"""Files that are written completely or not at all, and what a killed writer leaves. Imports no torch."""

from __future__ import annotations

import glob
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SUFFIX = ".tmp"


def temporary_beside(path: Path) -> Path:
    """A name in the folder of ``path`` that no other process writes to, for what is renamed to ``path`` when whole.

    What processes of this machine that have ended left of the same file goes.
    """
    stem = f".{path.name}.{socket.gethostname()}"
    for left in path.parent.glob(f"{glob.escape(stem)}.*{SUFFIX}"):
        if not _is_alive(left.name.removesuffix(SUFFIX).rpartition(".")[2]):
            left.unlink(missing_ok=True)
    return path.with_name(f"{stem}.{os.getpid()}{SUFFIX}")


@contextmanager
def replaced_when_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; at the end it takes the place of ``path``, or goes if that fails.

    Raises:
        OSError: of ``path``, not of the temporary name.
    """
    temporary = None
    try:
        temporary = temporary_beside(path)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        # What the system says of a full disk has no name at all.
        if error.errno is not None and (error.filename is None or str(error.filename).endswith(SUFFIX)):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        # On a disk that only reads, even what is not there cannot be removed.
        with suppress(OSError):
            if temporary is not None:
                temporary.unlink()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name, then rename it: readers see the old content or the new, never a part.

    Raises:
        OSError: of ``path``.
    """
    with replaced_when_whole(path) as temporary, temporary.open("wb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def keep_whole_lines(path: Path) -> None:
    """Cut off what follows the last newline of a file: of a line that a full disk, or a killed writer, has cut."""
    with path.open("r+b") as file:
        end = kept = file.seek(0, os.SEEK_END)
        while kept and (file.seek(kept - 1), file.read(1))[1] != b"\n":
            kept -= 1
        if kept < end:
            file.truncate(kept)


def write_json(path: Path, content: Any) -> None:
    """Write JSON with each list of numbers on a line of its own."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    write_atomically(path, re.sub(r"\[\n[^][{}\"]*\]", lambda found: " ".join(found[0].split()), text) + "\n")


def _is_alive(pid: str) -> bool:
    """Whether a process of that number runs, or cannot be known to have ended."""
    if os.name != "posix" or not pid.isdecimal():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
