"""Difference target propagation with the local difference reconstruction loss (L-DRL)."""

import warnings
from typing import Any

from torch import Tensor

from dtp.algorithms.local_targets import Activations
from dtp.algorithms.options import DTPOptions, ParallelDTPOptions
from dtp.algorithms.target_propagation import TargetPropagation, overridden
from dtp.errors import UserError
from dtp.feedback import ExpectedLDRL, NotReducible, ReducedLDRL, ldrl_loss
from dtp.models.network import Network


class DTP(TargetPropagation):
    """DTP with L-DRL (Ernoult et al. 2022, Towards Scaling DTP by Learning Backprop Targets).

    Feedback layers are trained until their Jacobians are the transposes of the forward ones. Then, for small beta, the
    difference rule sends down what backprop would.

    With ``probes="expected"`` no noise probes are drawn. Feedback weights take their steps on the mean over infinitely
    many probes, in closed form, but for a term of the order of the squared noise that nonlinearities add. This is a
    simulation of the rule in that limit. It reads the forward weights directly; sampled probes see only how these
    respond to noise (:mod:`dtp.feedback.expected`).

    Left out by the paper: the maxima at which pooling of the noisy pass is undone (``routing``), a bias of the feedback
    layers (none, for its gradient is zero), and feedback rates of networks other than the published ones (see
    :meth:`usual_feedback_lr`).
    """

    Options = DTPOptions
    options: DTPOptions

    def __init__(self, network: Network, options: DTPOptions | None = None, seed: int = 0):
        super().__init__(network, options, seed)
        if self.stop_distance and self.expects:
            raise UserError("--feedback-stop-distance: expected 0 with --probes expected, whose steps cost nothing.")
        for n in self.trained_feedback if self.stop_distance else ():
            form = self._reduced(n)
            if form is None or not form.tells_distance:
                reason = (
                    f"is trained as {self.feedback_forms()[n]}" if form is None else "has maxima that move with noise"
                )
                raise UserError(
                    f"--feedback-stop-distance: layer {n} {reason}, which does not tell the distance; use 0"
                    f"{'' if form is None else ' or --routing fixed'}."
                )

    @property
    def expects(self) -> bool:
        return self.options.probes == "expected"

    def fixed_sequence(self) -> bool:
        directly = self._steps_directly()
        in_graphs = self.engine.choose(self.device, directly) == "graph"
        trained = [n for n in self.trained_feedback if self.feedback_iterations[n]]
        return (
            (directly or not trained)
            and type(self) is DTP
            and all(self._expected(n) is not None or (in_graphs and self._reduced(n) is not None) for n in trained)
        )

    def expected_form(self, n: int) -> ExpectedLDRL:
        pair, settings = (self.network[n], self.feedback[n]), self._loss_settings(n)
        return ExpectedLDRL(*pair, self.noise_scale(n), nodes=self.options.probe_nodes, **settings)

    @property
    def waits(self) -> str:
        """Why a batch reads values: layers end where they are close to the transpose. Empty without a stop distance."""
        return "whether a feedback layer is close is looked at in every iteration" if self.stop_distance else ""

    @property
    def stop_distance(self) -> float:
        return self.options.feedback_stop_distance

    def feedback_noise(self, n: int, activations: Activations) -> tuple[Tensor, Tensor]:
        return self.draw_noise(n, activations.s[n - 1]), self.draw_noise(n, activations.s[n])

    def noise_of_several(self, n: int, activations: Activations, iterations: int) -> tuple[Tensor, ...]:
        if overridden(self, TargetPropagation, "draw_noise") or overridden(self, DTP, "feedback_noise"):
            return super().noise_of_several(n, activations, iterations)
        likes = activations.s[n - 1], activations.s[n]
        shapes = [(self.options.noise_samples * len(like), *like.shape[1:]) for like in likes]
        return tuple(self.noise_streams.normals(n, shapes, self.noise_scale(n), likes, iterations))

    def feedback_loss(self, n: int, activations: Activations, noise: tuple[Tensor, ...]) -> Tensor:
        a = activations
        layers, clean = (self.network[n], self.feedback[n]), (a.s[n - 1], a.s[n], a.contexts[n])
        return ldrl_loss(*layers, *clean, *noise, **self._loss_settings(n))

    def reduced_form(self, n: int) -> ReducedLDRL:
        for hook in ("feedback_noise", "feedback_loss"):
            if overridden(self, DTP, hook):
                raise NotReducible(f"{type(self).__name__} has a {hook} of its own")
        return ReducedLDRL(self.network[n], self.feedback[n], **self._loss_settings(n))

    def _check_probes(self) -> None:
        if not self.expects and self.options.probe_nodes != type(self.options).probe_nodes:
            raise UserError(
                "--probe-nodes: expected --probes expected, found sampled, whose noise is drawn; leave it out."
            )
        for hook in ("feedback_noise", "feedback_loss", "draw_noise") if self.expects else ():
            if overridden(self, DTP, hook):
                raise UserError(
                    f"--probes expected: {type(self).__name__} has a {hook} of its own, whose mean is not known; use "
                    "--probes sampled."
                )
        super()._check_probes()
        self._advise_on_samples()

    def _advise_on_samples(self) -> None:
        """Say where a first term is drawn from too few samples, which leads feedback weights astray."""
        forms = {n: self._expected(n) for n in self.trained_feedback if self.feedback_iterations[n]}
        drawn = {n: form.drawn for n, form in forms.items() if form is not None and form.drawn}
        # Their mean error falls with the root of the samples; as many as the published iterations make it that of the
        # sampled rule.
        if drawn and self.options.noise_samples < 16:
            layers = ("layers " if len(drawn) > 1 else "layer ") + ", ".join(map(str, drawn))
            moving = any("--routing" in why for why in drawn.values())
            fixed = "use --routing fixed, or" if moving else "use"
            warnings.warn(
                f"--probes expected: the first term of {layers} is drawn from {self.options.noise_samples} noise "
                f"samples once per batch ({'; '.join(dict.fromkeys(drawn.values()))}), which can lead the feedback "
                f"astray and make training diverge; {fixed} about as many --noise-samples as the sampled rule has "
                "iterations.",
                stacklevel=2,
            )

    def _loss_settings(self, n: int) -> dict[str, Any]:
        o = self.options
        paper_scale = self.noise_scale(n) if o.ldrl_scale == "paper" else None
        return {"routing": o.routing, "noise_samples": o.noise_samples, "paper_scale": paper_scale}

    def usual_feedback_lr(self, n: int) -> float:
        # The paper's loss is the code's divided by 2 sigma^2, and so are its gradients.
        sgd_on_paper = self.options.ldrl_scale == "paper" and self.options.feedback_optimizer == "sgd"
        return super().usual_feedback_lr(n) * (2 * self.noise[n] ** 2 if sgd_on_paper else 1.0)


class ParallelDTP(DTP):
    """DTP with L-DRL in one feedback step per batch on many noise samples (code of Ernoult et al. 2022, "ParallelDTP").

    The losses of the layers are independent and Adam acts on each weight alone. So one optimizer per layer equals one
    for all.

    Left out by the paper: the whole variant. Whatever is not an option here is as in the authors' code.
    """

    Options = ParallelDTPOptions
    options: ParallelDTPOptions
