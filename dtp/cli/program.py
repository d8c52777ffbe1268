"""The program as a process, from its start to its end. Imports almost nothing."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib import import_module
from types import FrameType

from dtp.distributed.launcher import has_rank
from dtp.system.signals import STOP_SIGNALS, stop_request

# What follows ``dtp``: where its main is, and one line for --help.
COMMANDS = {
    "train": ("dtp.cli.train", "train a network; dtp train --help lists rules, networks, datasets and options"),
    "sweep": ("dtp.experiments.sweep.command", "run many runs from one small file, and draw them"),
    "search": ("dtp.experiments.search.command", "search for hyper-parameters"),
    "theory": ("dtp.experiments.theory.command", "measure what the papers prove"),
    "report": ("dtp.experiments.report.command", "write one page about many runs, beside published figures"),
    "slurm": ("dtp.slurm.__main__", "print a script for a SLURM cluster, or submit it"),
    "completion": ("dtp.cli.completion", "print what a shell needs to complete these commands"),
}


def console(argv: Sequence[str] | None = None) -> int:
    """The command ``dtp``: run the one that its first word names, and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else "--help"
    if name == "train":
        return program(words[1:])
    if name == "--version":
        return _to_the_end(_print_version)
    if name in ("--help", "-h"):
        return _to_the_end(_print_help)
    if name not in COMMANDS:
        from dtp.errors import did_you_mean

        hint = f"dtp train {name} ..." if name.startswith("-") else "dtp --help lists them"
        shown = name if name and name.isprintable() else repr(name)
        print(f"error: dtp {shown}: no such command{did_you_mean(name, COMMANDS)} ({hint}).", file=sys.stderr)
        return 2
    return command(COMMANDS[name][0], words[1:])


def program(argv: Sequence[str] | None = None) -> int:
    """Train as the words of this process say, and return its exit status; then let the process end.

    Signals are handled before anything else is imported, which takes seconds, and until the end.
    """
    _begin()
    stop_request.begin()
    # One of several processes has others to tell.
    stop_request.starting = not has_rank()
    status = 1
    try:
        from dtp.cli.train import main

        status = _to_the_end(lambda: main(argv))
    finally:
        _end(status, STOP_SIGNALS)
    return status


def command(module: str, argv: Sequence[str] | None = None) -> int:
    """The same for ``main`` of another module, where only Ctrl-C has to be answered: other signals end it."""
    _begin()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    status = 1
    try:
        status = _to_the_end(lambda: import_module(module).main(argv))
    except KeyboardInterrupt:
        # Just before main, or after it.
        status = _say_interrupted()
    finally:
        _end(status, [signal.SIGINT])
    return status


def _begin() -> None:
    """Settle what must be settled before a library is imported."""
    # Torch's threads spin while they wait for each other. On a busy CPU, where one of them often has no core, that
    # takes minutes for what takes seconds; so they sleep soon, unless the environment says how they wait.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # No library comes from the current folder, where python -m looks first; commands add it at the end. Of a current
    # folder that has been removed, they say so.
    with suppress(OSError):
        if not sys.flags.safe_path and sys.path[:1] in ([""], [os.getcwd()]):
            del sys.path[0]


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
    """Ignore signals, for the command is done; Ctrl-C only ends the process sooner."""
    for signum in ignored:
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGINT, lambda signum, frame: os._exit(status))


def _to_the_end(command: Callable[[], int]) -> int:
    """What ``command`` returns or exits with, after all its output; quietly where nobody reads that (head, less)."""
    _open_streams()
    status = 0
    try:
        try:
            status = command()
        except SystemExit as error:
            # Of --help; a text would be a message.
            if isinstance(error.code, str):
                raise
            status = error.code or 0
        sys.stdout.flush()
    except BrokenPipeError:
        # Elsewhere with the rest, so that the end of the interpreter does not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _open_streams() -> None:
    """Open to nowhere the streams that are closed (2>&-); a file would get the number of one, and its output."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            stream = open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8")
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def _print_version() -> int:
    from dtp import __version__

    print(f"targetprop {__version__}")
    return 0


def _print_help() -> int:
    print("Train deep networks by target propagation and its relatives.\n\nusage: dtp COMMAND [options]\n")
    for name, (_, summary) in COMMANDS.items():
        print(f"  {name:<12}{summary}")
    print(
        "\n  --version   the version\n\n"
        "dtp COMMAND --help says more of each. From Python: import dtp; dtp.train(...), dtp.load(...)."
    )
    return 0
