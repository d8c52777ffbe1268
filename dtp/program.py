"""The program as a process of its own, from its first moment to its last. Imports next to nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from importlib import import_module
from types import FrameType

from dtp.signals import STOP_SIGNALS, stop_request


def program() -> int:
    """Run the command line of this process and return its exit status; then let the process end.

    Signals are handled before anything else is imported, which takes seconds, and until the end.
    """
    stop_request.begin()
    # One of several processes has others to tell.
    stop_request.starting = not {"RANK", "LOCAL_RANK", "SLURM_PROCID"} & set(os.environ)
    status = 1
    try:
        from dtp.cli import main

        status = main()
    finally:
        _end(status, STOP_SIGNALS)
    return status


def command(module: str) -> int:
    """The same for ``main`` of a module beside it, where only Ctrl-C has to be answered: other signals end it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    status = 1
    try:
        status = import_module(module).main()
    except KeyboardInterrupt:
        # Just before main, or after it.
        status = _say_interrupted()
    finally:
        _end(status, [signal.SIGINT])
    return status


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; within an import, which may take it for its own or print it, end the process."""
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            os._exit(_say_interrupted())
        frame = frame.f_back
    raise KeyboardInterrupt


def _say_interrupted() -> int:
    os.write(2, b"Interrupted.\n")
    return 130


def _end(status: int, ignored: Iterable[int]) -> None:
    """What is to be said has been: a signal changes nothing any more, and Ctrl-C only has the process end sooner."""
    for signum in ignored:
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGINT, lambda signum, frame: os._exit(status))
