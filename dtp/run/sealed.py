"""Files with a checksum of all their bytes, so that damage is always noticed: archives, safetensors.

torch writes a zip archive and reads it without comparing its checksums, which would not cover all of it anyway. Here
the SHA-256 of the file stands at its end, as the comment of the archive: one file under one or several names, written
or not, and one that torch and zip programs read as ever. Files of safetensors, a format that checks nothing but sizes,
have it among their metadata, taken of the file with zeros in its place.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zipfile
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch

# The last record of an archive: 22 bytes that end with the length of the comment, and the comment.
_END, _END_SIZE, _LENGTH_SIZE = b"PK\x05\x06", 22, 2
_NAME = b"sha256 "
_COMMENT_SIZE = len(_NAME) + 2 * hashlib.sha256().digest_size
_LENGTH = struct.pack("<H", _COMMENT_SIZE)
_BLOCK = 1 << 20


# The entry of the metadata, which are the first in the header; the header's length stands before it.
_ENTRY, _HEADER_LENGTH = re.compile(rb'"sha256":"(.{64})"', re.DOTALL), 8
_ZEROS = "0" * 64


class Damaged(ValueError):
    """The file is not what was written."""


def save_sealed(content: Any, file: BinaryIO) -> None:
    """``torch.save(content, file)`` into an empty file, with the digest."""
    # For torch.save it is file enough.
    digested: Any = _Digested(file)
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


def _digest(file: BufferedReader, size: int) -> bytes:
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


def sealed_tensors(tensors: dict[str, torch.Tensor]) -> bytes:
    """Tensors in the format of safetensors, with the digest. They have to be contiguous, and share no memory."""
    content = safetensors.torch.save(tensors, metadata={"format": "pt", "sha256": _ZEROS})
    return content.replace(_ZEROS.encode(), hashlib.sha256(content).hexdigest().encode(), 1)


def whole_tensors(path: Path) -> tuple[dict[str, torch.Tensor], bool]:
    """The tensors of a safetensors file, and whether it has the digest; a file of other programs has none.

    Raises:
        Damaged: any bit is not as :func:`sealed_tensors` wrote it.
        safetensors.SafetensorError: it is no such file.
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:_HEADER_LENGTH].ljust(_HEADER_LENGTH, b"\0"))
    entry = _ENTRY.search(content, _HEADER_LENGTH, _HEADER_LENGTH + min(length, len(content)))
    if entry:
        first, after = entry.span(1)
        digest = hashlib.sha256(memoryview(content)[:first])
        digest.update(_ZEROS.encode())
        digest.update(memoryview(content)[after:])
        if digest.hexdigest().encode() != entry[1]:
            raise Damaged("its bytes do not have the digest that it was written with")
    return safetensors.torch.load(content), entry is not None


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
