"""What the watch of one rank decides, with a store in memory and without an end; ``test_faults`` has real ranks."""

import json
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from torch.distributed import HashStore

from dtp.distributed import watch as module
from dtp.distributed.watch import LEFT, Peer, Place, Watch
from dtp.system.signals import stop_request


class Ended(BaseException):
    """In place of the end of this process: its status."""


@pytest.fixture(autouse=True)
def ending(monkeypatch):
    """Ends are raised; for others, that are not there, a process waits a moment only."""

    def end(status):
        raise Ended(status)

    monkeypatch.setattr(module.os, "_exit", end)
    monkeypatch.setattr(module, "FAREWELL", 0.2)
    monkeypatch.setattr(module, "START_LIMIT", 0.4)
    monkeypatch.setattr(module, "_advice", lambda: "go on")


def a_watch(rank, ranks=3, store=None, parent=None, connected=True, **options):
    watch = Watch(Place(rank, ranks, "127.0.0.1", 1, serves=rank == 0, parent=parent), **options)
    if connected:
        watch._store = HashStore() if store is None else store
        watch._connected.set()
    return watch


def status_of(function, *arguments):
    with pytest.raises(Ended) as ended:
        function(*arguments)
    return ended.value.args[0]


class Child:
    """A process that a rank started."""

    def __init__(self, status=None):
        self.status, self.killed = status, False

    def poll(self):
        return self.status

    def kill(self):
        self.killed = True


def test_of_two_that_fail_the_first_speaks_and_both_end_with_its_status(capsys):
    first = a_watch(1)
    second = a_watch(2, store=first._store)
    assert status_of(first.end, 41, "first") == status_of(second.end, 42, "second") == 41
    assert capsys.readouterr().err == "first\n"
    assert first.is_ending() and second.is_ending()
    assert first._store.get("alive/1") == first._store.get("alive/2") == LEFT.encode()


def test_a_lost_connection_is_told_only_after_a_wait_for_the_rank_that_it_comes_from(monkeypatch, capsys):
    waited = []
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=waited.append, monotonic=time.monotonic))
    watch = a_watch(1, suspicious_limit=10)
    assert status_of(watch.end_for_lost_connection, "lost") == 1
    assert capsys.readouterr().err == "lost\n" and watch._suspicious
    # By then whoever is silent has been judged.
    assert sum(waited) > 10


@pytest.mark.parametrize("connected", [False, True])
def test_who_reaches_nobody_speaks_for_itself_at_once(connected, monkeypatch, capsys):
    """It found no store, or lost it."""

    def closed(*args):
        raise RuntimeError("Connection was likely closed")

    monkeypatch.setattr(module, "START_LIMIT", 20)
    watch = a_watch(1, connected=connected, store=SimpleNamespace(compare_set=closed))
    watch._lost = OSError("refused")
    began = time.monotonic()
    assert status_of(watch.end, 3, "mistake") == 3
    assert time.monotonic() - began < 10
    assert capsys.readouterr().err == "mistake\n"


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (0, "127.0.0.1:1: rank 0 cannot listen there (taken); set MASTER_PORT to a port that is free."),
        (1, "rank 1 of 3 found nobody at 127.0.0.1:1 (taken); start all ranks, and set MASTER_ADDR and MASTER_PORT"),
    ],
)
def test_who_finds_no_store_says_where_it_looked(rank, message, capsys):
    watch = a_watch(rank, connected=False)
    watch._lost = OSError("taken")
    assert status_of(watch._judge) == 2
    assert message in capsys.readouterr().err


def test_a_rank_follows_the_verdict_of_another_and_not_its_own(capsys):
    watch = a_watch(1)
    verdict = {"status": 5, "gone": []}
    watch._follow({"rank": 1, **verdict})
    assert not watch.is_ending()
    assert status_of(watch._follow, {"rank": 2, **verdict}) == 5
    # The thread that ends the process does so once.
    watch._follow({"rank": 2, **verdict})
    assert capsys.readouterr().err == ""


