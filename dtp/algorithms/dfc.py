"""The rules of deep feedback control: in time, at rest, linearised, and with strong control."""

from __future__ import annotations

import math

from torch import Tensor

from dtp.algorithms.control_phase import ControlPhase, Correlator
from dtp.algorithms.feedback_control import Controlled, Controller, Error, FeedbackControl, Noise
from dtp.algorithms.local_targets import Activations
from dtp.algorithms.options import DFCOptions, DFCSSAOptions, DFCSSOptions, DynamicControlOptions, StrongDFCOptions
from dtp.errors import UserError
from dtp.models.network import Network
from dtp.models.precision import no_autocast


class DynamicControl(FeedbackControl):
    """Template of the rules that may be simulated in time."""

    Options = DynamicControlOptions
    options: DynamicControlOptions

    def __init__(self, network: Network, options: DynamicControlOptions | None = None, seed: int = 0):
        super().__init__(network, options, seed)
        self._require_steps("time_step", "voltage_time")

    @property
    def controller(self) -> Controller:
        """The controller of the simulations that the forward weights learn from."""
        o = self.options
        times = (o.time_step, o.time_steps, o.voltage_time)
        return Controller(o.alpha, o.proportional, *times, proactive=o.proactive)

    @property
    def alpha(self) -> float:
        """The option where the leak is of the whole control, as in the authors' code, else less."""
        o = self.options
        return o.alpha if o.leak == "total" else o.alpha / (1 + o.alpha * o.proportional)

    def last_moment(self, activations: Activations, error: Error) -> Controlled:
        """What layers learn from the end of the simulation."""
        *_, moment = self.dynamics(activations, error, self.controller)
        return self.learned_from(moment, activations, error)


class DFC(DynamicControl):
    """Deep feedback control (Meulemans et al. 2021): the network and its controller in time.

    The forward weights learn from the mean of (f(v_n) - f(v_n^ff)) r_{n-1}^T over all times. With a step of dt::

        u_int += dt (e - alpha u),    u = u_int + k_p e
        v_n += dt / tau_v (Q_n u + A_n(r_{n-1}) - v_n)

    Left out by the paper, or different from it: the leak acts on u_int in the paper, and on u in the authors' code
    (``leak``). Only the code clamps the variance of the noise (``noise_floor``). Everything else is described in
    :class:`~dtp.algorithms.feedback_control.FeedbackControl`.
    """

    Options = DFCOptions
    options: DFCOptions

    def controlled(self, activations: Activations, error: Error) -> Controlled:
        return self.over_time(activations, error, self.controller)


class DFCSS(DynamicControl):
    """DFC at its steady state, DFC-SS (Meulemans et al. 2021): the forward weights learn from the end alone.

    The state at rest is a root in K unknowns for each image, r_N(u) + alpha u = r*, where r_N(u) is one pass upwards
    under the control u. ``steady_state`` iterate finds it by chord iterations, which use J Q of the forward pass. A few
    passes replace a thousand steps of the dynamics, with the same result. With dynamics it is simulated, as published.

    Left out by the paper: that iteration, and what :class:`DFC` lists.
    """

    Options = DFCSSOptions
    options: DFCSSOptions
    newton = False

    @property
    def waits(self) -> str:
        """Why a batch reads values: iterations end where all images have settled. Empty where it is simulated."""
        iterates = self.options.steady_state == "iterate"
        return "whether all images have settled is looked at in every iteration" if iterates else ""

    def controlled(self, activations: Activations, error: Error) -> Controlled:
        if self.options.steady_state == "dynamics":
            return self.last_moment(activations, error)
        return self.at_rest(activations, error, self.options.settling_steps, self.newton)


