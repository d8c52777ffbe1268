"""What an epoch has added up: its means, and going on in its middle."""

import json

import pytest
import torch

from dtp.algorithms.epoch import EpochTotals
from dtp.algorithms.timing import PhaseTimer

CPU = torch.device("cpu")


def values(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only where a test says so."""
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


def test_batches_weigh_by_their_images_and_seconds_end_with_the_last(clock):
    timer = PhaseTimer()
    totals = EpochTotals(timer)
    clock[0] += 1
    with timer.measure(CPU):
        clock[0] += 2
    totals.add(("loss", "accuracy"), values(1.0, 0.5), images=30, shares=2)
    clock[0] += 1
    totals.add(("loss", "accuracy"), values(4.0, 1.0), images=10, shares=2)
    clock[0] += 50
    assert totals.progress() == {
        "loss": 1.75,
        "accuracy": 0.625,
        "images_per_second": 2 * 40 / 4,
        "feedback_share": 0.5,
    }


def test_another_epoch_begins_with_nothing(clock):
    timer = PhaseTimer()
    totals = EpochTotals(timer)
    with timer.measure(CPU):
        clock[0] += 2
    totals.add(("loss",), values(1.0), images=30, shares=1)
    totals.begin()
    clock[0] += 4
    totals.add(("loss",), values(3.0), images=8, shares=1)
    found = totals.progress()
    assert (found["loss"], found["images_per_second"], found["feedback_share"]) == (3.0, 2.0, 0.0)


def test_an_epoch_that_goes_on_is_one_without_the_stop(clock):
    totals = EpochTotals(PhaseTimer())
    clock[0] += 2
    totals.add(("loss",), values(1 / 3), images=30, shares=1)
    # As a checkpoint holds it.
    whole, added = json.loads(json.dumps(totals.state_dict()))
    clock[0] += 3
    totals.add(("loss",), values(1 / 7), images=10, shares=1)

    clock[0] += 1000
    other = EpochTotals(PhaseTimer())
    other.go_on(whole, [added], CPU, scale=1.0)
    clock[0] += 3
    other.add(("loss",), values(1 / 7), images=10, shares=1)
    assert other.progress() == totals.progress()
    assert other.window_means.compute() == totals.window_means.compute()


def test_one_process_goes_on_from_several_that_shared_the_batches():
    ranks = [EpochTotals(PhaseTimer()) for _ in range(2)]
    for totals, loss in zip(ranks, (1.0, 2.0), strict=True):
        totals.add(("loss",), values(loss), images=10, shares=2)
    states = [totals.state_dict() for totals in ranks]
    alone = EpochTotals(PhaseTimer())
    alone.go_on(states[0][0], [added for _, added in states], CPU, scale=2.0)
    # All of a batch of 20.
    alone.add(("loss",), values(4.5), images=20, shares=1)
    assert alone.progress()["loss"] == 3.0
