"""Fully connected networks with discrete transmission between layers."""

from collections.abc import Iterable

from torch import nn

from dtp.errors import UserError
from dtp.models.modules import Sign
from dtp.models.network import Network
from dtp.models.options import DiscreteOptions


class Discrete(Network):
    """``[flatten or sign] -> linear -> activation`` for each width, then ``linear`` to the logits (Lee 2018, 3.3.2)::

        s_1 = tanh(W_1 x + b_1),    s_2 = tanh(W_2 sgn(s_1) + b_2),    logits = W_3 s_2 + b_3

    The sign is taken at the input of a layer, not at its output. So activations and their targets stay continuous, and
    the feedback G_2(y) = tanh(V_2 sgn(y) + c_2) receives signs too. They are -1 and 1, as in the author's code; his
    text says 0 and 1.
    """

    Options = DiscreteOptions
    options: DiscreteOptions

    def make_layers(self) -> Iterable[nn.Sequential]:
        o = self.options
        for n in o.discretised:
            if not 1 <= n <= len(o.widths):
                raise UserError(
                    f"--discretised: expected numbers of hidden layers, 1 to {len(o.widths)}, found {n}; --widths says "
                    "how many there are."
                )
        if o.discretised and o.activation in ("sigmoid", "relu"):
            least = "above 0" if o.activation == "sigmoid" else "0 or more"
            raise UserError(
                f"--activation: expected one of both signs, found {o.activation}, whose values are all {least}; "
                "use tanh."
            )
        for n, units in enumerate([*o.widths, self.num_classes], start=1):
            before = [nn.Flatten()] if n == 1 else [Sign(o.sign_gradient)] if n - 1 in o.discretised else []
            after = [self.activation()] if n <= len(o.widths) else []
            yield nn.Sequential(*before, nn.Linear(self.features, units), *after)
