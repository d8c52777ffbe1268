"""Fully connected networks."""

from collections.abc import Iterable

from torch import nn

from dtp.models.modules import Standardise
from dtp.models.network import Network
from dtp.models.options import MLPOptions


class MLP(Network):
    """``[flatten] -> linear -> activation`` for each width, then ``linear`` to the logits.

    With ``standardise`` the hidden layers, or all, end in a standardisation over the batch (Shibuya et al. 2023); with
    ``dropout`` the hidden ones end in that.
    """

    Options = MLPOptions
    options: MLPOptions

    def make_layers(self) -> Iterable[nn.Sequential]:
        o = self.options
        for number, width in enumerate(o.widths, 1):
            bias = o.bias and (o.last_hidden_bias or number < len(o.widths))
            standardise = self._standardise(width, "hidden", "all")
            dropout = [nn.Dropout(o.dropout)] if o.dropout else []
            yield nn.Sequential(*self._linear(width, bias), self.activation(), *standardise, *dropout)
        yield nn.Sequential(*self._linear(self.num_classes, o.bias), *self._standardise(self.num_classes, "all"))

    def _linear(self, units: int, bias: bool) -> list[nn.Module]:
        flatten = [nn.Flatten()] if len(self.shapes[-1]) > 1 else []
        return [*flatten, nn.Linear(self.features, units, bias=bias)]

    def _standardise(self, units: int, *where: str) -> list[nn.Module]:
        if self.options.standardise not in where:
            return []
        return [Standardise(units, batch_statistics_at_test=self.options.batch_statistics_at_test)]
