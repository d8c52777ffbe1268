"""Signals only set a flag; whoever trains looks at it between two batches. Imports no torch.

Installed before torch is imported: a signal during the seconds of import would otherwise kill the job.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Remembers the first stop signal. A second Ctrl-C interrupts at once."""

    def __init__(self):
        self.signum: int | None = None
        # Until training runs there is nothing to save, and Ctrl-C should simply end the program.
        self.training = False

    def install(self) -> None:
        for signum in STOP_SIGNALS:
            signal.signal(signum, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and (self.signum == signal.SIGINT or not self.training):
            raise Interrupted
        if self.signum is None:
            self.signum = signum
            if signum == signal.SIGINT:
                # os.write is safe in a handler, print is not.
                os.write(2, b"\nStopping after this batch; Ctrl-C again stops at once without a checkpoint.\n")

    @property
    def name(self) -> str:
        return signal.Signals(self.signum).name if self.signum is not None else ""


class Interrupted(BaseException):
    """Ctrl-C where nothing can or shall be saved.

    Not KeyboardInterrupt, which Lightning answers with an exit status of its own.
    """


stop_request = StopRequest()


class Stopped(Exception):
    """Training ended at a batch boundary because a signal asked for it; the checkpoint is written."""

    # Ctrl-C ends as the shell expects; a scheduler's signal ends with EX_TEMPFAIL, "go on with me later".
    @property
    def status(self) -> int:
        return 130 if stop_request.signum == signal.SIGINT else 75
