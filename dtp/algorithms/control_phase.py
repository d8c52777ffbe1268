"""How the feedback of deep feedback control learns: from correlations in one simulation of the whole network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dtp.algorithms.local_targets import Activations
from dtp.algorithms.target_propagation import RulePhase
from dtp.feedback import FeedbackProblem

if TYPE_CHECKING:
    from dtp.algorithms.feedback_control import FeedbackControl, Moment


class Correlator:
    """Means over times and images of v_n^fb[t] u[t+1]^T, by layer; called with each moment in turn.

    Args:
        factors: of each layer.
        high_pass: dt / tau_f, to take u less its running mean, which starts at the first u; 0 for u itself.
    """

    def __init__(self, factors: dict[int, float], high_pass: float = 0.0):
        self.factors, self.high_pass = factors, high_pass
        self.before: Moment | None = None
        self.sums: dict[int, Tensor] = {}
        self.times = 0

    def __call__(self, moment: Moment) -> None:
        u, self.times = moment.u, self.times + 1
        if self.high_pass:
            self.slow = u if self.before is None else torch.lerp(self.slow, u, self.high_pass)
            u = u - self.slow
        for n in self.factors:
            # At the start there is no feedback yet.
            if self.before is not None:
                self.sums[n] = self.sums.get(n, 0) + self.before.control[n].flatten(1).t() @ u
        self.before = moment

    def means(self) -> dict[int, Tensor]:
        """The means by layer, each times its factor, (d_n, K) with d_n the numbers of v_n per image.

        All moments are counted, the first one too, where there is no feedback yet. Needs one moment at least.
        """
        assert self.before is not None, "a simulation has a first moment"
        images = len(self.before.u)
        return {n: total * (self.factors[n] / (self.times * images)) for n, total in self.sums.items()}


class ControlPhase(RulePhase):
    """The feedback phase of one batch, in which one simulation serves all layers.

    Args:
        known: the correlations, where another simulation has them already.
    """

    rule: FeedbackControl

    def __init__(
        self,
        rule: FeedbackControl,
        activations: Activations,
        y: Tensor | None,
        known: dict[int, Tensor] | None = None,
    ):
        super().__init__(rule, activations)
        self.y, self.known = y, known

    def problems(self, layers: Sequence[int], rows: slice | None = None) -> list[FeedbackProblem]:
        rule, whole, y = self.rule, self.activations, self.y
        a = whole if rows is None else whole.select(rows)
        error = rule.feedback_error(a, y if y is None or rows is None else y[rows])

        def draw(n: int, like: Tensor) -> Tensor:
            # Of all images, so that the layer's stream goes on alike however many ranks share it.
            noise = rule.draw(n, self.images, like)
            return noise if rows is None else noise[rows]

        rounds: list[dict[int, Tensor]] = []
        taken = dict.fromkeys(layers, 0)

        def correlation(n: int) -> tuple[Tensor]:
            if taken[n] == len(rounds):
                rounds.append(self.known or rule.correlations(a, error, draw))
            taken[n] += 1
            return (rounds[taken[n] - 1][n],)

        return [
            FeedbackProblem(
                n,
                rule._feedback_parameters(n),
                rule.feedback_iterations[n],
                lambda n=n: correlation(n),
                # Its gradient is the correlation.
                lambda found, n=n: (rule.map(n).linear.weight * found[0]).sum(),
            )
            for n in layers
        ]
