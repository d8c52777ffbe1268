"""Fully connected networks of stochastic binary units."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dtp.errors import UserError
from dtp.models.modules import InputNoise, Probability, Sample
from dtp.models.network import Network
from dtp.models.options import StochasticOptions
from dtp.models.precision import full_precision


class Stochastic(Network):
    """Hidden units that are 1 with the probability of a sigmoid, and 0 otherwise (Lee 2018, 3.3.3)::

        p_n = sigmoid(W_n h_{n-1} + b_n),    h_n ~ Bernoulli(p_n),    logits = W_N h_{N-1} + b_N

    Samples are drawn at the input of the next layer. So the activation s_n is p_n, and targets are targets of
    probabilities. The feedback is G_n(y) = tanh(V_n y + c_n), without samples. Images get Gaussian noise in training.

    In training a pass takes one sample of each unit, which differentiation treats as the identity. In evaluation it
    takes ``passes`` samples and returns the logarithm of the mean class probabilities.
    """

    Options = StochasticOptions
    options: StochasticOptions
    losses = ("cross-entropy",)

    def make_layers(self) -> Iterable[nn.Sequential]:
        o = self.options
        if not o.widths:
            raise UserError("--widths: a stochastic network has at least one hidden layer, found no values.")
        for n, units in enumerate([*o.widths, self.num_classes], start=1):
            before = [InputNoise(o.input_noise), nn.Flatten()] if n == 1 else [Sample()]
            after = [Probability()] if n <= len(o.widths) else []
            yield nn.Sequential(*before, nn.Linear(self.features, units), *after)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        # Below the first sample all passes are one.
        p = self.layers[0](x)
        total = torch.full((), -math.inf, dtype=full_precision(p).dtype, device=p.device)
        for _ in range(self.options.passes):
            s = p
            for layer in self.layers[1:]:
                s = layer(s)
            total = torch.logaddexp(total, full_precision(s).log_softmax(1))
        return total - math.log(self.options.passes)
