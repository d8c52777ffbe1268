"""SIGKILL at random moments: a run that is killed and resumed ends with the weights of one never killed, bit for bit.

A run is a fork of this process, which has imported everything, so that a kill costs no start of Python.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dtp.algorithms import ALGORITHMS
from dtp.cli.train import main
from dtp.run.folder import newest_checkpoint
from tests.algorithms.rules import facts

# Seconds after which a run hangs.
LIMIT = 120
COMMON = (
    "--data digits --batch-size 64 --max-epochs 2 --limit-train-batches 6 --limit-val-batches 1 --diagnostics-every 0 "
    "--log-every 2 --checkpoint-every 2"
).split()
COMPARED = ("state_dict", "optimizer_states", "lr_schedulers", "noise", "global_step")


def command(rule: str) -> list[str]:
    """The words of a short run of a rule on a small network."""
    return ["--algo", rule, *facts(rule).network.split(), *COMMON]


def start(words: Sequence[str], log: Path) -> int:
    """Run a command in a fork; returns its process. What it prints goes to the end of ``log``."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        status = main(list(words))
    finally:
        os._exit(status)


def wait(process: int, limit: float = LIMIT) -> int | None:
    """The exit status of a process, minus the signal that ended it; None, and its end, if it takes too long."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def end_state(folder: Path) -> dict[str, Any]:
    """What the newest checkpoint of a run says of where it ended."""
    checkpoint = torch.load(newest_checkpoint(folder), weights_only=True)
    return {name: checkpoint[name] for name in COMPARED}


def identical(a: Any, b: Any) -> bool:
    """Whether two states are the same, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(identical(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(identical, a, b))
    return a == b


def kill_runs(kills: int, seed: int, here: Path, rules: Sequence[str] = ()) -> dict[str, Any]:
    """Kill that many runs, one rule after the other, and go on with each.

    Returns:
        Counts: kills, survived (the same weights in the end), hangs; and what went wrong, one line each.
    """
    draw = random.Random(seed)
    order = list(rules) or draw.sample(ALGORITHMS.names(), len(ALGORITHMS.names()))
    done: dict[str, Any] = {"kills": 0, "survived": 0, "hangs": 0, "rules": 0, "wrong": []}
    whole: dict[str, tuple[dict[str, Any], float]] = {}
    for number in range(kills):
        rule = order[number % len(order)]
        log = here / f"{rule}-{number}.log"
        if rule not in whole:
            began = time.monotonic()
            status = wait(start([*command(rule), "--run-dir", str(here / f"{rule}-whole")], log))
            if status != 0:
                done["wrong"].append(f"{rule}: status {status} of a run that nobody killed; see {log}")
                continue
            whole[rule] = end_state(here / f"{rule}-whole"), time.monotonic() - began
            done["rules"] += 1
        expected, seconds = whole[rule]
        folder = here / f"{rule}-{number}"
        words = [*command(rule), "--run-dir", str(folder), "--resume", "auto"]
        process = start(words, log)
        time.sleep(draw.uniform(0, seconds))
        os.kill(process, signal.SIGKILL)
        killed = wait(process) == -signal.SIGKILL
        done["kills"] += killed
        status = wait(start(words, log))
        if status is None:
            done["hangs"] += 1
        if status == 0 and identical(end_state(folder), expected):
            done["survived"] += killed
        else:
            done["wrong"].append(f"{rule}, kill {number}: status {status} or other weights; see {log}")
    return done