class Once(threading.Event):
    """Over after the first wait."""

    def wait(self, timeout=None):
        self.set()


def test_in_contact_a_rank_signs_looks_for_the_others_and_reads_the_verdict(monkeypatch):
    watch = a_watch(1)
    monkeypatch.setattr(watch, "_connect", lambda: None)
    watch._store.set("alive/2", "1 here 7")
    watch.over, watch._contact = Once(), 0.0
    watch._keep_contact()
    assert watch._store.get("alive/1").startswith(b"1 ")
    assert set(watch._peers) == {2} and watch._contact > 0
    watch.over = Once()
    watch._store.set("verdict", '{"rank": 2, "status": 5, "gone": []}')
    assert status_of(watch._keep_contact) == 5


def test_the_process_that_lightning_started_ends_as_if_well_where_the_first_knows_why():
    """Else Lightning kills the first one, which has the status."""
    assert status_of(a_watch(1, parent=7)._exit, 5) == 0
    assert status_of(a_watch(1, parent=7)._exit, 5, False) == 5


def test_what_was_printed_and_what_wandb_holds_is_not_lost_at_the_end(monkeypatch):
    done = []
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, SimpleNamespace(flush=lambda name=name: done.append(name)))
    wandb = SimpleNamespace(run=object(), finish=lambda exit_code: done.append(exit_code))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert status_of(a_watch(1)._exit, 5) == 5
    assert done == [5, "stdout", "stderr"]


def test_rank_zero_kills_the_processes_that_it_started_and_that_still_run():
    children = [Child(), Child(1)]
    status_of(a_watch(0, children=children)._exit, 5)
    assert [child.killed for child in children] == [True, False]


@pytest.mark.parametrize(
    ("status", "how"),
    [(3, "it ended with status 3"), (-9, "it was ended by SIGKILL"), (0, "it ended with status 0")],
)
def test_a_process_that_ends_before_it_has_left_is_gone(status, how, capsys):
    watch = a_watch(0, children=[Child(), Child(status)])
    watch._peers[2] = Peer("4 here 77")
    assert status_of(watch._judge) == 1
    said = f"error: rank 2 of 3 (process 77 on here) has gone: {how}; go on\n"
    assert capsys.readouterr().err == said
    # Nobody is to wait for it.
    assert json.loads(watch._store.get("verdict")) == {"rank": 0, "status": 1, "gone": [2]}


def test_processes_that_run_or_have_left_are_not_gone():
    watch = a_watch(0, children=[Child(), Child(0)])
    watch._store.set("alive/2", LEFT)
    watch._judge_children()
    # Without a store nobody knows whether one has left.
    a_watch(0, children=[Child(3)], connected=False)._judge_children()


def test_a_process_without_the_one_that_started_it_does_not_stay(capsys):
    watch = a_watch(1, ranks=2, parent=-1, connected=False)
    assert status_of(watch._judge) == 1
    assert "rank 0 of 2 has gone: it is no longer there; go on" in capsys.readouterr().err


@pytest.mark.parametrize(("rank", "speaks"), [(2, True), (3, False)])
def test_where_rank_zero_is_gone_the_first_that_was_there_until_then_speaks(rank, speaks, capsys):
    """Rank 1 was silent for longer than rank 0, and is gone as well."""
    watch = a_watch(rank, ranks=4, connected=False)
    now = watch._contact
    seen = {0: now, 1: now - watch.suspicious_limit - 1, 2: now, 3: now}
    watch._peers = {n: Peer(f"4 here {n}", seen[n]) for n in range(4) if n != rank}
    assert status_of(watch._gone, 0, "silent") == 1
    said = "error: rank 0 of 4 (process 0 on here) has gone: silent; go on\n"
    assert capsys.readouterr().err == (said if speaks else "") and watch.is_ending()


def test_where_rank_zero_is_gone_and_the_store_is_not_the_first_to_notice_speaks(capsys):
    """As under torchrun, which has the store."""
    watch = a_watch(2)
    assert status_of(watch._gone, 0, "silent") == 1
    assert "rank 0 of 3 has gone: silent" in capsys.readouterr().err
    assert json.loads(watch._store.get("verdict")) == {"rank": 2, "status": 1, "gone": [0]}


