"""The task of minimising a function of the user's own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dtp.contracts import shown
from dtp.errors import UserError
from dtp.tasks.base import require_labels
from dtp.tasks.classification import Classification


class OwnLoss(Classification):
    """Minimise a function of the user's own, of outputs (B, K) and goals as the data has them.

    Args:
        outputs: K.
        function: of outputs and goals; the mean over the batch, one number.
    """

    name = "own loss"
    selected_by = "loss"
    # The function alone knows what its goals are, and what it makes of the outputs.
    uses_labels = False

    def __init__(self, outputs: int, function: Callable[..., Tensor]):
        super().__init__(outputs)
        self.function = function

    def require_goals(self, x: Tensor, y: Tensor) -> None:
        """The function says what it takes."""

    def wanted(self, goal: Tensor, like: Tensor) -> Tensor:
        """One-hot labels, for rules that themselves make use of the class, whatever the loss."""
        try:
            require_labels(like, goal, self.outputs)
        except UserError as error:
            whole = goal.dtype == torch.int64 and len(goal) > 0
            found = f"values from {int(goal.min())} to {int(goal.max())}" if whole else shown(goal)
            raise UserError(
                f"loss: expected labels from 0 to {self.outputs - 1} for goals, of which this rule itself makes use, "
                f"found {found}; use another rule, such as bp or dfa."
            ) from error
        return super().wanted(goal, like)

    def has_linear_units(self, kind: str) -> bool:
        return False

    def loss(self, kind: str, output: Tensor, goal: Tensor, reduction: str = "mean") -> Tensor:
        found = self.function(output, goal)
        if not isinstance(found, Tensor) or found.dim() > 0:
            raise UserError(
                "loss: expected a function of outputs and goals that returns the mean over the batch, a tensor of "
                f"shape (), found {f'the shape {tuple(found.shape)}' if isinstance(found, Tensor) else repr(found)}; "
                "fix it."
            )
        if output.requires_grad and torch.is_grad_enabled() and not found.requires_grad:
            raise UserError(
                "loss: expected a function of outputs and goals whose result depends on the outputs, found one without "
                "gradients (a detached tensor, or a constant); fix it."
            )
        return found * len(output) if reduction == "sum" else found

    def training_scores(self, output: Tensor, goal: Tensor) -> dict[str, Tensor]:
        return {}

    def scores(self) -> nn.ModuleDict:
        return nn.ModuleDict()
