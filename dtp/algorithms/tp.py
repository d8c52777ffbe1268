"""Target propagation."""

from torch import Tensor

from dtp.algorithms.local_targets import Activations
from dtp.algorithms.options import TPOptions
from dtp.algorithms.vanilla_dtp import VanillaDTP


class TP(VanillaDTP):
    """Target propagation (Bengio 2014; Lee 2018): the target itself goes down, t_{n-1} = G_n(t_n), uncorrected.

    Left out by the papers: all tuned values. The first target and the loss of the feedback are those of
    ``vanilla-dtp``.
    """

    Options = TPOptions
    options: TPOptions

    def lower_target(self, n: int, targets: dict[int, Tensor], activations: Activations) -> Tensor:
        return self.feedback[n](targets[n], activations.contexts[n])
