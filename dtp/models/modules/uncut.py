"""A module of a user's model that stays one operation because it could not be cut."""

from __future__ import annotations

from torch import Tensor, nn


class Uncut(nn.Module):
    """``module`` as it is: (B, *in) to (B, *out).

    Errors of ``fa`` and its kin go through it; targets of rules with feedback layers do not.

    Args:
        module: of the user's model.
        name: where it is in the model.
        reason: why it could not be cut.
        chosen: whether the user put it into a layer of a list.
    """

    def __init__(self, module: nn.Module, name: str, reason: str, chosen: bool = False):
        super().__init__()
        self.module, self.name, self.reason, self.chosen = module, name, reason, chosen

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)

    @property
    def hides_layers(self) -> bool:
        """Whether several weight matrices are in it, which the user did not ask to be one layer's."""
        matrices = [p for p in self.module.parameters() if sum(size > 1 for size in p.shape) > 1]
        return not self.chosen and len(matrices) > 1

    @property
    def described(self) -> str:
        """Where it is and of which type."""
        return f"{f'{self.name}, ' if self.name else ''}a {type(self.module).__name__}"

    @property
    def refusal(self) -> str:
        """What rules with feedback layers say of it."""
        kind = type(self.module).__name__
        if isinstance(self.module, nn.Softmax | nn.LogSoftmax):
            return f"{self.described}, has no feedback; leave it out at the end, for the loss is one of logits."
        return (
            f"{self.described}, has no feedback: {self.reason}. Give the layers yourself, "
            "as a list in which it is not one operation; or register its feedback before, with "
            f"dtp.feedback.register_feedback({kind}, make_feedback). Rules without feedback layers (fa, dfa, bp) take "
            "it as it is."
        )
