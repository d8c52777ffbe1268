"""What a network is trained to do: classify, reproduce its input, or sort images into clusters.

A task says what the network's output is compared with, and by which numbers a run is judged. Networks and rules are
the same for all; a network carries its task, ``network.task``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanSquaredError, Metric
from torchmetrics.classification import MulticlassAccuracy

from dtp.errors import UserError


class Classification:
    """Name the class of an image. The output (B, K) is one logit for each class; the goal is the label (B,).

    Args:
        outputs: K.
    """

    name = "classification"
    losses = ("cross-entropy", "squared", "binary-cross-entropy")

    def __init__(self, outputs: int):
        self.outputs = self.classes = outputs
        self.top_k = 5 if outputs > 5 else 1

    def require_goals(self, x: Tensor, y: Tensor) -> None:
        """Raise UserError unless ``y`` are labels for inputs ``x``, as the data has them."""
        if y.dtype != torch.int64 or y.dim() != 1 or len(y) != len(x):
            raise UserError(
                f"Expected labels for classification, int64 of shape ({len(x)},), found "
                f"{str(y.dtype).removeprefix('torch.')} of shape {tuple(y.shape)}; mend the data, or give a loss for "
                "goals of another kind (loss=function)."
            )
        # On a GPU the host would have to wait for them. What cross-entropy ignores is no class.
        strange = y[(y >= self.classes) | ((y < 0) & (y != -100))] if y.device.type == "cpu" else y[:0]
        if len(strange):
            raise UserError(
                f"Expected labels from 0 to {self.classes - 1}, for {self.classes} classes, found {int(strange[0])}; "
                "mend the data, or give the network as many outputs as there are classes."
            )

    def goal(self, x: Tensor, y: Tensor, training: bool = True) -> Tensor:
        """What the output is compared with, by ``loss``, for images (B, C, H, W) and their labels (B,)."""
        return y

    def view(self, output: Tensor) -> Tensor:
        """What the network says, of its output (B, outputs): here class probabilities."""
        return output.softmax(1)

    def wanted(self, goal: Tensor, like: Tensor) -> Tensor:
        """What :meth:`view` is to become, (B, outputs), in the type and on the device of ``like``."""
        return F.one_hot(goal, self.outputs).to(like)

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
        """Scalars that are logged of a training batch besides the loss."""
        return {"accuracy": (output.argmax(1) == goal).float().mean()}

    def scores(self) -> nn.ModuleDict:
        """Metrics of validation and test, by name; each is updated with (:meth:`scored` output, goal)."""
        names = {"accuracy": 1, **({f"top{self.top_k}": self.top_k} if self.top_k > 1 else {})}
        return nn.ModuleDict(
            {
                name: MulticlassAccuracy(self.outputs, top_k=k, average="micro", validate_args=False)
                for name, k in names.items()
            }
        )

    def scored(self, output: Tensor) -> Tensor:
        """What metrics take in place of the output."""
        return output

    def describe(self, scores: dict[str, float]) -> str:
        """The result in words, of the test's scores by name."""
        more = "".join(f", {name} {value:.2%}" for name, value in scores.items() if name.startswith("top"))
        return f"test accuracy {scores['accuracy']:.2%}{more}"


