"""Signals only set a flag. The training loop checks it between two batches. Imports no torch.

Handled before torch is imported: a signal during the seconds of import would otherwise kill the job.
"""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


class StopRequest:
    """Remembers the first stop signal. A second Ctrl-C interrupts at once."""

    def __init__(self):
        self.signum: int | None = None
        # Until training runs there is nothing to save, and Ctrl-C should simply end the program.
        self.training = False
        # Whether this process is ours and only imports yet, which is no place for an exception of a handler: what is
        # imported may take it for its own, or print it.
        self.starting = False
        # What handled the signals before us, while we do.
        self._before: dict[int, Any] = {}

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals within it; afterwards whoever did before does again, and nothing is remembered.

        Only the main thread may handle signals. In another one nothing changes, and whoever sends them is answered by
        the program around us.
        """
        if threading.current_thread() is not threading.main_thread() or self._before:
            yield
            return
        self.begin()
        try:
            yield
        finally:
            for signum, handler in self._before.items():
                # None stands for a handler that was not set from Python, which cannot be set again from here.
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)
            self._before = {}
            self.signum, self.training = None, False

    def begin(self) -> None:
        """Handle the signals from now on, in the main thread."""
        self._before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
        self.take_back()

    def take_back(self) -> None:
        """Set our handlers again where we handle signals, after somebody else has set theirs."""
        for signum, before in self._before.items():
            # nohup has a hang-up ignored.
            if signum != signal.SIGHUP or before != signal.SIG_IGN:
                signal.signal(signum, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self.starting:
            os.write(2, b"Interrupted.\n")
            os._exit(130)
        if signum == signal.SIGINT and (self.signum == signal.SIGINT or not self.training):
            raise Interrupted
        if signum == signal.SIGHUP:
            _leave_terminal()
        if self.signum is None:
            self.signum = signum
            if signum == signal.SIGINT:
                # os.write is safe in a handler, print is not.
                os.write(2, b"\nStopping after this batch; Ctrl-C again stops at once without a checkpoint.\n")

    @property
    def name(self) -> str:
        """Name of the first stop signal, such as SIGTERM; empty where none has come."""
        return signal.Signals(self.signum).name if self.signum is not None else ""


def _leave_terminal() -> None:
    """Write to nowhere what would go to a terminal that has gone: that fails, before the checkpoint is written."""
    for output in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(output).st_mode):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, output)
                os.close(nowhere)


class Interrupted(BaseException):
    """Ctrl-C where nothing can or shall be saved.

    Not KeyboardInterrupt, which Lightning answers with an exit status of its own.
    """


stop_request = StopRequest()


class Stopped(Exception):
    """Training ended at a batch boundary because a signal asked for it; the checkpoint is written."""

    def __init__(self, text: str):
        super().__init__(text)
        # Ctrl-C ends as the shell expects; a scheduler's signal ends with EX_TEMPFAIL, "go on with me later".
        self.status = 130 if stop_request.signum == signal.SIGINT else 75
