"""Inputs and goals, whatever form batches have."""

import pytest
import torch

from dtp.algorithms.batches import inputs_alone, inputs_and_goals
from dtp.errors import UserError

X, Y = torch.zeros(3, 1, 2, 2), torch.arange(3)


def both(batch):
    return inputs_and_goals(batch, "Rule")


@pytest.mark.parametrize(
    "batch",
    [(X, Y), [X, Y], {"x": X, "y": Y}, {"label": Y, "image": X, "index": 7}, {"pixel_values": X, "labels": Y}],
)
def test_pairs_and_dictionaries_with_usual_names_are_taken_apart(batch):
    x, y = both(batch)
    assert x is X and y is Y
    assert inputs_alone(batch, False, both) is X


@pytest.mark.parametrize("batch", [(X,), (X, Y, Y), X, {"x": X}, {"x": X, "class": Y}, None])
def test_other_batches_are_refused_with_what_was_found_and_what_to_do(batch):
    with pytest.raises(
        UserError, match=r"^A batch must be a pair .*found .*; give Rule\(\.\.\., batch=function\) .*\.$"
    ):
        both(batch)


@pytest.mark.parametrize("batch", [X, (X,), [X], {"image": X}, {"x": X, "name": "a"}])
def test_inputs_to_predict_from_need_no_goals(batch):
    assert inputs_alone(batch, False, both) is X


def test_a_users_own_function_takes_dictionaries_apart():
    own = lambda batch: (batch["picture"], batch["x"])  # noqa: E731
    assert inputs_alone({"picture": X, "x": Y}, True, own) is X
