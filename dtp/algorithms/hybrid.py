"""Difference target propagation blended with the exact transpose."""

import torch
from torch import Tensor

from dtp.algorithms.local_targets import Activations, evaluate_purely
from dtp.algorithms.options import HybridOptions
from dtp.algorithms.vanilla_dtp import VanillaDTP


class Hybrid(VanillaDTP):
    """Lee's DTP blended with backprop (Bartunov et al. 2018, section 5.6, whose formula forgets the transpose)::

        t_{n-1} = s_{n-1} + alpha J_F^T (t_n - s_n) + (1 - alpha) (G_n(t_n) - G_n(s_n))

    With alpha = 1 and beta = 1 this is backprop. With alpha = 0 it is Lee's DTP with the output's target first. It is
    not local for alpha > 0: targets then go through the layer's own transposed Jacobian, which no feedback path has.

    Left out by the paper: which rule trains G_n (Lee's here) and all tuned values. The paper asks whether to train
    forward weights on the reconstruction as well; this is not done here.
    """

    Options = HybridOptions
    options: HybridOptions

    def lower_target(self, n: int, targets: dict[int, Tensor], activations: Activations) -> Tensor:
        s, alpha = activations.s, self.options.alpha
        learned = super().lower_target(n, targets, activations) - s[n - 1]
        return s[n - 1] + alpha * self._transpose(n, activations, targets[n] - s[n]) + (1 - alpha) * learned

    def _transpose(self, n: int, activations: Activations, change: Tensor) -> Tensor:
        """J_F^T change, (B, *in), at s_{n-1}."""
        s = activations.s[n - 1].detach().requires_grad_()
        with torch.enable_grad():
            output = evaluate_purely(self.network[n], s, activations.contexts[n])
        return torch.autograd.grad(output, s, change)[0]
