"""Direct random target projection: hidden layers learn from the label."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dtp.algorithms.direct import DFA, say
from dtp.algorithms.local_targets import Activations
from dtp.algorithms.options import DRTPOptions
from dtp.feedback import is_elementwise, layer_operations
from dtp.models.precision import no_autocast


class DRTP(DFA):
    """Direct random target projection (Frenkel, Lefebvre, Bol 2021): direct feedback alignment by the label.

    A hidden layer learns from t_n = s_n - B_n y with y one-hot. Its update does not need the output: W_n can change as
    soon as s_n exists. The output layer learns the task loss. ``projected`` selects the authors' two other cases: the
    sign of the error (sDFA), and nothing (shallow), which is the control.

    The signal B_n y does not get smaller as the output becomes correct. Only a nonlinearity that saturates stops
    weights from growing. With others training diverges, faster in deeper networks, and a warning says so. Updates align
    with those of backprop early in training and turn away from them later.

    The authors' code sums over the batch in hidden layers, but takes means in the output layer (over classes too, for
    binary cross-entropy). To reproduce that, set ``local_loss_scale`` to the batch size, or use rates by layer. Their
    maps end before the pooling of a convolution. Ours end after it, like those of ``dfa``, and are smaller.

    Left out by the paper: nothing that matters here. The distribution of B_n is that of the authors' code
    (``backward_init``).
    """

    Options = DRTPOptions
    options: DRTPOptions

    def __init__(self, network, options: DRTPOptions | None = None, seed: int = 0):
        super().__init__(network, options, seed)
        self._require_no_step("no target is a step along a gradient")
        unbounded = [n for n in range(1, network.depth) if not _saturates(network[n])]
        if unbounded and self.options.projected == "label":
            say(
                f"drtp: layer {unbounded[0]} has no nonlinearity that saturates, and the signal of this rule never "
                "vanishes: weights will grow without bound; use --activation tanh or sigmoid."
            )

    def targets(self, activations: Activations, y: Tensor) -> dict[int, Tensor]:
        N, s = self.network.depth, activations.s
        with torch.no_grad(), no_autocast(s[0]):
            signal = self.projected(s[N], y)
            targets = {n - 1: s[n - 1] - self.feedback[n](signal) for n in range(2, N + 1)}
            return targets | {N: self.first_target(activations, y)}

    def projected(self, output: Tensor, y: Tensor) -> Tensor:
        """What goes to the hidden layers, (B, classes), of the output (B, classes) and the goals."""
        label = self.task.wanted(y, like=output)
        if self.options.projected == "label":
            return label
        if self.options.projected == "error-sign":
            return (self.task.units(self.options.loss, output) - label).sign()
        return torch.zeros_like(label)


def _saturates(layer: nn.Module) -> bool:
    function = next((module for module in reversed(layer_operations(layer)) if is_elementwise(module)), None)
    if function is None or next(function.parameters(), None) is not None:
        # One with weights, as PReLU, may become anything.
        return False
    return bool(function(torch.tensor([-1e6, 1e6])).abs().max() < 1e3)
