"""The program as a process of its own, from its first moment to its last. Imports next to nothing."""

from __future__ import annotations

import os
import signal

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
        # What is to be said has been: a signal changes nothing any more, and Ctrl-C only has the process end sooner.
        for signum in STOP_SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
        signal.signal(signal.SIGINT, lambda signum, frame: os._exit(status))
    return status
