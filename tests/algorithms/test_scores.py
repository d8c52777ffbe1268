"""Metrics by split and data loader."""

import pytest
import torch
from torchmetrics import MeanMetric, Metric, MetricCollection, SumMetric

from dtp.algorithms.scores import TRAINING, Scores
from dtp.errors import UserError
from dtp.tasks import TASKS


class Both(Metric):
    """Computes two numbers."""

    def update(self, value):
        pass

    def compute(self):
        return torch.ones(2)


def test_those_of_a_task_are_of_validation_and_test_alone():
    scores = Scores.of_task(TASKS["classification"](5))
    assert sorted(scores) == ["test", "val"] and not scores.of_training
    assert set(scores.of("val")) == set(scores.of("test")) >= {"accuracy"}


@pytest.mark.parametrize(
    "given, names",
    [
        (SumMetric(), ["SumMetric"]),
        ({"a": SumMetric(), "b": MeanMetric()}, ["a", "b"]),
        (MetricCollection([SumMetric(), MeanMetric()]), ["SumMetric", "MeanMetric"]),
    ],
)
def test_a_users_own_have_names_and_are_of_training_too(given, names):
    scores = Scores.of_user(given)
    assert scores.of_training and set(scores) == {TRAINING, "val", "test"}
    assert all(set(scores.of(split)) == set(names) for split in scores)


@pytest.mark.parametrize("name", ["loss", "loss_epoch", "dataloader_idx_0", "training", "f.1", "", 1])
def test_a_name_that_something_else_has_is_refused(name):
    with pytest.raises(UserError, match=f"^metrics: .* without dots that nothing else has, found {name!r}; give it"):
        Scores.of_user({"accuracy": SumMetric(), name: MeanMetric()})


def test_no_two_splits_or_loaders_add_to_the_same_metric():
    scores = Scores.of_user(SumMetric())
    scores.of("val")["SumMetric"].update(1.0)
    # Made now, of one that has seen values.
    scores.of("val", 1)["SumMetric"].update(10.0)
    scores.of("test")["SumMetric"].update(100.0)
    assert scores.taken("val") == {"SumMetric": 1.0}
    assert scores.taken("val", 1) == {"SumMetric": 10.0}
    assert scores.taken("test") == {"SumMetric": 100.0}
    assert not scores.of(TRAINING)["SumMetric"].update_called


def test_what_has_been_taken_begins_anew():
    scores = Scores.of_user(SumMetric())
    scores.of("val")["SumMetric"].update(1.0)
    scores.taken("val")
    scores.of("val")["SumMetric"].update(2.0)
    assert scores.taken("val") == {"SumMetric": 2.0}


def test_what_is_no_metric_or_no_number_is_one_sentence():
    with pytest.raises(UserError, match=r"^metrics: expected torchmetrics, found .*\.$"):
        Scores.of_user({"accuracy": max})
    scores = Scores.of_user(Both())
    scores.of("val")["Both"].update(0)
    with pytest.raises(UserError, match=r"^metrics: expected Both to compute one number, found .*; leave it out\.$"):
        scores.taken("val")
