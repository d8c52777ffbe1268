"""What every task has: the questions that rules, runs and measurements ask it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtp.errors import UserError


class Data(Protocol):
    """What a task must know of the data."""

    num_classes: int

    @property
    def input_shape(self) -> Sequence[int]:
        """(C, H, W) of an image."""
        ...

    @property
    def statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        """Means and deviations by channel, of the normalisation."""
        ...

    @property
    def projection(self) -> Any:
        """The map to principal components, where images are these; None where they are pixels."""
        ...


class Task(ABC):
    """What outputs are compared with, and how they are judged.

    Args:
        outputs: K, of the network.
    """

    # What summaries and checkpoints call it.
    name: ClassVar[str]
    # What ``--loss`` may be; the first is the usual one.
    losses: ClassVar[Sequence[str]]
    # The number of validation that the best weights are chosen by.
    selected_by: ClassVar[str] = "loss"
    # Whether the goals in training are the labels of the images.
    uses_labels: ClassVar[bool] = False
    # Whether outputs are compared with goals in training, so that backprop has something to learn from.
    has_training_goals: ClassVar[bool] = True
    # Whether what :meth:`view` makes of the outputs are images, flattened.
    outputs_images: ClassVar[bool] = False
    # Whether the weights of a unit are an image among those it stands for, not what it weighs them with.
    weights_are_prototypes: ClassVar[bool] = False

    def __init__(self, outputs: int):
        self.outputs = outputs

    @classmethod
    def of_data(cls, data: Data, clusters: int) -> Self:
        """The task on the images of a dataset; ``clusters`` are wanted where it sorts them.

        Raises:
            UserError: it cannot be done on these images.
        """
        return cls(data.num_classes)

    @abstractmethod
    def require_goals(self, x: Tensor, y: Tensor) -> None:
        """Raise UserError unless ``y`` are goals for inputs ``x``, as the data has them."""

    def goal(self, x: Tensor, y: Tensor, training: bool = True) -> Tensor:
        """What the output is compared with, by ``loss``, for images (B, C, H, W) and their labels (B,): the labels."""
        return y

    def view(self, output: Tensor) -> Tensor:
        """What the network says, of its output (B, outputs): class probabilities."""
        return output.softmax(1)

    def wanted(self, goal: Tensor, like: Tensor) -> Tensor:
        """What :meth:`view` is to become, (B, outputs), in the type and on the device of ``like``: one-hot labels."""
        return F.one_hot(goal, self.outputs).to(like)

    def has_linear_units(self, kind: str) -> bool:
        """Whether the loss ``kind`` compares the output itself with what is wanted, by half the squared distance."""
        return False

    def units(self, kind: str, output: Tensor) -> Tensor:
        """The output units whose difference to :meth:`wanted` the loss ``kind`` is about, (B, outputs)."""
        if self.has_linear_units(kind):
            return output
        return output.softmax(1) if kind == "cross-entropy" else output.sigmoid()

    @abstractmethod
    def loss(self, kind: str, output: Tensor, goal: Tensor, reduction: str = "mean") -> Tensor:
        """The loss that ``--loss`` names: mean over samples, or ``reduction="sum"``."""

    @abstractmethod
    def training_scores(self, output: Tensor, goal: Tensor) -> dict[str, Tensor]:
        """Scalars that are logged of a training batch besides the loss."""

    @abstractmethod
    def scores(self) -> nn.ModuleDict:
        """Metrics of validation and test, by name; each is updated with (:meth:`scored` output, goal)."""

    def scored(self, output: Tensor) -> Tensor:
        """What metrics take in place of the output."""
        return output

    @abstractmethod
    def describe(self, scores: dict[str, float]) -> str:
        """The result in words, of the test's scores by name."""

    def saved(self) -> dict[str, Any]:
        """What a checkpoint says of it, in the types that a checkpoint may have."""
        return {"name": self.name}

    @classmethod
    def from_saved(cls, saved: dict[str, Any], input_shape: Sequence[int], outputs: int) -> Self:
        """The task of which :meth:`saved` said this, for images (C, H, W) and a network of K outputs."""
        return cls(outputs)


def require_labels(x: Tensor, y: Tensor, classes: int) -> None:
    """Raise UserError unless ``y`` are labels of ``classes`` classes, one for each of the inputs ``x``."""
    if y.dtype != torch.int64 or y.dim() != 1 or len(y) != len(x):
        raise UserError(
            f"Expected labels for classification, int64 of shape ({len(x)},), found "
            f"{str(y.dtype).removeprefix('torch.')} of shape {tuple(y.shape)}; fix the data, or give a loss for "
            "goals of another kind (loss=function)."
        )
    # On a GPU the host would have to wait for them. What cross-entropy ignores, -100, would count in accuracies.
    strange = y[(y >= classes) | (y < 0)] if y.device.type == "cpu" else y[:0]
    if len(strange):
        raise UserError(
            f"Expected labels from 0 to {classes - 1}, for {classes} classes, found {int(strange[0])}; "
            "fix the data (leave out images without a class), or give the network as many outputs as there are classes."
        )


def require_loss(task: Task, kind: str) -> None:
    """Raise UserError where ``--loss`` is none of the task's."""
    if kind not in task.losses:
        raise UserError(
            f"--loss {kind}: expected {' or '.join(task.losses)} for --task {task.name}, found {kind}; leave it out or "
            "give another."
        )
