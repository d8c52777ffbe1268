"""Makes the ranks of a run end together: one says why, and none waits for a rank that is gone.

A rank that waits in a collective for one that has failed notices nothing (NCCL), or loses its connection and fails in
turn (gloo). So each process of several has two threads beside its training. One is in contact with the others through a
torch.distributed store of rank 0 (of torchrun, where that has one): it sends a heartbeat every second and reads those
of the others, and the verdict. The verdict is the failure that ends the run; the first rank to write it is the one that
prints. The other thread judges who has been silent for too long, the store included, and is never blocked by it. The
thread that reads a verdict ends its process, wherever its training is.

Imports no torch until a process is known to be one of several.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn

from dtp.distributed.launcher import Place, place_of_process, started_by_lightning
from dtp.errors import first_line
from dtp.system.signals import stop_request

PERIOD = 1.0
# Without a sign of life for so many seconds, a rank counts as gone...
LIMIT = 30.0
# ...and for so many, where something else is wrong already: a connection that broke, a launcher that wants us to stop.
SUSPICIOUS_LIMIT = 10.0
# How long a rank looks for rank 0 before it gives up, and one that has failed before it speaks for itself.
CONNECT_LIMIT = 300.0
START_LIMIT = 60.0
# How long rank 0, whose store they read, waits for the others to end.
FAREWELL = 10.0

LEFT = "left"


@dataclass
class Peer:
    """Another rank as it was last seen: its sign of life (number, machine, process), and when that changed."""

    sign: str
    seen: float = field(default_factory=time.monotonic)

    @property
    def where(self) -> str:
        """Its process and machine in words, as the sign says them."""
        _, machine, process = self.sign.split(" ")
        return f"process {process} on {machine}"


class Watch:
    """Keeps this process in contact with the other ranks, from :meth:`begin` until :meth:`leave` or the end.

    Args:
        place: of this process.
        children: processes that this one started, rank 1 first.
        limit: seconds of silence after which a rank counts as gone.
        suspicious_limit: the same once something else is wrong.
    """

    def __init__(
        self,
        place: Place,
        children: Sequence[subprocess.Popen] = (),
        limit: float = LIMIT,
        suspicious_limit: float = SUSPICIOUS_LIMIT,
    ):
        self.place = place
        self.children = dict(enumerate(children, start=1))
        self.limit, self.suspicious_limit = limit, suspicious_limit
        self.over = threading.Event()
        self._suspicious = False
        self._store: Any = None
        self._connected = threading.Event()
        self._contact = time.monotonic()
        self._lost: Exception | None = None
        self._peers: dict[int, Peer] = {}
        self._dead: set[int] = set()
        self._facts: dict[str, str] = {}
        self._lock = threading.Lock()
        # Taken once, by the thread that ends this process.
        self._ending = threading.Lock()

    def begin(self) -> Watch:
        """Start the two threads, which end with the process, and return this watch. Does not wait for a contact."""
        for target in (self._keep_contact, self._judge):
            threading.Thread(target=target, name=f"dtp{target.__name__}", daemon=True).start()
        return self

    # --- what the training says and asks ----------------------------------------------------------------------------

    def tell(self, name: str, value: Any) -> None:
        """Let every rank know ``value``, which JSON can hold."""
        with self._lock:
            self._facts[name] = json.dumps(value)
            if self._connected.is_set():
                self._store.set(f"fact/{name}", self._facts[name])

    def ask(self, name: str) -> Any:
        """What another rank told; waits for it. Should that rank fail, this process ends with it."""
        self._connected.wait()
        while not self._store.check([f"fact/{name}"]):
            time.sleep(0.1)
        return json.loads(self._store.get(f"fact/{name}"))

    def leave(self) -> None:
        """The run is over for this rank, as it should be. Rank 0 goes last, for the others need its store."""
        if self.is_ending():
            # With the status of the rank that failed.
            self._ending.acquire()
        if self.over.is_set():
            return
        self._connected.wait()
        self._sign(LEFT)
        if self.place.serves and (verdict := self._wait_for_others()):
            self._exit(verdict["status"])

    def is_ending(self) -> bool:
        """Whether a thread is ending this process, whose training may still run into the end of the others."""
        return self._ending.locked()

    def end(self, status: int, text: str) -> NoReturn:
        """End all ranks with ``status``. Prints ``text``, unless another rank was first to end them."""
        # Never released: whoever comes second waits here for the end.
        self._ending.acquire()
        claim = {"rank": self.place.rank, "status": status, "gone": sorted(self._dead)}
        verdict = _within(START_LIMIT, lambda: self._claim(claim))
        if verdict is None or verdict == claim:
            say(text)
        if verdict is not None:
            self._end_as(verdict)
        self._exit(status, heard=False)

    def end_for_lost_connection(self, text: str) -> NoReturn:
        """End after a connection broke: that is some other rank's end, of which there will be word soon.

        Should there be none, ``text`` is printed.
        """
        self._suspicious = True
        time.sleep(self.suspicious_limit + 5 * PERIOD)
        self.end(1, text)

    # --- the thread in contact with the store -----------------------------------------------------------------------

    def _keep_contact(self) -> None:
        try:
            self._connect()
            number = 0
            while not self.over.is_set():
                number += 1
                self._sign(f"{number} {socket.gethostname()} {os.getpid()}")
                if verdict := self._verdict():
                    self._follow(verdict)
                self._look_for_others()
                self._contact = time.monotonic()
                self.over.wait(PERIOD)
        except Exception as error:
            self._lost = error

    def _connect(self) -> None:
        from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage] (documented there)

        place = self.place
        if not place.serves:
            _wait_for_server(place)
        # Rank 0's server is one with that of the process group, which torch.distributed makes at the same address.
        store = TCPStore(
            place.address,
            place.port,
            is_master=place.serves,
            timeout=timedelta(seconds=CONNECT_LIMIT),
            wait_for_workers=False,
            multi_tenant=True,
        )
        with self._lock:
            self._store = PrefixStore(f"dtp/{place.attempt}", store)
            for name, value in self._facts.items():
                self._store.set(f"fact/{name}", value)
            self._contact = time.monotonic()
            self._connected.set()

    def _sign(self, sign: str) -> None:
        """Write this rank's sign of life; after ``LEFT`` there is none."""
        with self._lock:
            if not self.over.is_set():
                if sign == LEFT:
                    self.over.set()
                self._store.set(f"alive/{self.place.rank}", sign)

    def _read_sign(self, rank: int) -> str:
        """The sign of life of another rank; empty if it has not begun."""
        name = f"alive/{rank}"
        return self._store.get(name).decode() if self._store.check([name]) else ""

    def _others(self) -> list[int]:
        return [rank for rank in range(self.place.ranks) if rank != self.place.rank]

    def _look_for_others(self) -> None:
        for rank in self._others():
            sign = self._read_sign(rank)
            if sign == LEFT:
                self._peers.pop(rank, None)
            elif sign and (rank not in self._peers or self._peers[rank].sign != sign):
                self._peers[rank] = Peer(sign)

    def _verdict(self) -> dict[str, Any] | None:
        return json.loads(self._store.get("verdict")) if self._store.check(["verdict"]) else None

    def _claim(self, claim: dict[str, Any]) -> dict[str, Any] | None:
        """Write the verdict unless there is one, and return the one that holds; None where there was never a store."""
        while not self._connected.wait(0.1):
            if self._lost is not None:
                return None
        return json.loads(self._store.compare_set("verdict", "", json.dumps(claim)))

    # --- the thread that judges -------------------------------------------------------------------------------------

    def _judge(self) -> None:
        before = time.monotonic()
        while not self.over.wait(PERIOD / 4):
            now = time.monotonic()
            if now - before > 5 * PERIOD:
                # This process stood still (Ctrl-Z, a machine asleep), so it has not listened.
                self._contact = now
                for peer in list(self._peers.values()):
                    peer.seen = now
            before = now
            self._judge_children()
            if self.place.parent not in (None, os.getppid()):
                self._gone(0, "it is no longer there")
            if not self._connected.is_set():
                if self._lost is not None:
                    self._not_connected(self._lost)
                continue
            if silent := self._silent(now):
                self._gone(*silent)

    def _silent(self, now: float) -> tuple[int, str] | None:
        """The rank that has been silent for too long, if any, and what is known of it."""
        suspicious = self._suspicious or stop_request.signum is not None
        limit = self.suspicious_limit if suspicious else self.limit
        if self._lost is not None or now - self._contact > limit:
            return 0, "it no longer answers"
        for rank, peer in list(self._peers.items()):
            # Of the time since the last contact nothing is known: where rank 0 is silent, all others seem so.
            if self._contact - peer.seen > limit:
                return rank, f"no sign of life for {limit:.0f} seconds"
        return None

    def _judge_children(self) -> None:
        for rank, child in self.children.items():
            status = child.poll()
            if status is None or not self._connected.is_set() or self._read_sign(rank) == LEFT:
                continue
            how = f"it was ended by {signal.Signals(-status).name}" if status < 0 else f"it ended with status {status}"
            self._gone(rank, how)

    def _gone(self, rank: int, how: str) -> NoReturn:
        self._dead.add(rank)
        peer = self._peers.get(rank)
        where = f" ({peer.where})" if peer else ""
        text = f"error: rank {rank} of {self.place.ranks}{where} has gone: {how}; {_advice()}"
        if rank == 0 and not self._reachable():
            # Nobody can be asked who speaks, so the first of those that were there until now does.
            then = self._contact - self.suspicious_limit
            first = min([self.place.rank, *(r for r, peer in list(self._peers.items()) if r > 0 and peer.seen > then)])
            self._ending.acquire()
            if self.place.rank == first:
                say(text)
            self._exit(1, heard=False)
        self.end(1, text)

    def _reachable(self) -> bool:
        return self._connected.is_set() and _within(PERIOD, lambda: self._store.check(["verdict"])) is not None

    def _not_connected(self, error: Exception) -> NoReturn:
        place = self.place
        if place.serves:
            what = f"{place.address}:{place.port}: rank 0 cannot listen there ({first_line(error)})"
            self.end(2, f"error: {what}; set MASTER_PORT to a port that is free.")
        what = f"rank {place.rank} of {place.ranks} found nobody at {place.address}:{place.port} ({first_line(error)})"
        self.end(2, f"error: {what}; start all ranks, and set MASTER_ADDR and MASTER_PORT to where rank 0 is.")

    # --- the end ----------------------------------------------------------------------------------------------------

    def _follow(self, verdict: dict[str, Any]) -> None:
        """End because another rank has. Returns if this process is at it already."""
        if verdict["rank"] != self.place.rank and self._ending.acquire(blocking=False):
            self._end_as(verdict)

    def _end_as(self, verdict: dict[str, Any]) -> NoReturn:
        # Nobody waits for a rank that is known to be gone.
        self._dead.update(verdict["gone"])
        self._exit(verdict["status"])

    def _exit(self, status: int, heard: bool = True) -> NoReturn:
        """End this process at once, its main thread wherever it is, but not before the others know."""
        _within(FAREWELL, lambda: _finish_wandb(status))
        _within(1, sys.stdout.flush)
        _within(1, sys.stderr.flush)
        if heard and self._connected.is_set():
            _within(FAREWELL, lambda: self._sign(LEFT))
            if self.place.serves:
                _within(START_LIMIT + FAREWELL, self._wait_for_others)
        for child in self.children.values():
            if child.poll() is None:
                child.kill()
        # Lightning kills the first process of a plain command when one that it started ends with another status than 0;
        # the first process knows the status already.
        os._exit(0 if heard and self.place.parent is not None else status)

    def _wait_for_others(self) -> dict[str, Any] | None:
        """Serve the others until they have left, or are gone; returns the verdict of one that failed, if any."""
        began = time.monotonic()
        waiting = set(self._others()) - self._dead
        while waiting:
            elapsed = time.monotonic() - began
            for rank in sorted(waiting):
                sign = self._read_sign(rank)
                ended = rank in self.children and self.children[rank].poll() is not None
                # One that has not begun would wait for us in vain; our own children we can end.
                patience = START_LIMIT if not sign and not self.children else FAREWELL
                if sign == LEFT or ended or elapsed > patience:
                    waiting.discard(rank)
            if waiting:
                time.sleep(0.05)
        return self._verdict()


