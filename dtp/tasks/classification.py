"""The task of naming the class of an image."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from dtp.tasks.base import Task, require_labels


class Classification(Task):
    """Name the class of an image. The output (B, K) is one logit for each class; the goal is the label (B,).

    Args:
        outputs: K.
    """

    name = "classification"
    losses = ("cross-entropy", "squared", "binary-cross-entropy")
    selected_by = "accuracy"
    uses_labels = True

    def require_goals(self, x: Tensor, y: Tensor) -> None:
        require_labels(x, y, self.outputs)

    def has_linear_units(self, kind: str) -> bool:
        return kind == "squared"

    def loss(self, kind: str, output: Tensor, goal: Tensor, reduction: str = "mean") -> Tensor:
        """The loss that ``--loss`` names: mean over samples, or ``reduction="sum"``.

        ``cross-entropy`` of the softmax; ``squared``, half the squared distance of the output to the one-hot label;
        ``binary-cross-entropy`` of a sigmoid for each class, summed over classes.
        """
        if kind == "cross-entropy":
            return F.cross_entropy(output, goal, reduction=reduction)
        label = self.wanted(goal, output)
        if kind == "squared":
            losses = 0.5 * (output - label).square()
        else:
            losses = F.binary_cross_entropy_with_logits(output, label, reduction="none")
        return losses.sum() if reduction == "sum" else losses.sum() / len(goal)

    def training_scores(self, output: Tensor, goal: Tensor) -> dict[str, Tensor]:
        return {"accuracy": (output.argmax(1) == goal).float().mean()}

    def scores(self) -> nn.ModuleDict:
        names = {"accuracy": 1, **({"top5": 5} if self.outputs > 5 else {})}
        return nn.ModuleDict(
            {
                name: MulticlassAccuracy(self.outputs, top_k=k, average="micro", validate_args=False)
                for name, k in names.items()
            }
        )

    def describe(self, scores: dict[str, float]) -> str:
        more = "".join(f", {name} {value:.2%}" for name, value in scores.items() if name.startswith("top"))
        return f"test accuracy {scores['accuracy']:.2%}{more}"
