"""Networks of square layers, for rules that invert them."""

from collections.abc import Iterable

from torch import nn

from dtp.errors import UserError
from dtp.models.modules import FirstUnits
from dtp.models.network import Network
from dtp.models.options import SquareOptions


class Square(Network):
    """Square layers with auxiliary units (Ahmad et al. 2020; Dalm et al. 2021).

    ``[flatten] -> [first d units] -> linear(d, d) -> activation``. A layer narrower than the one below reads its first
    d units ("tower"); the others are auxiliary. The first layer may be rectangular, for it needs no inverse. The output
    layer is followed by its activation too, unless ``linear_output``, and its first units are the classes.
    """

    Options = SquareOptions
    options: SquareOptions

    def make_layers(self) -> Iterable[nn.Sequential]:
        widths = [*self.options.widths, self.options.outputs or (self.options.widths or [0])[-1]]
        if not self.options.widths:
            raise UserError("--widths: a square network needs at least one hidden layer, found no values.")
        if any(above > below for below, above in zip(widths, widths[1:], strict=False)):
            raise UserError(
                f"--widths: expected widths that do not grow from layer to layer, the output's included, found "
                f"{' '.join(map(str, widths))}; a square layer cannot read more units than there are."
            )
        if widths[-1] < self.num_classes:
            raise UserError(
                f"--outputs: expected at least {self.num_classes} units, one for each class, found {widths[-1]}."
            )
        for i, width in enumerate(widths):
            before: list[nn.Module] = [nn.Flatten()] if len(self.shapes[-1]) > 1 else []
            inputs = self.features if i == 0 else width
            if i > 0 and width < self.features:
                before.append(FirstUnits(width))
            last = i == len(widths) - 1
            function = [] if last and self.options.linear_output else [self.activation()]
            classes = [FirstUnits(self.num_classes)] if last else []
            yield nn.Sequential(*before, nn.Linear(inputs, width), *function, *classes)