def _wait_for_server(place: Place) -> None:
    """Until rank 0 listens. TCPStore can wait too, but logs every attempt."""
    deadline = time.monotonic() + CONNECT_LIMIT
    while True:
        try:
            socket.create_connection((place.address, place.port), timeout=5).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _within(seconds: float, function: Callable[[], Any]) -> Any:
    """What ``function`` returns, or None where it fails or takes longer."""
    result = []

    def call() -> None:
        try:
            result.append(function())
        except Exception:
            pass

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    return result[0] if result else None


def _finish_wandb(status: int) -> None:
    wandb: Any = sys.modules.get("wandb")
    if getattr(wandb, "run", None) is not None:
        wandb.finish(exit_code=status)


def say(text: str) -> None:
    """Print to stderr, which may be a file on a full disk, or a pipe that nobody reads."""
    try:
        if text:
            print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass


def is_lost_connection(error: BaseException) -> bool:
    """Whether a collective failed because another rank is gone, as far as one can tell."""
    seen: BaseException | None = error
    while seen is not None:
        kind, text = type(seen).__name__, str(seen)
        if kind in ("DistError", "DistBackendError", "DistNetworkError", "DistStoreError"):
            return True
        if isinstance(seen, RuntimeError) and any(word in text for word in ("gloo", "NCCL", "Connection closed by")):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


