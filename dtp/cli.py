"""The command line: from words to an exit status."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from dtp.arguments import parse
from dtp.errors import UserError
from dtp.runs import process_rank
from dtp.signals import Interrupted, Stopped, stop_request


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's) and return its exit status.

    0: done. 1: an unexpected error. 2: a mistake of the user, told in one sentence. 75: stopped by SIGTERM or SIGUSR1
    with a checkpoint, to be continued. 130: stopped by Ctrl-C with a checkpoint.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    stop_request.install()
    # A user's own rule lies in a file where the command is typed.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        config = parse(argv)
        # Only now: importing torch takes seconds, and --help and wrong options should not wait for it.
        from dtp.train import train

        train(config, argv)
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        if process_rank() == 0:
            print(str(stopped), file=sys.stderr)
        # Lightning kills the first process of a plain command when one that it started ends with another status than 0.
        return 0 if _started_by_lightning() else stopped.status
    except (Interrupted, KeyboardInterrupt):
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) went away; point stdout elsewhere so that exit does not complain.
        print("error: nobody reads the output any more; go on with --resume auto.", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if _is_out_of_memory(error):
            print(
                f"error: out of memory ({_first_line(error)}); use a smaller --batch-size or network.", file=sys.stderr
            )
            return 2
        traceback.print_exc()
        print(f"error: {_whose_defect(error)}", file=sys.stderr)
        return 1


def _started_by_lightning() -> bool:
    """Whether this is a further process of a plain ``python main.py --devices N``."""
    return process_rank() > 0 and not {"TORCHELASTIC_RUN_ID", "SLURM_PROCID"} & set(os.environ)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _whose_defect(error: Exception) -> str:
    """What to say of an unexpected error: in which file of the user's own it arose, or that the defect is ours."""
    ours = Path(__file__).parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        is_library = "site-packages" in path.parts or str(path).startswith((sys.prefix, sys.base_prefix, "<"))
        if not is_library and ours not in path.parents and path != ours.parent / "main.py":
            return f"your file {path}, line {frame.lineno}, raised {type(error).__name__}: {error}"
    return "this is a defect of dtp, not of your command; please report it with the lines above."