class StrongDFC(DFCSS):
    """DFC with strong control, Strong-DFC (Meulemans et al. 2022): the output is led to the label itself.

    The error is e = y - p(r_N). p is the softmax (or what the loss uses instead), and y the label: ``label_confidence``
    for the right class, with the rest shared by the others. The feedback weights learn under the same error.
    ``steady_state`` iterate finds the root by Newton iterations with halved steps; dynamics takes the end of a
    simulation. In single-phase one simulation with noise trains both kinds of weights. The noise goes through a
    low-pass filter, the forward weights learn from the mean over all times, and the feedback weights from u minus its
    running mean::

        dQ_n = -(1 + tau_v / tau_eps)^(N-n) mean v_n^fb (u - <u>)^T / max(sigma_n, noise_floor)^2 - decay Q_n

    Left out by the paper, or different from it: the Newton iterations. With the published constants the simulation ends
    long before rest, so the update comes from a transient (``train/settling`` says how far it is from rest).
    """

    Options = StrongDFCOptions
    options: StrongDFCOptions
    newton = True
    # The output is led to the label, whatever a loss would say of it.
    learns_any_loss = False

    def __init__(self, network: Network, options: StrongDFCOptions | None = None, seed: int = 0):
        super().__init__(network, options, seed)
        o = self.options
        self._require_no_step("the target is the label itself")
        steps = max(o.time_step, o.feedback_time_step)
        for flag in ("noise_time", "filter_time") if self.single_phase else ():
            if getattr(o, flag) < steps:
                raise UserError(
                    f"--{flag.replace('_', '-')}: expected at least the steps of the simulations, {steps}, found "
                    f"{getattr(o, flag)}."
                )
        apart = o.schedule in ("alternating", "warmup") or o.extra_feedback_epochs
        if self.single_phase and (apart or o.feedback_apical_time):
            raise UserError(
                "--steady-state single-phase: expected both kinds of weights to learn in every batch, from feedback "
                "that arrives at once; leave out --extra-feedback-epochs, and give --schedule sequential or parallel "
                "and --feedback-apical-time 0."
            )

    @property
    def single_phase(self) -> bool:
        """Whether one simulation, with noise, trains both kinds of weights."""
        return self.options.steady_state == "single-phase"

    def error(self, activations: Activations, y: Tensor) -> Error:
        wanted, c = self.task.wanted(y, like=activations.s[-1]), self.options.label_confidence
        if self.task.uses_labels and self.task.outputs > 1:
            wanted = c * wanted + (1 - c) / (self.task.outputs - 1) * (1 - wanted)
        return lambda output: wanted - self.task.units(self.options.loss, output)

    def feedback_error(self, activations: Activations, y: Tensor | None) -> Error:
        if y is None:
            raise UserError(f"feedback_phase of {type(self).__name__} needs the labels, found none; give them as y.")
        return self.error(activations, y)

    def controlled(self, activations: Activations, error: Error) -> Controlled:
        if not self.single_phase:
            return super().controlled(activations, error)
        noise = self.feedback_noise_of(self.controller, lambda n, like: self.draw(n, len(like), like))
        return self.over_time(activations, error, self.controller, noise)

    def forward_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        # In a single phase it draws noise.
        with self.noise_streams.unchanged():
            return super().forward_gradients(x, y)

    def training_batch(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if not self.single_phase or self.turns() != (True, True):
            return super().training_batch(x, y)
        activations = self.activations(x, gradients=False)
        targets = self.targets(activations, y)
        with no_autocast(activations.s[0]):
            scalars = self._train_feedback(ControlPhase(self, activations, y, targets.correlations))
        self.forward_step(activations, targets, y)
        return activations.logits, {**scalars, **self.settling(targets)}

    def feedback_noise_of(self, controller: Controller, draw: Noise) -> Noise:
        if not self.single_phase:
            return super().feedback_noise_of(controller, draw)
        part = controller.time_step / self.options.noise_time
        scales, states = {n: self.noise_scale(n) for n in self.feedback.numbers}, {}

        def filtered(n: int, like: Tensor) -> Tensor:
            fresh = part / math.sqrt(controller.time_step) * draw(n, like)
            states[n] = fresh + (1 - part) * states.get(n, 0)
            return scales[n] * states[n]

        return filtered

    def correlator(self, controller: Controller) -> Correlator:
        if not self.single_phase:
            return super().correlator(controller)
        grows, N = 1 + controller.voltage_time / self.options.noise_time, self.network.depth
        factors = {n: grows ** (N - n) * self._precision(n) for n in self.feedback.numbers}
        return Correlator(factors, controller.time_step / self.options.filter_time)


class DFCSSA(FeedbackControl):
    """DFC at its steady state, linearised, DFC-SSA (Meulemans et al. 2021): u = (J Q + alpha I)^-1 (r* - r_N^-).

    J is the Jacobian of the output by all v_n in the forward pass. One pass upwards under that u follows.

    Left out by the paper: how J Q is computed. Here it is the derivative of the output by u, which equals J Q, computed
    in forward mode with all K directions at once.
    """

    Options = DFCSSAOptions
    options: DFCSSAOptions

    def controlled(self, activations: Activations, error: Error) -> Controlled:
        return self.at_rest(activations, error, 1, False)
