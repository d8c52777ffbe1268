"""Which epochs and batches train which weights: against batches written out by hand."""

import subprocess
import sys

import pytest

from dtp.algorithms.feedback_schedule import FeedbackSchedule

# Epochs of four batches: F trains the feedback weights alone, W the forward weights alone, B both.
WRITTEN_OUT = [
    ({}, "BBBB BBBB BBBB BBBB BBBB"),
    ({"schedule": "parallel"}, "BBBB BBBB BBBB BBBB BBBB"),
    ({"schedule": "alternating"}, "FFFF WWWW FFFF WWWW FFFF"),
    ({"schedule": "alternating", "feedback_warmup_epochs": 1}, "FFFF FFFF WWWW FFFF WWWW"),
    ({"schedule": "alternating", "feedback_warmup": 3}, "FFFF WWWW FFFF WWWW FFFF"),
    ({"schedule": "alternating", "feedback_warmup": 6}, "FFFF FFWW FFFF WWWW FFFF"),
    ({"schedule": "alternating", "feedback_warmup": 9}, "FFFF FFFF FFFF WWWW FFFF"),
    ({"extra_feedback_epochs": 1}, "BBBB FFFF BBBB FFFF BBBB"),
    ({"extra_feedback_epochs": 2, "feedback_warmup_epochs": 1}, "FFFF BBBB FFFF FFFF BBBB"),
    ({"extra_feedback_epochs": 1, "feedback_warmup": 5}, "FFFF FFFF BBBB FFFF BBBB"),
    ({"schedule": "warmup", "feedback_warmup": 5}, "FFFF FWWW WWWW WWWW WWWW"),
    ({"schedule": "warmup", "feedback_warmup_epochs": 1}, "FFFF WWWW WWWW WWWW WWWW"),
    ({"feedback_warmup": 5}, "FFFF FBBB BBBB BBBB BBBB"),
    ({"feedback_warmup": 3, "feedback_warmup_epochs": 1}, "FFFF BBBB BBBB BBBB BBBB"),
    ({"feedback_warmup": 7, "feedback_warmup_epochs": 1}, "FFFF FFFB BBBB BBBB BBBB"),
]


@pytest.mark.parametrize("options, epochs", [(options, text.split()) for options, text in WRITTEN_OUT])
def test_turns_and_counts_are_those_of_the_batches_written_out(options, epochs):
    schedule = FeedbackSchedule.of({"lr": 0.1, **options})
    words = {(True, False): "F", (False, True): "W", (True, True): "B"}
    found = [[words[schedule.turns(e, 4 * e + b)] for b in range(4)] for e in range(len(epochs))]
    assert ["".join(epoch) for epoch in found] == epochs
    batches = "".join(epochs)
    forward = [batch != "F" for batch in batches]
    for done in range(len(batches) + 1):
        assert schedule.forward_batches(done, 4) == sum(forward[:done])
        assert schedule.forward_epochs(done, 4) == sum(forward[:done]) / 4
    assert [schedule.trains_forward(e, 4) for e in range(len(epochs))] == [set(epoch) != {"F"} for epoch in epochs]
    assert schedule.first_batch(4) == forward.index(True)


def test_a_rule_without_feedback_weights_trains_the_forward_weights_throughout():
    from dtp.algorithms.options import FeedbackAlignmentOptions

    schedule = FeedbackSchedule.of(FeedbackAlignmentOptions())
    assert schedule.forward_epochs(30, 10) == 3 and schedule.first_batch(10) == 0


def test_a_run_that_ended_within_an_epoch_has_a_mean_length_of_epochs():
    # 25 batches in three epochs of ten, the last cut short: epochs 0 and 2 count whole.
    assert FeedbackSchedule(extra_epochs=1).forward_epochs(25, 25 / 3) == 2
    assert FeedbackSchedule().forward_epochs(0, 0) == 0


def test_it_needs_no_torch():
    code = "import sys, dtp.algorithms.feedback_schedule; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
