"""Files derived from a dataset: where they are stored, when they are out of date, and how they are written."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dtp.errors import UserError, user_path
from dtp.system.files import replaced_when_whole
from dtp.system.locks import locked


def data_folder(name: str) -> Path:
    """The folder that ``--data-dir NAME`` means.

    For ``auto`` the first there is of: ``$DTP_DATA_DIR``; ``data``, where that is a folder; ``datasets`` in torch's
    cache, which is ``$TORCH_HOME``, ``$XDG_CACHE_HOME/torch`` or ``~/.cache/torch``.

    Raises:
        UserError: the home folder of nobody.
    """
    if name != "auto":
        return user_path(name)
    if named := os.environ.get("DTP_DATA_DIR"):
        return user_path(named)
    here, cache = Path("data"), user_cache()
    home = os.environ.get("TORCH_HOME") or (cache and cache.with_name("torch"))
    return here if here.is_dir() or home is None else user_path(home) / "datasets"


def cache_folder(data_dir: Path) -> Path:
    """``data_dir`` if it can be written to, otherwise a folder of its own in the user's cache directory."""
    if os.access(data_dir, os.W_OK):
        return data_dir
    cache = user_cache()
    # Nothing can be written then; whoever tries says so.
    return data_dir if cache is None else cache / _digest(data_dir.resolve())


def user_cache() -> Path | None:
    """Our folder in the user's cache directory; None for a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dtp"
    except RuntimeError:
        # No $HOME, and no entry in the list of users.
        return None


def _digest(*what: object) -> str:
    return hashlib.sha256(" ".join(map(str, what)).encode(errors="surrogateescape")).hexdigest()[:16]


@contextmanager
def data_lock(name: str, data_dir: Path) -> Iterator[None]:
    """Let one process of the user on this machine at a time prepare the dataset ``name`` in ``data_dir``.

    The lock lies in the user's cache directory, where nobody else can put one, or in ``data_dir`` if there is no such
    directory. Where neither can be written to, there is no lock.

    Raises:
        Stopped: a signal came while we waited for another process.
    """
    file = f"data-{_digest(name, data_dir.resolve())}.lock"
    cache = user_cache()
    with ExitStack() as stack:
        for folder, prefix in ((cache and cache / "locks", ""), (data_dir, ".dtp-")):
            try:
                if folder is not None:
                    if folder != data_dir:
                        folder.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(locked(folder / f"{prefix}{file}", remove=True))
                    break
            except OSError:
                continue
        yield


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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_when_whole(path) as temporary:
            yield temporary
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"{path} could not be written ({why}); free space there or choose another folder.") from error
