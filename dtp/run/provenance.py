"""What a result was made with: versions, hardware, commit. Imports no torch by itself."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from dtp import __version__

_PASSWORD_IN_URL = re.compile(r"(\w://[^\s:/@]*):.*@", re.DOTALL)
_SECRET_NAME = r"(?:password|passwd|pwd|secret|token|api_?key|access_?key)"
_SECRET_IN_URL = re.compile(rf"([?&;]\w*{_SECRET_NAME})=[^&;\s]*", re.IGNORECASE)


def masked(text: str) -> str:
    """``text``, an option's value or a word of a command, without the passwords of URLs in it."""
    if "://" not in text:
        return text
    return _SECRET_IN_URL.sub(r"\1=***", _PASSWORD_IN_URL.sub(r"\1:***@", text))


def recorded(words: Sequence[str]) -> str:
    """A command for the record: as it is typed, but without passwords."""
    return shlex.join(map(masked, words))


# Flags whose values are places of one machine; those of the group are places that a command reads.
_PLACE = re.compile(
    "--(output|runs|run[-_]dir|resume|study|store|write[-_]preset|wandb[-_]sweep|(data[-_]dir|init[-_]weights))"
)


def without_places(words: Iterable[str]) -> list[str]:
    """The words of a command without the folders of one machine: those that it reads are DIR, its own are left out."""
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        flag, equals, _ = word.partition("=")
        place = _PLACE.fullmatch(flag)
        if not place:
            kept.append(word)
            continue
        kept += [flag, "DIR"] if place[2] else []
        if not equals:
            next(rest, None)
    return kept


def words_of(command: str) -> list[str]:
    """The words of a recorded command; also of one that was written by hand and is no line of a shell."""
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


def portable(command: str) -> str:
    """A recorded command as on any machine: without its folders, and with main.py where one stands."""
    words = words_of(command)
    if words[1:] and words[1].endswith("main.py"):
        words[1] = "main.py"
    return shlex.join(without_places(words))


def versions() -> dict[str, str]:
    """Versions of dtp, Python, torch and Lightning, and the commit of the source tree."""
    import lightning
    import torch

    return {
        "dtp": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
    }


def hardware() -> dict[str, Any]:
    """The processor, and the threads that torch uses of it."""
    import torch

    return {"device": cpu_name(), "threads": torch.get_num_threads()}


def cpu_name() -> str:
    """Name of the processor and the number of its cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


@cache
def commit() -> str:
    """Commit of the source tree when it was first asked for; empty when it is not a checkout.

    Ask as a run begins: the files may change before it ends, and its results are of the code that it began with.
    """
    # Installed within another project, in its virtual environment say, we would be told that one's commit.
    return _git("describe", "--always", "--dirty", "--abbrev=12") if _git("ls-files", Path(__file__).name) else ""


def _git(*words: str) -> str:
    """What git says in the folder of this file; empty where it fails."""
    try:
        done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
