"""Run a mistake in this process and judge how it was told."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from dtp.cli.train import main
from tests.chaos.mistakes import Mistake, prepare
from tests.chaos.own import IMPORTS, Own

# What keeps the runs short that a mistake which is not noticed would start.
SHORT = ("--model", "mlp", "--widths", "8", "--max-epochs", "1", "--limit-train-batches", "3", "--batch-size", "128")


# Seconds after which a command counts as one that hangs; none trains for longer than a second.
LIMIT = 60


class Hung(BaseException):
    """A command took too long. No Exception, which whoever hangs may take for its own."""


@contextlib.contextmanager
def _at_most(seconds: float):
    def ring(signum, frame):
        raise Hung(f"after {seconds:.0f} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_quietly(words: Sequence[str]) -> tuple[int | str, str]:
    """The exit status of a command, or the exception that it let through, and what it wrote to stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("always")
        try:
            with _at_most(LIMIT):
                status: int | str = main(list(words))
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            status = f"{type(error).__name__}: {error}"
    return status, err.getvalue()


def fault(status: int | str, err: str, expected: int = 2) -> str:
    """What is wrong with the way a mistake was told; empty if nothing is."""
    sentences = [line for line in err.splitlines() if line.startswith("error: ")]
    last = (err.strip().splitlines() or [""])[-1][:200]
    if status != expected:
        return f"status {status} in place of {expected}: {last}"
    if "defect of dtp" in err:
        return f"called a defect of dtp: {last}"
    if len(sentences) != 1:
        return f"{len(sentences)} sentences in place of one: {last}"
    if expected == 2 and "Traceback" in err:
        return f"a traceback: {last}"
    others = [line for line in err.splitlines() if line.strip() and not line.startswith("error: ")]
    if expected == 2 and others:
        return f"{len(others)} further lines: {others[0][:200]}"
    return ""


def judge_mistake(mistake: Mistake, here: Path) -> str:
    """What is wrong with the answer to a row of the table, in the empty folder ``here``; empty if nothing is."""
    prepare(here)
    before = _names(here)
    words = list(mistake.words)
    # What the row says beats what makes runs short; a stray word would become a value of the option before it.
    given = {word.partition("=")[0] for word in words}
    short = [
        word for flag, value in zip(SHORT[::2], SHORT[1::2], strict=True) if flag not in given for word in (flag, value)
    ]
    if "--model" in given or {"gait", "hebb", "competitive", "dtp-dae"} & set(words):
        short = [
            w for i in range(0, len(short), 2) if short[i] not in ("--widths", "--model") for w in short[i : i + 2]
        ]
    place = [] if {"--run-dir", "--resume"} & given else ["--run-dir", "run"]
    with _in_folder(here):
        found = fault(*run_quietly([*short, *place, *words]))
    return found or _left(before, here)


def judge_own(own: Own, here: Path) -> str:
    """What is wrong with the answer to a mistake in a class; empty if nothing is."""
    (here / "own_part.py").write_text(f"{IMPORTS}{own.code}\n")
    with _in_folder(here):
        status, err = run_quietly(own.words)
    found = fault(status, err, own.status)
    if not found and "Own" not in err and "own_part" not in err:
        return f"names neither the class nor its file: {err.strip()[:200]}"
    return found


@contextlib.contextmanager
def _in_folder(here: Path):
    before, path = os.getcwd(), list(sys.path)
    os.chdir(here)
    for name in ("own_part", "syntax", "raises", "module"):
        sys.modules.pop(name, None)
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path
        sys.path_importer_cache.clear()


def _names(here: Path) -> set[str]:
    return {str(path) for path in here.rglob("*") if "__pycache__" not in path.parts}


def _left(before: set[str], here: Path) -> str:
    left = sorted(_names(here) - before)
    return f"left {Path(left[0]).relative_to(here)} behind" if left else ""
