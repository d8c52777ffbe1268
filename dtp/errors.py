"""Errors that are the user's mistake, not the program's."""

import difflib
import errno
import os
from pathlib import Path

# What a full disk, a quota and a limit of file sizes say.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# What else the system says of a path that is not for us, or of a device that only reads or fails.
NO_PATH = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENXIO,
    errno.EIO,
    errno.ESTALE,
    errno.EMFILE,
    errno.ENFILE,
)

# Environment variables that libraries read as they are imported, by how their complaints begin.
READ_BY_LIBRARIES = {"Key backend: ": "MPLBACKEND", "Invalid log settings: ": "TORCH_LOGS"}


class UserError(Exception):
    """A mistake that the user can correct.

    The message is one sentence (or two) that says what was expected, what was found and what to do. The command line
    prints it to stderr without a traceback and exits with status 2.
    """


class Diverged(UserError):
    """Training reached numbers that are not finite, and would again with the same options."""


def told_by_the_system(error: OSError) -> str:
    """One sentence for an error of the operating system about a file; empty if it may be a defect of the program."""
    if error.errno in NO_ROOM:
        what = f"{error.filename}: cannot be written" if error.filename else "a file cannot be written"
        return f"{what} ({error.strerror}); make room, then try again."
    if error.errno in NO_PATH:
        what = f"{error.filename}: cannot be read or written" if error.filename else "a file cannot be read or written"
        return f"{what} ({error.strerror}); fix its permissions or give another path."
    return ""


def told_by_a_library(error: Exception) -> str:
    """One sentence for what a library says of an environment variable that it reads; empty for any other error."""
    said = first_line(error)
    for words, name in READ_BY_LIBRARIES.items():
        if name in os.environ and said.startswith(words):
            return f"{name}: expected a value that its library knows, found another ({said}); fix it, or unset it."
    return ""


def first_line(error: BaseException) -> str:
    """What an error says, without the lines that libraries add."""
    return str(error).strip().partition("\n")[0]


def user_path(text: str | os.PathLike[str]) -> Path:
    """The path that the user means, where ``~`` is a home folder.

    Raises:
        UserError: it is no path, or there is no user of that name.
    """
    if not isinstance(text, str | os.PathLike):
        raise UserError(f"Expected a path, found {type(text).__name__}.")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{text}: expected a path, found the home folder of a user that this machine does not know; write the path "
            "out."
        ) from error


def all_in_turn(error: BaseException, before: BaseException | None = None) -> list[BaseException]:
    """``error`` and what it arose from or while handling, the latest first; not what was hidden (``from None``).

    Args:
        error: the last of them.
        before: what was being handled anyway (``sys.exception()``), which has nothing to do with it.
    """
    found, each = [], error
    while each is not None and each is not before and each not in found:
        found.append(each)
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    return found


def first_reason(error: RuntimeError, before: BaseException | None = None) -> str:
    """What the first RuntimeError of :func:`all_in_turn` says, in one line, or its type where it says nothing.

    An error of another kind was dealt with by what raised that.
    """
    first = [each for each in all_in_turn(error, before) if isinstance(each, RuntimeError)][-1]
    return first_line(first).rstrip(".") or type(first).__name__


def did_you_mean(word: str, known) -> str:
    """``"; did you mean X?"`` for the known word closest to ``word``, or nothing when none is close."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=0.6)
    return f"; did you mean {by_lower[close[0]]}?" if close else ""


def ended(sentence: str) -> str:
    """``sentence`` with a full stop, unless it ends with the question of :func:`did_you_mean`."""
    return sentence if sentence.endswith("?") else f"{sentence}."