def test_silence_is_suspicious_sooner_once_something_else_is_wrong(monkeypatch):
    watch = a_watch(1, limit=30, suspicious_limit=10)
    now = watch._contact + 20
    assert watch._silent(now) is None
    monkeypatch.setattr(stop_request, "signum", 15)
    assert watch._silent(now) == (0, "it no longer answers")
    monkeypatch.undo()
    watch._suspicious = True
    assert watch._silent(now) == (0, "it no longer answers")


def test_a_lost_store_is_the_end_of_rank_zero():
    watch = a_watch(1)
    watch._lost = RuntimeError("closed")
    assert watch._silent(watch._contact) == (0, "it no longer answers")


def test_a_process_that_stood_still_for_a_while_blames_nobody(monkeypatch):
    """Ctrl-Z: it has not listened, whatever the others did."""
    watch = a_watch(1, limit=30)
    start = watch._contact
    watch._peers = {0: Peer("1 here 1", start - 20), 2: Peer("1 here 3", start)}
    clock = iter([start, start + 3600, start + 3601])
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    over = iter([False, False, True])
    watch.over = SimpleNamespace(wait=lambda seconds: next(over))
    watch._judge()
    assert watch._peers[0].seen == watch._contact == start + 3600


def test_only_a_new_sign_of_life_is_one():
    watch = a_watch(0)
    watch._store.set("alive/1", "1 here 7")
    watch._look_for_others()
    peer = watch._peers[1]
    assert set(watch._peers) == {1}
    watch._look_for_others()
    assert watch._peers[1] is peer
    watch._store.set("alive/1", "2 here 7")
    watch._look_for_others()
    assert watch._peers[1] is not peer
    watch._store.set("alive/1", LEFT)
    watch._look_for_others()
    assert not watch._peers


def test_after_a_rank_has_left_it_gives_no_sign_of_life(monkeypatch):
    monkeypatch.setattr(module, "FAREWELL", 20)
    watch = a_watch(1)
    watch._store.set("alive/2", "1 here 7")
    began = time.monotonic()
    watch.leave()
    # Only rank 0 goes last.
    assert time.monotonic() - began < 10
    watch._sign("9 here 7")
    assert watch._store.get("alive/1") == LEFT.encode() and watch.over.is_set()
    # Twice is once.
    watch.leave()


def _leaves(watch, seconds):
    """Whether it leaves within so many seconds; it may go on trying."""
    leaving = threading.Thread(target=watch.leave, daemon=True)
    leaving.start()
    leaving.join(seconds)
    return not leaving.is_alive()


def test_who_is_done_before_it_has_a_store_waits_for_it_to_sign_off():
    watch = a_watch(1, connected=False)
    connect = threading.Timer(0.2, watch._connected.set)
    watch._store = HashStore()
    connect.start()
    began = time.monotonic()
    assert _leaves(watch, 10) and time.monotonic() - began > 0.1


def test_who_is_done_while_its_process_is_being_ended_waits_for_that_end():
    """With the status of the rank that failed."""
    watch = a_watch(1)
    watch._ending.acquire()
    assert not _leaves(watch, 0.2) and not watch.over.is_set()


def test_rank_zero_serves_until_the_others_have_left(monkeypatch):
    monkeypatch.setattr(module, "FAREWELL", 20)
    watch = a_watch(0)
    for rank in (1, 2):
        watch._store.set(f"alive/{rank}", "1 here 7")
    leaving = threading.Thread(target=watch.leave)
    leaving.start()
    watch._store.set("alive/1", LEFT)
    leaving.join(0.3)
    assert leaving.is_alive()
    watch._store.set("alive/2", LEFT)
    leaving.join(10)
    assert not leaving.is_alive()


