"""Signals are handled from the first moment of the program to its last, and never for longer than a run of ours."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from dtp.algorithms.base import Algorithm
from dtp.cli.train import main
from dtp.system.signals import STOP_SIGNALS, stop_request
from tests.runs import ROOT, SHORT

pytestmark = pytest.mark.usefixtures("here")


def handlers():
    return {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}


def during_batch(number, do, monkeypatch):
    seen = []
    original = Algorithm.training_step

    def training_step(self, batch, batch_idx):
        seen.append(batch_idx)
        if len(seen) == number:
            do()
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Algorithm, "training_step", training_step)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_after_a_stopped_run_the_next_one_in_the_same_process_is_not_stopped(signum, monkeypatch):
    before = handlers()
    command = [*SHORT, "--run-dir", "run", "--resume", "auto"]
    with monkeypatch.context() as patch:
        during_batch(3, lambda: signal.raise_signal(signum), patch)
        assert main(command) == 75
    assert handlers() == before
    assert main(command) == 0
    assert handlers() == before and not stop_request.training


def test_a_mistake_leaves_the_handlers_as_they_were():
    before = handlers()
    assert main(["--algo", "nothing"]) == 2
    with pytest.raises(SystemExit):
        main(["--help"])
    assert handlers() == before


def test_a_run_in_a_thread_handles_no_signals(monkeypatch):
    before, seen, statuses = handlers(), [], []
    during_batch(3, lambda: seen.append(handlers()), monkeypatch)
    thread = threading.Thread(target=lambda: statuses.append(main([*SHORT, "--run-dir", "run"])))
    thread.start()
    thread.join()
    assert statuses == [0] and seen == [before] and handlers() == before


@pytest.mark.parametrize("seconds", [0.4, 1.0])
def test_ctrl_c_while_the_program_imports_is_one_word(seconds):
    process = subprocess.Popen([sys.executable, ROOT / "main.py", *SHORT], stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "Interrupted.\n"
    assert process.returncode == 130


@pytest.mark.parametrize(
    "words, imported",
    [
        ("sweep lag", "argparse"),
        ("search --algo bp", "argparse"),
        ("report .", "argparse"),
        ("theory transpose", "argparse"),
        # Within the command.
        ("theory transpose", "torch"),
    ],
)
def test_ctrl_c_while_a_command_imports_is_one_word(words, imported, tmp_path):
    # As torch and others do, it takes what is raised in it for its own.
    (tmp_path / f"{imported}.py").write_text(
        "import signal, sys\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept BaseException:\n    pass\n"
        # Then it is itself, for whoever needs it while importing.
        f"sys.path.remove({str(tmp_path)!r})\ndel sys.modules[__name__]\nimport {imported}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", *f"dtp.{words}".split()],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert (done.returncode, done.stderr) == (130, "Interrupted.\n")


def test_ignored_hang_ups_stay_ignored(monkeypatch):
    # As nohup starts us.
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        during_batch(3, lambda: signal.raise_signal(signal.SIGHUP), monkeypatch)
        assert main([*SHORT, "--run-dir", "run"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
