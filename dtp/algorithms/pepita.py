"""PEPITA: the difference of two forward passes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dtp.algorithms.local_losses import LocalLosses, Stages
from dtp.algorithms.options import PEPITAOptions
from dtp.errors import UserError
from dtp.feedback import Context, per_sample_dot, require_several_layers
from dtp.feedback.direct import DirectMap
from dtp.feedback.layers import require_known_functions
from dtp.models.network import Network
from dtp.models.precision import full_precision, no_autocast
from dtp.models.shapes import meta_batch


class PEPITA(LocalLosses):
    """Present the error to perturb the input (Dellaferrera and Kreiman 2022)::

        h = forward(x),   e = p - y,   h~ = forward(x + F e)
        dW_n = - (h_n - h~_n) h~_{n-1}^T,   dW_N = - (p~ - y) h~_{N-1}^T,   h~_0 = x + F e

    with p the output of the first pass, p~ that of the second, and F fixed and random. There is no backward pass and no
    derivative of the nonlinearity, which is contained in the difference. To first order a layer gets the error through
    -W_n .. W_1 F. This feedback changes with the forward weights, whose product learns to point against F. The angle of
    F to (W_N .. W_1)^T is logged as ``feedback_angle`` if layers are linear maps with nonlinearities. The rule is
    backprop in no limit.

    Dropout, and all other random numbers of layers, are the same in both passes; units that the dropout behind their
    nonlinearity drops do not learn. Normalisations use the statistics of the first pass. The error is the gradient of
    ``loss``, whichever is chosen. h_n is the activation before pooling.

    Three things differ from the authors' code. Their update of a convolution has the opposite sign of that of a linear
    layer; here it has the same sign. They average it over the batch twice, here once. A single linear layer after
    convolutions learns from p - y there, and here from p~ - y, as all others.

    Left out by the paper: biases (it has none; here they learn from h_n - h~_n), and layers other than linear ones and
    convolutions.
    """

    Options = PEPITAOptions
    options: PEPITAOptions
    made_for_inputs = True

    def __init__(self, network: Network, options: PEPITAOptions | None = None, seed: int = 0):
        super().__init__(network, options, seed)
        if not meta_batch(network, network.input_shape).is_floating_point():
            raise UserError(
                "pepita adds the error to its inputs, found a network that begins with an embedding of whole numbers; "
                "use another rule, such as bp or dtp."
            )
        require_known_functions(network, network.shapes)
        self.stages = Stages(network)
        shape, dtype = network.shapes[0], next(network.parameters()).dtype
        # F, (pixels, classes).
        self.feedback = DirectMap(network.num_classes, shape, False, dtype).requires_grad_(False)
        require_several_layers(list(network))
        bound = self.options.input_scale * math.sqrt(6 / shape.numel())
        nn.init.uniform_(self.feedback.linear.weight, -bound, bound)

    def losses(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        N, stages, losses = self.network.depth, self.stages, {}
        with no_autocast(x):
            x = full_precision(x.detach())
            h: list[Tensor] = [x]
            contexts: list[Context | None] = [None]
            with torch.no_grad():
                for n in range(1, N + 1):
                    a, context = stages.affine(n, h[-1])
                    h.append(stages.function(n, a))
                    contexts.append(context)
                below = x + self.feedback(self.loss_gradient(h[N], y)).view_as(x)
            for n in range(1, N + 1):
                a, _ = stages.affine(n, below, contexts[n])
                if n == N:
                    losses[n] = self.task_loss(a, y)
                else:
                    below = stages.function(n, a.detach())
                    difference = stages.kept(n, contexts[n + 1]) * (h[n] - below)
                    losses[n] = per_sample_dot(a, difference) / self._shared(stages.positions(n, a))
        return h[N], losses

    def _shared(self, positions: int) -> float:
        """What the sum over the positions of a convolution is divided by."""
        return {"mean": positions, "root": math.sqrt(positions), "sum": 1}[self.options.positions]

    def feedback_weights(self) -> dict[int, list[tuple[Tensor, Tensor]]]:
        maps = [
            [module for module in layer.modules() if next(module.parameters(recurse=False), None) is not None]
            for layer in self.network
        ]
        linears = [found[0] for found in maps if len(found) == 1 and isinstance(found[0], nn.Linear)]
        product = self.feedback.linear.weight.new_empty(0) if len(linears) < len(maps) else linears[0].weight
        for linear in linears[1:]:
            if linear.in_features != len(product):
                # Other layers, or units that are not read.
                return {}
            product = linear.weight @ product
        fixed = self.feedback.linear.weight
        # Maps of each position are none of the whole image.
        return {1: [(fixed, product.t())]} if product.dim() == 2 and product.t().shape == fixed.shape else {}
