"""The task of sorting images into clusters, and its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from dtp.tasks.base import Data, Task, require_labels


class Clustering(Task):
    """Sort images into clusters, without their labels: the cluster of an image is its largest output.

    Training sees labels of 0 alone. Validation and test compare clusters with classes, for the record; nothing is
    chosen by that.

    Args:
        outputs: number of clusters.
        classes: number of classes of the data.
    """

    name = "clustering"
    losses = ("cross-entropy", "squared", "binary-cross-entropy")
    has_training_goals = False
    weights_are_prototypes = True

    def __init__(self, outputs: int, classes: int):
        super().__init__(outputs)
        self.classes = classes

    @classmethod
    def of_data(cls, data: Data, clusters: int) -> Self:
        return cls(clusters, data.num_classes)

    def require_goals(self, x: Tensor, y: Tensor) -> None:
        require_labels(x, y, self.classes)

    def goal(self, x: Tensor, y: Tensor, training: bool = True) -> Tensor:
        """Labels (B,) to be judged by; in training zeros in their place."""
        return torch.zeros_like(y) if training else y

    def loss(self, kind: str, output: Tensor, goal: Tensor, reduction: str = "mean") -> Tensor:
        """Minus the largest output: the quantisation error, where outputs are minus (half squared) distances."""
        losses = -output.max(1).values
        return losses.sum() if reduction == "sum" else losses.mean()

    def training_scores(self, output: Tensor, goal: Tensor) -> dict[str, Tensor]:
        return {}

    def scores(self) -> nn.ModuleDict:
        return nn.ModuleDict({"purity": Purity(self.outputs, self.classes), "nmi": NMI(self.outputs, self.classes)})

    def describe(self, scores: dict[str, float]) -> str:
        return f"test purity {scores['purity']:.2%}, normalised mutual information {scores['nmi']:.3f}"

    def saved(self) -> dict[str, Any]:
        return {**super().saved(), "classes": self.classes}

    @classmethod
    def from_saved(cls, saved: dict[str, Any], input_shape: Sequence[int], outputs: int) -> Self:
        return cls(outputs, saved["classes"])


class _Contingency(Metric):
    """Counts of images by cluster (the largest output) and class."""

    full_state_update = False
    counts: Tensor

    def __init__(self, clusters: int, classes: int):
        super().__init__()
        self.add_state("counts", torch.zeros(clusters, classes), dist_reduce_fx="sum")

    def update(self, output: Tensor, y: Tensor) -> None:
        clusters, classes = self.counts.shape
        found = torch.bincount(output.argmax(1) * classes + y, minlength=clusters * classes)
        self.counts += found.view(clusters, classes)


class Purity(_Contingency):
    """Share of images whose class is the most frequent one of their cluster."""

    def compute(self) -> Tensor:
        return self.counts.max(1).values.sum() / self.counts.sum()


class NMI(_Contingency):
    """Mutual information of cluster and class over the mean of their entropies; 0 where both have none."""

    def compute(self) -> Tensor:
        joint = self.counts.double() / self.counts.sum()
        cluster, label = joint.sum(1), joint.sum(0)
        entropy = -(torch.xlogy(cluster, cluster).sum() + torch.xlogy(label, label).sum())
        information = entropy + torch.xlogy(joint, joint).sum()
        return (2 * information / entropy if entropy > 0 else entropy).float()
