"""dtp train: from arguments to an exit status."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from dtp.cli.arguments import parse
from dtp.cli.commands import look_for_modules_here
from dtp.distributed import watch
from dtp.distributed.launcher import process_rank, require_sense
from dtp.errors import NO_ROOM, UserError, first_line, told_by_a_library, told_by_the_system
from dtp.system.memory import importing_torch
from dtp.system.signals import Interrupted, Stopped, stop_request


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's) and return its exit status.

    0: done. 1: an unexpected error. 2: a mistake of the user, told in one sentence. 75: stopped by SIGTERM, SIGUSR1
    or SIGHUP with a checkpoint, to be continued. 130: stopped by Ctrl-C with a checkpoint. Several processes that train
    together end with the status of the first that fails, which alone says why; then this does not return.
    """
    with stop_request.handled():
        return _main(list(sys.argv[1:] if argv is None else argv))


def _main(argv: list[str]) -> int:
    # torch logs in its own words, and with its own call stack, that a rank has gone; we say it in one sentence.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        look_for_modules_here()
        require_sense()
        # A class of the user's own imports torch as it is parsed.
        with importing_torch():
            config = parse(argv)
            # Only now: importing torch takes seconds, and --help and wrong options should not wait for it.
            from dtp.run.training import train

        stop_request.starting = False
        train(config, argv)
        watch.leave()
        return 0
    except UserError as error:
        return watch.end(2, f"error: {error}")
    except Stopped as stopped:
        # Agreed upon by all ranks, or found by one before they met.
        return watch.end(stopped.status, str(stopped) if watch.is_watching() or process_rank() == 0 else "")
    except (Interrupted, KeyboardInterrupt):
        return watch.end(130, "Interrupted.")
    except SystemExit as error:
        frame = _users_frame(error)
        if frame is None:
            # After --help.
            raise
        return watch.end(
            2,
            f"error: your file {frame.filename}, line {frame.lineno}, ended the program (sys.exit({error.code!r})) "
            "before the run was done; take that out of it, and raise an exception where something is wrong.",
        )
    except BrokenPipeError:
        # The reader of our output (head, less) went away; point stdout elsewhere so that exit does not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return watch.end(1, "error: nobody reads the output any more; go on with --resume auto.")
    except Exception as error:
        if _is_out_of_memory(error):
            return watch.end(2, f"error: out of memory ({first_line(error)}); use a smaller --batch-size or network.")
        if isinstance(error, OSError) and (why := told_by_the_system(error)):
            again = "go on with --resume auto" if error.errno in NO_ROOM else "try again"
            return watch.end(2, f"error: {why.replace('try again', again)}")
        if why := told_by_a_library(error):
            return watch.end(2, f"error: {why}")
        if watch.is_lost_connection(error) and watch.is_watching():
            why = "the connection to another rank broke, and all ranks are still there; go on with --resume auto."
            return watch.end(1, f"{traceback.format_exc()}error: {why}", lost_connection=True)
        return watch.end(1, f"{traceback.format_exc()}error: {_whose_defect(error, _own_classes(argv))}")


def _is_out_of_memory(error: Exception) -> bool:
    # The last of sizes that no memory has, as torch puts it.
    words = ("out of memory", "can't allocate memory", "Storage size calculation overflowed", "multiplication overflow")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def _whose_defect(error: Exception, own: Sequence[str] = ()) -> str:
    """What to say of an unexpected error: in which file of the user's own it arose, or that the defect is ours.

    Args:
        own: classes of the user's own that took part, which may have handed something on that we could not use.
    """
    frame = _users_frame(error)
    if frame is not None:
        return f"your file {frame.filename}, line {frame.lineno}, raised {type(error).__name__}: {error}"
    if own:
        return (
            f"{' or '.join(own)} may have handed back something that cannot be used ({type(error).__name__}: "
            f"{first_line(error)}); if the run does the same without it, please report it with the lines above."
        )
    return "this is a defect of dtp, not of your command; please report it with the lines above."


def _own_classes(argv: Sequence[str]) -> list[str]:
    """The classes of the user's own that a command line names."""
    words = [word.rpartition("=")[2] for word in argv]
    return [word for word in words if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", word)]


def _users_frame(error: BaseException) -> traceback.FrameSummary | None:
    """Where in a file of the user's own an exception arose, or was let through last; None if in none."""
    ours = Path(__file__).parents[1]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        is_library = "site-packages" in path.parts or str(path).startswith((sys.prefix, sys.base_prefix, "<"))
        if not is_library and ours not in path.parents and path != ours.parent / "main.py":
            return frame
    return None