def test_rank_zero_waits_longer_for_ranks_that_have_not_begun_than_for_silent_ones(monkeypatch):
    """For they would look for it in vain; but not where it started them itself, nor for those that are gone."""

    def waited(signs, children=(), dead=()):
        watch = a_watch(0, children=children)
        watch._dead.update(dead)
        for rank, sign in signs.items():
            watch._store.set(f"alive/{rank}", sign)
        began = time.monotonic()
        watch._wait_for_others()
        return time.monotonic() - began

    monkeypatch.setattr(module, "FAREWELL", 0.5)
    monkeypatch.setattr(module, "START_LIMIT", 1.5)
    here = "1 here 7"
    assert waited({1: LEFT, 2: LEFT}) < 0.4
    assert 0.5 <= waited({1: here, 2: LEFT}) < 1.4
    assert waited({1: LEFT}) >= 1.5
    assert 0.5 <= waited({1: LEFT}, children=[Child(), Child()]) < 1.4
    assert waited({1: LEFT}, dead=[2]) < 0.4
    assert waited({1: here, 2: here}, children=[Child(0), Child(3)]) < 0.4


def test_rank_zero_that_is_done_ends_with_the_status_of_one_that_failed_after_all(capsys):
    watch = a_watch(0, ranks=2)
    watch._store.set("alive/1", LEFT)
    watch._store.set("verdict", '{"rank": 1, "status": 6, "gone": []}')
    assert status_of(watch.leave) == 6


@pytest.mark.parametrize(("rank", "waits"), [(0, True), (1, False)])
def test_rank_zero_lets_the_others_read_why_it_ends(rank, waits):
    began = time.monotonic()
    assert status_of(a_watch(rank, ranks=2)._exit, 1) == 1
    assert (time.monotonic() - began >= module.START_LIMIT) == waits


def test_nobody_waits_at_the_end_for_a_rank_that_is_known_to_be_gone(monkeypatch):
    monkeypatch.setattr(module, "START_LIMIT", 20)
    began = time.monotonic()
    assert status_of(a_watch(0)._end_as, {"status": 1, "gone": [1, 2]}) == 1
    assert time.monotonic() - began < 5


def test_what_a_rank_told_before_there_was_a_store_is_known_too(monkeypatch):
    watch, store = a_watch(0, connected=False), HashStore()
    watch.place = watch.place._replace(attempt="2")
    monkeypatch.setattr("torch.distributed.TCPStore", lambda *args, **options: store)
    watch.tell("run", {"folder": "a"})
    watch._connect()
    watch.tell("more", [1])
    assert watch.ask("run") == {"folder": "a"} and watch.ask("more") == [1]
    # A store of torchrun knows what was told before it started the processes again.
    assert store.check(["dtp/2/fact/run"])


def test_a_function_that_fails_or_takes_too_long_has_no_result():
    assert module._within(5, lambda: 3) == 3
    assert module._within(5, lambda: 1 / 0) is None
    assert module._within(0.05, lambda: time.sleep(0.5)) is None


def test_a_message_that_cannot_be_written_is_no_error_and_an_empty_one_no_line(monkeypatch, capsys):
    module.say("")
    assert capsys.readouterr().err == ""

    def full(text):
        raise OSError("No space left on device")

    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=full))
    module.say("error: no")


@pytest.mark.parametrize("by_lightning", [False, True])
def test_a_process_alone_prints_its_end_and_gets_its_status_back(by_lightning, monkeypatch, capsys):
    monkeypatch.setattr(module, "_watch", None)
    monkeypatch.setattr(module, "place_of_process", lambda: None)
    monkeypatch.setattr(module, "started_by_lightning", lambda: by_lightning)
    assert module.end(2, "error: no") == (0 if by_lightning else 2)
    assert capsys.readouterr().err == "error: no\n"
    assert module.ask("run") is None and not module.is_watching()


def test_one_of_several_is_watching_until_it_is_over(monkeypatch):
    watch = a_watch(1)
    monkeypatch.setattr(module, "_watch", watch)
    assert module.is_watching()
    module.leave()
    assert not module.is_watching()
    # A thread that ends the process has signed off for it.
    watch._ending.acquire()
    assert module.is_watching()
