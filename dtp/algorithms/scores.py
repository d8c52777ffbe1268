"""The metrics of validation and test, and a user's own of training, for each data loader."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import Metric

from dtp.contracts import is_number, shown
from dtp.errors import UserError
from dtp.tasks import Task

# A ModuleDict has no key like one of its methods, as ``train`` is.
TRAINING = "train_split"


class Scores(torch.nn.ModuleDict):
    """Metrics by split: ``val``, ``test``, and :data:`TRAINING` where they are a user's own.

    Those of the data loaders after the first are made as they come, under ``val1``, ``val2``, ...
    """

    @classmethod
    def of_task(cls, task: Task) -> Scores:
        """Those that the task has for all networks."""
        return cls({split: task.scores() for split in ("val", "test")})

    @classmethod
    def of_loss(cls) -> Scores:
        """The loss alone, by the name ``loss``."""
        return cls({split: torch.nn.ModuleDict({"loss": MeanLoss()}) for split in ("val", "test")})

    @classmethod
    def of_user(cls, metrics: Metric | Mapping[str, Metric]) -> Scores:
        """Those that a user gives, one or several by name.

        Raises:
            UserError: they are something else than metrics, or have names that something else has.
        """
        # A collection is no Metric, and has names, as a dictionary does.
        given: Any = metrics
        named = dict(given.items()) if hasattr(given, "items") else {type(given).__name__: given}
        if not all(isinstance(metric, Metric) for metric in named.values()):
            raise UserError(f"metrics: expected torchmetrics, found {', '.join(map(shown, named.values()))}.")
        for name in named:
            # val/loss is the rule's, train/NAME_epoch its means of an epoch, and Lightning counts loaders so.
            taken = name == "loss" or str(name).endswith("_epoch") or "dataloader_idx" in str(name)
            # What a ModuleDict has, or takes for a path.
            taken = taken or not isinstance(name, str) or hasattr(torch.nn.ModuleDict(), name)
            if taken or not name or "." in name:
                raise UserError(
                    f"metrics: expected names without dots that nothing else has, found {name!r}; give it another name."
                )
        splits = (TRAINING, "val", "test")
        return cls(
            {split: torch.nn.ModuleDict({name: metric.clone() for name, metric in named.items()}) for split in splits}
        )

    @property
    def of_training(self) -> bool:
        """Whether there are metrics of the training batches too."""
        return TRAINING in self

    def of(self, split: str, loader: int = 0) -> Mapping[str, Metric]:
        """The metrics of one data loader of a split, by name."""
        name = f"{split}{loader or ''}"
        if name not in self:
            self[name] = copy.deepcopy(self[split])
            for score in self.of(split, loader).values():
                score.reset()
        # A ModuleDict, of whose items torch's types say no more than that they are modules.
        return cast("Mapping[str, Metric]", self[name])

    def taken(self, split: str, loader: int = 0) -> dict[str, float]:
        """The numbers of these metrics, which begin anew.

        Raises:
            UserError: one computes something else than a number.
        """
        found = {}
        for name, score in self.of(split, loader).items():
            value = score.compute()
            if not is_number(value):
                raise UserError(f"metrics: expected {name} to compute one number, found {shown(value)}; leave it out.")
            found[name] = float(value)
            score.reset()
        return found


class MeanLoss(Metric):
    """The mean over all images, of all ranks, of a loss that is known as the mean over each batch.

    Lightning's own means over ranks round the images of a rank to a whole number.
    """

    full_state_update = False
    total: Tensor
    images: Tensor

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, loss: Tensor, images: int) -> None:
        # In the type of the loss, or in 32 bits where that has fewer. An addition in place would keep that of the sum.
        self.total = self.total + loss.to(torch.promote_types(loss.dtype, torch.float32)) * images
        self.images = self.images + images

    def compute(self) -> Tensor:
        return self.total / self.images
