"""From the words of a command beside main.py to its exit status. Imports no torch."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence

from dtp.errors import NO_ROOM, UserError
from dtp.signals import Interrupted, Stopped


def run_command(command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """What ``command`` returns for ``argv``; 2 after a mistake of the user, which is printed in one sentence.

    75 where a signal stopped it, 130 for Ctrl-C. Unexpected errors pass.
    """
    if os.getcwd() not in sys.path:
        # A user's own rule lies in a file where the command is typed.
        sys.path.insert(0, os.getcwd())
    try:
        return command(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.status
    except (Interrupted, KeyboardInterrupt):
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in (*NO_ROOM, errno.EACCES, errno.EPERM):
            raise
        what = f"{error.filename}: cannot be written" if error.filename else "a file cannot be written"
        print(f"error: {what} ({error.strerror}); make room or mend its permissions, then try again.", file=sys.stderr)
        return 2
