"""Archives that carry a digest of all their bytes, so that no damage passes for other weights.

torch writes a zip archive and reads it without comparing its checksums, which would not cover all of it anyway. Here
the SHA-256 of the file stands at its end, as the comment of the archive: one file under one or several names, written
or not, and one that torch and zip programs read as ever.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

# The last record of an archive: 22 bytes that end with the length of the comment, and the comment.
_END, _END_SIZE, _LENGTH_SIZE = b"PK\x05\x06", 22, 2
_NAME = b"sha256 "
_COMMENT_SIZE = len(_NAME) + 2 * hashlib.sha256().digest_size
_LENGTH = struct.pack("<H", _COMMENT_SIZE)
_BLOCK = 1 << 20


class Damaged(ValueError):
    """The file is not what was written."""


def save_sealed(content: Any, file: BinaryIO) -> None:
    """``torch.save(content, file)`` into an empty file, with the digest."""
    digested = _Digested(file)
    torch.save(content, digested)
    digested.seal()


def require_whole(path: Path) -> None:
    """Read the whole of an archive that :func:`save_sealed` wrote, or torch alone, as earlier versions did.

    Raises:
        Damaged: any bit is not as it was written; of archives without digest, any bit of what they hold.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _END_SIZE - _COMMENT_SIZE))
        tail = file.read()
        sealed = tail[:4] == _END and tail[_END_SIZE - _LENGTH_SIZE :].startswith(_LENGTH + _NAME)
        if sealed:
            if _digest(file, size - _COMMENT_SIZE) != tail[-_COMMENT_SIZE + len(_NAME) :]:
                raise Damaged("its bytes do not have the digest that it was written with")
        elif tail[-_END_SIZE:][:4] == _END and tail[-_LENGTH_SIZE:] == bytes(_LENGTH_SIZE):
            _compare_checksums(file)
        else:
            raise Damaged("its end is missing, or not that of a checkpoint")


def _digest(file: BinaryIO, size: int) -> bytes:
    """The digest, in hexadecimal, of the first ``size`` bytes."""
    file.seek(0)
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_BLOCK))
    while size and (count := file.readinto(buffer[: min(size, _BLOCK)])):
        digest.update(buffer[:count])
        size -= count
    return digest.hexdigest().encode()


def _compare_checksums(file: BinaryIO) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, struct.error) as error:
        raise Damaged(str(error)) from error
    if bad:
        raise Damaged(f"the checksum of {bad} is another one")


class _Digested:
    """A file that is written to from its beginning to its end, and the digest of all but its last two bytes."""

    def __init__(self, file: BinaryIO):
        self._file, self._digest, self._tail = file, hashlib.sha256(), b""

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if len(view) < _LENGTH_SIZE:
            self._tail += view
        else:
            self._digest.update(self._tail)
            self._digest.update(view[:-_LENGTH_SIZE])
            self._tail = bytes(view[-_LENGTH_SIZE:])
        self._digest.update(self._tail[:-_LENGTH_SIZE])
        self._tail = self._tail[-_LENGTH_SIZE:]
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def seal(self) -> None:
        """Put the digest in the place of the empty comment that the archive ends with."""
        self._digest.update(_LENGTH)
        self._file.seek(-_LENGTH_SIZE, os.SEEK_END)
        self._file.write(_LENGTH + _NAME + self._digest.hexdigest().encode())