class Autoencoder(Classification):
    """Put out the image itself. The sigmoid of the output (B, C H W) is compared with the pixels in [0, 1], flattened.

    The input may be normalised; the pixels are what was before that.

    Args:
        input_shape: (C, H, W).
        mean, std: by channel, of the normalisation, x = (pixel - mean) / std.
    """

    name = "autoencoder"
    losses = ("squared", "binary-cross-entropy")

    def __init__(self, input_shape: Sequence[int], mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)):
        super().__init__(torch.Size(input_shape).numel())
        self.input_shape = torch.Size(input_shape)
        self.mean, self.std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (mean, std))

    def require_goals(self, x: Tensor, y: Tensor) -> None:
        """The goals are made of ``x`` alone."""

    def goal(self, x: Tensor, y: Tensor, training: bool = True) -> Tensor:
        self.mean, self.std = self.mean.to(x.device), self.std.to(x.device)
        # Rounding may have left the range by a little, which cross-entropy would not forgive.
        return (x * self.std.to(x.dtype) + self.mean.to(x.dtype)).clamp(0, 1).flatten(1)

    def as_input(self, pixels: Tensor) -> Tensor:
        """The network's input (B, C, H, W) for pixels (B, C H W), in [0, 1]: :meth:`goal` the other way round."""
        images = pixels.unflatten(1, self.input_shape)
        return (images - self.mean.to(pixels)) / self.std.to(pixels)

    def view(self, output: Tensor) -> Tensor:
        return output.sigmoid()

    def wanted(self, goal: Tensor, like: Tensor) -> Tensor:
        return goal.to(like)

    def loss(self, kind: str, output: Tensor, goal: Tensor, reduction: str = "mean") -> Tensor:
        """``squared``: half the squared distance of the pixels; ``binary-cross-entropy``; summed over pixels."""
        if kind == "squared":
            losses = 0.5 * (output.sigmoid() - goal).square()
        else:
            losses = F.binary_cross_entropy_with_logits(output, goal.to(output), reduction="none")
        return losses.sum() if reduction == "sum" else losses.sum() / len(goal)

    def training_scores(self, output: Tensor, goal: Tensor) -> dict[str, Tensor]:
        return {"mse": (output.sigmoid() - goal).square().mean()}

    def scores(self) -> nn.ModuleDict:
        return nn.ModuleDict({"mse": MeanSquaredError()})

    def scored(self, output: Tensor) -> Tensor:
        return output.sigmoid()

    def describe(self, scores: dict[str, float]) -> str:
        return f"test reconstruction error {scores['mse']:.5f} (mean square of a pixel)"


class Clustering(Classification):
    """Sort images into clusters, without their labels: the cluster of an image is its largest output.

    Training sees labels of 0 alone. Validation and test compare clusters with classes, for the record; nothing is
    chosen by that.

    Args:
        outputs: number of clusters.
        classes: number of classes of the data.
    """

    name = "clustering"

    def __init__(self, outputs: int, classes: int):
        super().__init__(outputs)
        self.classes = classes

    def goal(self, x: Tensor, y: Tensor, training: bool = True) -> Tensor:
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


class OwnLoss(Classification):
    """Minimise a function of the user's own, of outputs (B, K) and goals as the data has them.

    Args:
        outputs: K.
        function: of outputs and goals; the mean over the batch, one number.
    """

    name = "own loss"

    def __init__(self, outputs: int, function: Callable[..., Tensor]):
        super().__init__(outputs)
        self.function = function

    def require_goals(self, x: Tensor, y: Tensor) -> None:
        """The function says what it takes."""

    def loss(self, kind: str, output: Tensor, goal: Tensor, reduction: str = "mean") -> Tensor:
        found = self.function(output, goal)
        if not isinstance(found, Tensor) or found.dim() > 0:
            raise UserError(
                "loss: expected a function of outputs and goals that returns the mean over the batch, a tensor of "
                f"shape (), found {f'the shape {tuple(found.shape)}' if isinstance(found, Tensor) else repr(found)}; "
                "mend it."
            )
        return found * len(output) if reduction == "sum" else found

    def training_scores(self, output: Tensor, goal: Tensor) -> dict[str, Tensor]:
        return {}

    def scores(self) -> nn.ModuleDict:
        return nn.ModuleDict()


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


def require_loss(task: Classification, kind: str) -> None:
    """Raise UserError where ``--loss`` is none of the task's."""
    if kind not in task.losses:
        raise UserError(
            f"--loss {kind}: expected {' or '.join(task.losses)} for --task {task.name}, found {kind}; leave it out or "
            "give another."
        )
