"""The task of putting out the input itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanSquaredError

from dtp.errors import UserError
from dtp.tasks.base import Data, Task


class Autoencoder(Task):
    """Put out the image itself. The sigmoid of the output (B, C H W) is compared with the pixels in [0, 1], flattened.

    The input may be normalised; the pixels are what was before that.

    Args:
        input_shape: (C, H, W).
        mean, std: by channel, of the normalisation, x = (pixel - mean) / std.
    """

    name = "autoencoder"
    losses = ("squared", "binary-cross-entropy")
    outputs_images = True

    def __init__(self, input_shape: Sequence[int], mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)):
        super().__init__(torch.Size(input_shape).numel())
        self.input_shape = torch.Size(input_shape)
        self.mean, self.std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (mean, std))

    @classmethod
    def of_data(cls, data: Data, clusters: int) -> Self:
        if data.projection is not None:
            raise UserError(
                "--pca: expected images for --task autoencoder, whose outputs are pixels, found components; use 0."
            )
        return cls(data.input_shape, *data.statistics)

    def require_goals(self, x: Tensor, y: Tensor) -> None:
        """The goals are made of ``x`` alone."""

    def goal(self, x: Tensor, y: Tensor, training: bool = True) -> Tensor:
        """The pixels in [0, 1], (B, C H W), of images (B, C, H, W)."""
        self.mean, self.std = self.mean.to(x.device), self.std.to(x.device)
        # Rounding may have left the range by a little, which cross-entropy would not forgive.
        return (x * self.std.to(x.dtype) + self.mean.to(x.dtype)).clamp(0, 1).flatten(1)

    def as_input(self, pixels: Tensor) -> Tensor:
        """The network's input (B, C, H, W) for pixels (B, C H W), in [0, 1]: :meth:`goal` the other way round."""
        images = pixels.unflatten(1, self.input_shape)
        return (images - self.mean.to(pixels)) / self.std.to(pixels)

    def view(self, output: Tensor) -> Tensor:
        """What the network says, of its output (B, C H W): pixels."""
        return output.sigmoid()

    def wanted(self, goal: Tensor, like: Tensor) -> Tensor:
        """The pixels, in the type and on the device of ``like``."""
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

    def saved(self) -> dict[str, Any]:
        return {**super().saved(), "mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}

    @classmethod
    def from_saved(cls, saved: dict[str, Any], input_shape: Sequence[int], outputs: int) -> Self:
        return cls(input_shape, saved["mean"], saved["std"])
