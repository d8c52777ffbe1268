"""Locks: one process at a time, no links, and a wait that says whom it waits for and can be ended."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dtp.data.cache import data_lock
from dtp.system.locks import locked, try_lock
from dtp.system.signals import Stopped, stop_request


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(stop_request, "signum", None)
    return tmp_path / "cache" / "dtp" / "locks"


def test_one_process_at_a_time(tmp_path):
    with locked(tmp_path / "lock"):
        assert try_lock(tmp_path / "lock") is None
    with try_lock(tmp_path / "lock"):
        pass


def test_a_planted_link_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "lock").symlink_to("mine")
    with pytest.raises(OSError), locked(tmp_path / "lock"):
        pass
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_lock_that_is_removed_still_keeps_others_out(tmp_path):
    path, inside, most = tmp_path / "lock", [], []

    def work():
        for _ in range(20):
            with locked(path, remove=True):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 80 and max(most) == 1 and not path.exists()


def test_the_lock_of_data_lies_in_the_users_cache_and_leaves_nothing(cache, tmp_path):
    with data_lock("digits", tmp_path):
        assert len(list(cache.iterdir())) == 1
    assert list(cache.iterdir()) == []


def test_each_dataset_in_each_folder_has_a_lock_however_the_folder_is_named(cache, tmp_path, monkeypatch):
    def file_of(name, folder):
        with data_lock(name, folder):
            (found,) = cache.iterdir()
        return found.name

    monkeypatch.chdir(tmp_path)
    found = [file_of("digits", tmp_path), file_of("mnist", tmp_path), file_of("digits", tmp_path / "data")]
    assert len(set(found)) == 3 and file_of("digits", Path(".")) == found[0]


def test_without_a_home_the_lock_lies_beside_the_data_if_at_all(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    # A home that cannot be made, whoever asks.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "data").mkdir()
    with data_lock("digits", tmp_path / "data"):
        assert len(list((tmp_path / "data").iterdir())) == 1
    with data_lock("digits", tmp_path / "nowhere"):
        pass
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with data_lock("digits", tmp_path / "data"):
        assert len(list((tmp_path / "data").iterdir())) == 1


def test_a_wait_says_for_whom(cache, tmp_path, capsys):
    held = data_lock("digits", tmp_path)
    held.__enter__()
    timer = threading.Timer(1.3, held.__exit__, (None, None, None))
    timer.start()
    with data_lock("digits", tmp_path):
        pass
    timer.join()
    assert f"waiting for process {os.getpid()} on " in capsys.readouterr().err


def test_a_signal_ends_the_wait(cache, tmp_path):
    code = (
        "import sys; from pathlib import Path; from dtp.data.cache import data_lock\n"
        "from dtp.system.signals import Stopped, stop_request\n"
        "stop_request.begin()\n"
        "try:\n"
        "    with data_lock('digits', Path(sys.argv[1])): pass\n"
        "except Stopped as stopped:\n"
        "    print(stopped)\n"
    )
    with data_lock("digits", tmp_path):
        waiting = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert "waiting for process" in waiting.stderr.readline()
        waiting.send_signal(signal.SIGTERM)
        said, _ = waiting.communicate(timeout=60)
    assert f"Stopped by SIGTERM while it waited for process {os.getpid()}" in said


def test_a_signal_before_the_wait_ends_it_too(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(stop_request, "signum", signal.SIGTERM)
    with data_lock("digits", tmp_path), pytest.raises(Stopped), data_lock("digits", tmp_path):
        pass