# --- the watch of this process ----------------------------------------------------------------------------------------

_watch: Watch | None = None
# How the run goes on once a rank is gone; whoever trains knows.
_advice: Callable[[], str] = str


def begin(children: Sequence[subprocess.Popen] = ()) -> None:
    """Begin to watch, if this process is known to be one of several. Twice is once."""
    global _watch
    place = place_of_process() if _watch is None else None
    if place is not None:
        _watch = Watch(place, children).begin()


def is_watching() -> bool:
    """Whether this process is one of several that still have to end together."""
    if _watch is None:
        return place_of_process() is not None
    return _watch.is_ending() or not _watch.over.is_set()


def set_advice(advice: Callable[[], str]) -> None:
    """How the run goes on should a rank be lost; asked for when one is."""
    global _advice
    _advice = advice


def tell(name: str, value: Any) -> None:
    """Let every rank know ``value``; nothing for a single process."""
    if _watch is not None:
        _watch.tell(name, value)


def ask(name: str) -> Any:
    """What rank 0 told; None for a single process."""
    return None if _watch is None else _watch.ask(name)


def leave() -> None:
    """The run is over for this process, as it should be."""
    if _watch is not None:
        _watch.leave()


def end(status: int, text: str, lost_connection: bool = False) -> int:
    """Print ``text``, once for all ranks, and end them; a process on its own gets its exit status back."""
    if is_watching():
        begin()
        assert _watch is not None
        if lost_connection:
            _watch.end_for_lost_connection(text)
        _watch.end(status, text)
    say(text)
    return 0 if started_by_lightning() else status
