"""Inputs and goals out of what a data loader gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from dtp.contracts import shown
from dtp.errors import UserError

# Names that data sets have for inputs and for goals, where their batches are dictionaries.
INPUTS = ("x", "image", "images", "img", "input", "inputs", "pixel_values", "data")
GOALS = ("y", "label", "labels", "target", "targets")


def inputs_and_goals(batch: Any, rule: str) -> tuple[Tensor, Tensor]:
    """The two of a pair, or of a dictionary that has one of the usual names for each.

    Raises:
        UserError: it is neither; the sentence names the class ``rule``.
    """
    if isinstance(batch, Mapping):
        x, y = (next((batch[name] for name in names if name in batch), None) for names in (INPUTS, GOALS))
        if x is not None and y is not None:
            return x, y
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        return tuple(batch)
    found = f"a dictionary of {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else shown(batch)
    raise UserError(
        f"A batch must be a pair of inputs and goals, or a dictionary with such names as {INPUTS[1]} and "
        f"{GOALS[1]}, found {found}; give {rule}(..., batch=function) that takes the two out of it."
    )


def inputs_alone(batch: Any, own: bool, both: Callable[[Any], tuple[Tensor, Tensor]]) -> Tensor:
    """The inputs of a batch to predict from, with goals or without.

    Args:
        own: whether ``both`` is the user's own, who knows what else a dictionary may be.
        both: takes inputs and goals out of a batch.
    """
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, tuple | list) and len(batch) == 1:
        # What a TensorDataset of inputs alone gives.
        return batch[0]
    if isinstance(batch, Mapping) and not own and not any(name in batch for name in GOALS):
        for name in INPUTS:
            if name in batch:
                return batch[name]
    return both(batch)[0]
