"""Fully connected networks."""

from collections.abc import Iterable

from torch import nn

from dtp.models.network import Network, require_positive
from dtp.models.options import MLPOptions


class MLP(Network):
    """``[flatten] -> linear -> activation`` for each width, then ``linear`` to the logits."""

    Options = MLPOptions

    def make_layers(self) -> Iterable[nn.Sequential]:
        require_positive("widths", self.options.widths)
        for width in self.options.widths:
            yield nn.Sequential(*self._flatten(), nn.Linear(self.features, width), self.activation())
        yield nn.Sequential(*self._flatten(), nn.Linear(self.features, self.num_classes))

    def _flatten(self) -> list[nn.Module]:
        return [nn.Flatten()] if len(self.shapes[-1]) > 1 else []
