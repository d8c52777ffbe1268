"""Deep feedback control: a controller leads the output to its target, and each layer learns what it was led to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dtp.algorithms.control_phase import ControlPhase, Correlator
from dtp.algorithms.local_targets import Activations
from dtp.algorithms.options import ControlOptions
from dtp.algorithms.target_propagation import TargetPropagation, per_layer
from dtp.errors import UserError, first_line
from dtp.feedback import FeedbackNetwork, forward_with_context, layer_operations
from dtp.feedback.context import Context
from dtp.feedback.direct import DirectMap
from dtp.feedback.layers import is_layer_function, require_known_functions
from dtp.feedback.loop import Gradients
from dtp.feedback.losses import per_sample_dot
from dtp.feedback.operations import operation_of
from dtp.models.network import Network
from dtp.models.precision import no_autocast
from dtp.models.shapes import meta_batch, output_shape

# The error (B, K) that the controller sees, of the output (B, K).
Error = Callable[[Tensor], Tensor]
# What is added to the feedback into layer n, of the shape of a tensor.
Noise = Callable[[int, Tensor], Tensor]
# How often the step of an iteration is halved for images whose residual does not fall.
HALVINGS = 20


class Block(NamedTuple):
    """A layer cut where the controller acts: r = rest(f(v)), v = A(r below) + Q u. Operations with their places."""

    affine: list[tuple[int, nn.Module]]
    function: list[tuple[int, nn.Module]]
    rest: list[tuple[int, nn.Module]]


@dataclass(frozen=True)
class Controller:
    """Constants of the dynamics; times in units of the controller's own time constant. ``apical_time`` 0: at once."""

    alpha: float
    proportional: float
    time_step: float
    steps: int
    voltage_time: float
    apical_time: float = 0.0
    proactive: bool = False


@dataclass(frozen=True)
class Moment:
    """The network at one time. Lists by layer, from 1 on; place 0 holds the input, of ``rates``, or nothing.

    Attributes:
        u: (B, K), the control.
        drive: what comes into v_n from below; its graph reaches the weights of layer n where they are to learn.
        control: what comes into v_n from the controller.
        voltages: v_n.
        rates: r_n.
    """

    u: Tensor
    drive: list[Tensor]
    control: list[Tensor]
    voltages: list[Tensor]
    rates: list[Tensor]


@dataclass(eq=False)
class Controlled(dict):
    """Targets t_n by layer, the rates under control, and what the layers learn from them.

    Attributes:
        u: (B, K), the control at the end.
        residual: (B,), |e - a u| / |r_N^-|, 0 at rest.
        settled: (B,) bool, whether that is below the tolerance and the error below a quarter of the first one.
        teaching: f(v_n) - f(v_n^ff) by layer, in the space of v_n.
        rates: r_n for n = 0..N.
        gradients: by layer, of the trained weights, where the rule learns all along the way; ``teaching`` is empty.
        eigenvalue: smallest real part of the eigenvalues of the batch's mean of J Q, where J Q was needed; above -alpha
            the control is stable (paper, condition 3).
        correlations: gradients of the feedback weights by layer, where the same simulation gives them.
    """

    u: Tensor
    residual: Tensor
    settled: Tensor
    rates: list[Tensor]
    teaching: dict[int, Tensor] = field(default_factory=dict)
    gradients: dict[int, list[Tensor]] = field(default_factory=dict)
    eigenvalue: Tensor | None = None
    correlations: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self):
        self.update({n: rate for n, rate in enumerate(self.rates) if n})


class FeedbackControl(TargetPropagation):
    """Template of deep feedback control (Meulemans et al. 2021).

    A controller u, with K numbers per image, sees the error of the output. It drives every layer, the output layer too,
    through a direct map Q_n to the values before the nonlinearity::

        v_n = A_n(r_{n-1}) + Q_n u,    r_n = f_n(v_n),    r_0 = x

    until e = alpha u, with e = r* - r_N and r* = r_N^- - beta d loss / d r_N, per image (- is the plain forward pass).
    Then each layer learns to do without the control: dW_n = lr s (f(v_n) - f(A_n(r_{n-1}))) r_{n-1}^T, s
    ``local_loss_scale``. The factor f' is in the difference already, so the local loss is linear in A_n.

    Q_n learns in a phase of its own: noise on all v_n^fb, what the controller makes of it, and the correlation of the
    two, dQ_n = -v_n^fb u^T / max(sigma_n, noise_floor)^2 - decay Q_n. Q_N starts at the identity. There the output is
    to stay where it is. ``feedback_iterations`` 0 keeps a Q_n as it is, ``feedback_init`` symmetric is the transposed
    product of the forward weights above it: both together are DFC with fixed feedback.

    Train the feedback first: through random maps hidden updates are at 90 degrees to backprop's. Where the columns of Q
    span the rows of the Jacobian and alpha is small, all layers together take a Gauss-Newton step, the smallest that
    reaches the target. In ``ddtp-linear`` each hidden layer takes one that reaches it alone.

    A network of any layers serves: A_n is what comes before the last nonlinearity of a layer (max-pooling after it is
    drawn in), Q_n is dense onto that. Only fully connected networks are published.

    ``train/settling`` is the largest |e - alpha u| / |r_N^-| of the batch when the layers learn, ``train/settled`` the
    share of images with less than ``settling_tolerance`` whose error fell below a quarter. ``skip_unsettled`` leaves
    the others out, as most published runs do.
    """

    Options = ControlOptions
    options: ControlOptions
    made_for_inputs = True
    # The maps learn from one simulation of the whole network.
    independent_feedback = False
    needs_noise = False

    def __init__(self, network: Network, options: ControlOptions | None = None, seed: int = 0):
        super().__init__(network, options, seed)
        o = self.options
        if o.noise_samples != 1:
            raise UserError(
                f"--noise-samples: expected 1, found {o.noise_samples}; longer simulations (--feedback-time-steps) "
                "see more noise."
            )
        self._require_steps("feedback_time_step", "feedback_voltage_time")
        numbers = self.trained_feedback
        warm = o.warmup_feedback_lr or list(self.feedback_lr.values())
        self.warmup_feedback_lr = per_layer("warmup-feedback-lr", warm, numbers)
        self.warmup_noise = per_layer("warmup-noise", o.warmup_noise or o.noise, numbers)

    # --- hooks --------------------------------------------------------------------------------------------------------

    def controlled(self, activations: Activations, error: Error) -> Controlled:
        """The network under control, without gradients."""
        raise UserError(f"{type(self).__name__} does not say how it is controlled; define controlled in it.")

    def error(self, activations: Activations, y: Tensor) -> Error:
        """What the controller is to bring to zero while forward weights learn."""
        target = self.first_target(activations, y)
        return lambda output: target - output

    def feedback_error(self, activations: Activations, y: Tensor | None) -> Error:
        """The same while feedback weights learn; ``y`` is None where nobody has goals at hand."""
        return lambda output: activations.s[-1] - output

    # --- the network in pieces ----------------------------------------------------------------------------------------

    def make_feedback(self) -> FeedbackNetwork:
        network, dtype = self.network, next(self.network.parameters()).dtype
        require_known_functions(network, network.shapes)
        # The first place holds nothing, so that layers have their numbers.
        self.blocks = [Block([], [], []), *(_block(layer) for layer in network)]
        maps = {}
        for n, block in enumerate(self.blocks[1:], 1):
            shape = output_shape(nn.Sequential(*(module for _, module in block.affine)), network.shapes[n - 1])
            maps[n] = DirectMap(network.num_classes, shape, False, dtype, "xavier-normal")
        with torch.no_grad():
            if network.shapes[-1] == maps[network.depth].shape:
                nn.init.eye_(maps[network.depth].linear.weight)
            if self.options.feedback_init == "symmetric":
                for n, product in self._products().items():
                    maps[n].linear.weight.copy_(product)
        return FeedbackNetwork(maps)

    def map(self, n: int) -> DirectMap:
        """Q_n."""
        found = self.feedback[n]
        assert isinstance(found, DirectMap)
        return found

    def _products(self) -> dict[int, Tensor]:
        """Transposed Jacobians (d_n, K) of the output by v_n in the network without its nonlinearities, at image 0."""
        network = self.network
        modes = [(module, module.training) for module in network.modules()]
        for module, _ in modes:
            module.training = False
        # Whole numbers for an embedding.
        dtype = meta_batch(network, network.input_shape).dtype
        x = next(network.parameters()).new_zeros(1, *network.input_shape, dtype=dtype)
        contexts, inputs = [Context()], []
        for n, layer in enumerate(network, 1):
            contexts.append(forward_with_context(layer, x)[1])
            inputs.append(_run(self.blocks[n].affine, x, contexts[n]))
            x = _run(self.blocks[n].rest, inputs[-1], contexts[n])

        def output(n: int, v: Tensor) -> Tensor:
            for k in range(n, network.depth + 1):
                v = v if k == n else _run(self.blocks[k].affine, v, contexts[k])
                v = _run(self.blocks[k].rest, v, contexts[k])
            return v[0]

        jacobians = {n: torch.func.jacrev(lambda v, n=n: output(n, v))(inputs[n - 1]) for n in range(1, len(contexts))}
        for module, training in modes:
            module.training = training
        return {n: jacobian.flatten(1).t() for n, jacobian in jacobians.items()}

    def _drive(self, n: int, rate: Tensor, a: Activations) -> Tensor:
        """A_n of the rates below, (B, *shape of v_n)."""
        return _run(self.blocks[n].affine, rate, a.contexts[n])

    def _function(self, n: int, v: Tensor, a: Activations) -> Tensor:
        return _run(self.blocks[n].function, v, a.contexts[n])

    def _rate(self, n: int, v: Tensor, a: Activations) -> Tensor:
        return _run(self.blocks[n].rest, self._function(n, v, a), a.contexts[n])

    def _teaching(self, n: int, voltage: Tensor, drive: Tensor, a: Activations) -> Tensor:
        return self._function(n, voltage, a) - self._function(n, drive, a)

    # --- at rest ------------------------------------------------------------------------------------------------------

    def controlled_pass(self, u: Tensor, first: Tensor, a: Activations) -> Moment:
        """The network at rest under the control u (B, K); ``first`` is A_1(x)."""
        drive, control, voltages, rates = [first], [first], [first], [a.s[0]]
        for n in range(1, self.network.depth + 1):
            drive.append(first if n == 1 else self._drive(n, rates[-1], a))
            control.append(self.feedback[n](u))
            voltages.append(drive[n] + control[n])
            rates.append(self._rate(n, voltages[n], a))
        return Moment(u, drive, control, voltages, rates)

    def steady_state(self, activations: Activations, error: Error, steps: int, newton: bool) -> tuple[Moment, Tensor]:
        """The network at the root u of error(r_N(u)) - alpha u, and J Q, (B, K, K), at the last matrix.

        Iterations u <- u + (J Q + alpha I)^-1 (error - alpha u), with J Q of the forward pass (chord) or of the last
        point (``newton``), at most ``steps``, for the images whose residual is above ``settling_tolerance``. A single
        one is the linearised solution, taken as it is; with more an image's step is halved until its residual falls.
        """
        a, first, alpha = activations, self._drive(1, activations.s[0], activations), self.alpha
        u = torch.zeros_like(a.s[-1])
        here = self.controlled_pass(u, first, a)
        miss, size = error(here.rates[-1]), here.rates[-1].norm(dim=1)
        enough = self.options.settling_tolerance * size
        for step in range(steps):
            # Settled images stay where they are, whatever the others of the batch do.
            moving = (miss.norm(dim=1) > enough) | (step == 0)
            if step and not moving.any():
                break
            if step == 0 or newton:
                matrix = -self._sensitivity(lambda v: error(self.controlled_pass(v, first, a).rates[-1]), u)
                damped = matrix + alpha * torch.eye(u.shape[1]).to(u)
                # The other one looks at the device for a matrix without inverse.
                factors = torch.linalg.lu_factor_ex(damped)[:2]
            direction = torch.linalg.lu_solve(*factors, miss[:, :, None])[:, :, 0] * moving[:, None]
            length, found = torch.ones_like(u[:, :1]), u + direction
            for _ in range(HALVINGS):
                there = self.controlled_pass(found, first, a)
                missed = error(there.rates[-1]) - alpha * found
                worse = (missed.norm(dim=1) > miss.norm(dim=1)) & moving
                if steps == 1 or not worse.any():
                    break
                length = torch.where(worse[:, None], length / 2, length)
                found = u + length * direction
            u, miss, here = found, missed, there
        return here, matrix

    def _sensitivity(self, function: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
        """Derivatives (B, K, K) of what ``function`` makes of each image's own u; forwards, K tangents at once."""

        def column(tangent: Tensor) -> Tensor:
            return torch.func.jvp(function, (u,), (tangent.expand_as(u),))[1]

        # A module that draws has the numbers of the clean pass again, the same for each column.
        try:
            return torch.func.vmap(column, out_dims=2, randomness="same")(torch.eye(u.shape[1]).to(u))
        except NotImplementedError as error:
            raise UserError(
                f"{type(self).__name__} needs derivatives in forward mode, found an operation that has none "
                f"({first_line(error)}); use dfc, or dfc-ss or strong-dfc with --steady-state dynamics."
            ) from error

    def at_rest(self, activations: Activations, error: Error, steps: int, newton: bool) -> Controlled:
        """What layers learn from the steady state, see :meth:`steady_state`."""
        moment, matrix = self.steady_state(activations, error, steps, newton)
        found = self.learned_from(moment, activations, error)
        found.eigenvalue = torch.linalg.eigvals(matrix.mean(0)).real.min()
        return found

    def learned_from(self, moment: Moment, activations: Activations, error: Error) -> Controlled:
        """What layers learn from one moment."""
        a, numbers = activations, range(1, self.network.depth + 1)
        found = self._outcome(moment, a, error)
        keep = self._kept(found)
        for n in numbers:
            teaching = self._teaching(n, moment.voltages[n], moment.drive[n], a)
            found.teaching[n] = teaching * _like(keep, teaching)
        return found

    def _outcome(self, moment: Moment, a: Activations, error: Error) -> Controlled:
        e, before = error(moment.rates[-1]), error(a.s[-1])
        tiny = torch.finfo(e.dtype).tiny
        residual = (e - self.alpha * moment.u).norm(dim=1) / a.s[-1].norm(dim=1).clamp(min=tiny)
        settled = (residual < self.options.settling_tolerance) & (e.norm(dim=1) < 0.25 * before.norm(dim=1))
        return Controlled(moment.u, residual, settled, moment.rates)

    def _kept(self, found: Controlled) -> Tensor:
        """1 for the images that are learned from, (B,), 0 for the others."""
        return (found.settled if self.options.skip_unsettled else torch.ones_like(found.settled)).to(found.u)

    # --- in time ------------------------------------------------------------------------------------------------------

    def dynamics(
        self,
        activations: Activations,
        error: Error,
        controller: Controller,
        noise: Noise | None = None,
        graphs: bool = False,
    ) -> Iterator[Moment]:
        """The network after each of ``controller.steps`` - 1 steps from the forward pass (paper, equations 1 to 3).

        Layers hear each other at once, from below upwards. ``noise`` is added to the feedback into a layer in each
        step. With ``graphs`` what comes from below has a graph to the layer's weights.
        """
        a, c, N = activations, controller, self.network.depth
        integral = getattr(self.options, "leak", "total") == "integral"
        with torch.set_grad_enabled(graphs):
            first = self._drive(1, a.s[0], a)
        voltages = [first.detach(), *(self._drive(n, a.s[n - 1], a) for n in range(1, N + 1))]
        control = [torch.zeros_like(v) for v in voltages]
        rates = list(a.s)
        u = integrated = torch.zeros_like(rates[-1])
        apical = c.apical_time or c.time_step
        for _ in range(c.steps - 1):
            e = error(rates[-1])
            integrated = integrated + c.time_step * (e - c.alpha * (integrated if integral else u))
            new = integrated + c.proportional * e
            seen, u, drive = (new if c.proactive else u), new, [first]
            for n in range(1, N + 1):
                with torch.set_grad_enabled(graphs):
                    drive.append(first if n == 1 else self._drive(n, rates[n - 1], a))
                control[n] = control[n] + c.time_step / apical * (self.feedback[n](seen) - control[n])
                if noise is not None:
                    control[n] = control[n] + noise(n, control[n])
                below = drive[n].detach()
                voltages[n] = voltages[n] + c.time_step / c.voltage_time * (control[n] + below - voltages[n])
                rates[n] = self._rate(n, voltages[n], a)
            yield Moment(u, drive, list(control), list(voltages), list(rates))

    def over_time(
        self, activations: Activations, error: Error, controller: Controller, noise: Noise | None = None
    ) -> Controlled:
        """What layers learn from the mean over all times (dfc), with feedback correlations where there is ``noise``."""
        a, keep, numbers = activations, None, range(1, self.network.depth + 1)
        if self.options.skip_unsettled:
            # Whether an image settles is known at the end.
            *_, last = self.dynamics(a, error, controller)
            keep = self._kept(self._outcome(last, a, error))
        weights = {n: [p for p in self.network[n].parameters() if p.requires_grad] for n in numbers}
        sums = {n: [torch.zeros_like(p) for p in parameters] for n, parameters in weights.items()}
        # What comes into the first layer does not change: its gradient is that of the sum.
        first: Any = 0
        correlate = self.correlator(controller)
        for moment in self.dynamics(a, error, controller, noise, graphs=True):
            if noise is not None:
                correlate(moment)
            for n in numbers:
                teaching = self._teaching(n, moment.voltages[n], moment.drive[n].detach(), a)
                if keep is not None:
                    teaching = teaching * _like(keep, teaching)
                if n == 1:
                    first = first + teaching
                elif weights[n]:
                    for total, part in zip(sums[n], _pulled(moment.drive[n], weights[n], teaching), strict=True):
                        total += part
        if weights[1]:
            sums[1] = _pulled(moment.drive[1], weights[1], first)
        found = self._outcome(moment, a, error)
        factor = -self.options.local_loss_scale / (controller.steps * len(a.s[0]))
        found.gradients = {n: [factor * total for total in totals] for n, totals in sums.items()}
        found.correlations = correlate.means() if noise is not None else {}
        return found

    # --- forward weights ----------------------------------------------------------------------------------------------

    def targets(self, activations: Activations, y: Tensor) -> Controlled:
        with torch.no_grad(), no_autocast(activations.s[0]):
            a = self._in_full_precision(activations)
            return self.controlled(a, self.error(a, y))

    def local_losses(self, activations: Activations, targets: Controlled, y: Tensor) -> dict[int, Tensor]:
        """Linear in A_n: minus the mean of <teaching signal, A_n(r_{n-1})>, times ``local_loss_scale``."""
        losses = {}
        with no_autocast(activations.s[0]):
            for n in range(1, self.network.depth + 1):
                if targets.gradients:
                    trained = [p for p in self.network[n].parameters() if p.requires_grad]
                    pulls = [(p * g).sum() for p, g in zip(trained, targets.gradients[n], strict=True)]
                    losses[n] = sum(pulls, targets.u.new_zeros(()))
                else:
                    drive = self._drive(n, targets.rates[n - 1], activations)
                    losses[n] = -self.options.local_loss_scale * per_sample_dot(targets.teaching[n], drive)
        return losses

    def gradient_scale(self, n: int) -> float:
        """That of the limit of weak control through transposed Jacobians."""
        return self.options.beta * self.options.local_loss_scale / self.alpha

    @property
    def alpha(self) -> float:
        """a of the state of rest, e = a u."""
        return self.options.alpha

    def training_batch(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        feedback_turn, forward_turn = self.turns()
        activations = self.activations(x, gradients=False)
        early = forward_turn and (self.options.schedule == "parallel" or not feedback_turn)
        targets = self.targets(activations, y) if early else None
        scalars = self.feedback_phase(activations, y) if feedback_turn else {}
        if forward_turn:
            targets = self.targets(activations, y) if targets is None else targets
            self.forward_step(activations, targets, y)
            scalars.update(self.settling(targets))
        return activations.logits, scalars

    def settling(self, found: Controlled) -> dict[str, Tensor]:
        """What is logged of the network under control."""
        scalars = {"settling": found.residual.max(), "settled": found.settled.to(found.u).mean()}
        return scalars if found.eigenvalue is None else {**scalars, "control_eigenvalue": found.eigenvalue}

    # --- feedback weights ---------------------------------------------------------------------------------------------

    def turns(self) -> tuple[bool, bool]:
        train_feedback, train_forward = super().turns()
        # Here the two kinds of weights never learn in the same epoch where they have epochs of their own.
        return train_feedback and not (train_forward and self.options.extra_feedback_epochs), train_forward

    @property
    def warming_up(self) -> bool:
        """Whether this batch is one of those at the start that train feedback weights alone."""
        return self.feedback_schedule.warms_up(self.current_epoch, self.batches_done)

    def noise_scale(self, n: int) -> float:
        own = self.warming_up and self.options.warmup_noise
        return self.warmup_noise[n] if own else super().noise_scale(n)

    def _feedback_epoch(self) -> int:
        extra = self.options.extra_feedback_epochs
        if not extra:
            return super()._feedback_epoch()
        # The epoch of the forward weights before so many extra ones trains no feedback weights.
        warm = min(self.current_epoch, self.options.feedback_warmup_epochs)
        rounds, place = divmod(self.current_epoch - warm, 1 + extra)
        return warm + rounds * extra + max(place, 1)

    @property
    def feedback_controller(self) -> Controller:
        """The controller of the simulations that the feedback weights learn from, by the ``feedback_`` options."""
        o = self.options
        times = (o.feedback_time_step, o.feedback_time_steps, o.feedback_voltage_time, o.feedback_apical_time)
        return Controller(o.feedback_alpha, o.feedback_proportional, *times, proactive=o.feedback_proactive)

    def feedback_phase(self, activations: Activations, y: Tensor | None = None) -> dict[str, Tensor]:
        """Train all Q_n, each iteration on the correlations of one simulation; see the class."""
        with self.feedback_timer.measure(self.device), no_autocast(activations.s[0]):
            return self._train_feedback(ControlPhase(self, activations, y))

    def _train_feedback(self, phase: ControlPhase) -> dict[str, Tensor]:
        self._require_all_feedback()
        rates = self.warmup_feedback_lr if self.warming_up else self.feedback_lr
        for n, optimizer in self.feedback_optimizers.items():
            optimizer.param_groups[0]["lr"] = self._rate_factor * rates[n]
        return {f"feedback_loss_{n}": loss for n, loss in self._train_layers(phase).losses.items()}

    @torch.no_grad()
    def correlations(self, activations: Activations, error: Error, draw: Noise) -> dict[int, Tensor]:
        """Gradients of all Q_n, (d_n, K), from one simulation; ``draw`` gives standard normal noise for a layer."""
        controller = self.feedback_controller
        correlate = self.correlator(controller)
        for moment in self.dynamics(activations, error, controller, self.feedback_noise_of(controller, draw)):
            correlate(moment)
        return correlate.means()

    def feedback_noise_of(self, controller: Controller, draw: Noise) -> Noise:
        """White noise: sigma_n sqrt(dt) / tau_A xi in each step."""
        factor = math.sqrt(controller.time_step) / (controller.apical_time or controller.time_step)
        scales = {n: self.noise_scale(n) * factor for n in self.feedback.numbers}
        return lambda n, like: scales[n] * draw(n, like) if scales[n] else torch.zeros_like(like)

    def correlator(self, controller: Controller) -> Correlator:
        """What collects the gradients of the feedback weights from the moments of a simulation."""
        return Correlator({n: self._precision(n) for n in self.feedback.numbers})

    def _precision(self, n: int) -> float:
        return 1 / max(self.noise_scale(n), self.options.noise_floor) ** 2

    def draw(self, n: int, images: int, like: Tensor) -> Tensor:
        """Standard normal noise from the stream of layer n, of the shape of ``like`` for so many images."""
        return self.noise_streams.normal(n, (images, *like.shape[1:]), 1.0, like)

    def _step_through_strategy(self, gradients: Gradients) -> None:
        if limit := self.options.clip_feedback:
            norm = torch.stack([gradient.norm() for values in gradients.values() for gradient in values]).norm()
            # As torch clips.
            factor = (limit / (norm + 1e-6)).clamp(max=1)
            gradients = {n: tuple(factor * gradient for gradient in values) for n, values in gradients.items()}
        super()._step_through_strategy(gradients)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # The others' gradients are clipped already.
        if not (self.options.clip_feedback and any(optimizer is one for one in self.feedback_optimizers.values())):
            super().on_before_optimizer_step(optimizer)

    # --- mistakes -----------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.trainer.world_size > 1:
            self._require_all_feedback()

    def _require_all_feedback(self) -> None:
        trained = any(self.feedback_iterations[n] for n in self.trained_feedback)
        if trained and self.options.clip_feedback and self.division.divides and not self.division.shares_images:
            raise UserError(
                "--clip-feedback: expected --feedback-parallel data, with which each rank has the gradients of all "
                "feedback weights, found layer or hybrid; use data, or 0 and --clip-each alone."
            )

    def _require_steps(self, step: str, voltage: str) -> None:
        o = self.options
        for time in (voltage, voltage.replace("voltage", "apical")):
            if 0 < getattr(o, time, 0) < getattr(o, step):
                raise UserError(
                    f"--{time.replace('_', '-')}: expected at least --{step.replace('_', '-')}, {getattr(o, step)}, "
                    f"found {getattr(o, time)}."
                )


_RISING = (
    *(nn.ELU, nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardtanh),
    *(nn.SELU, nn.CELU, nn.Softsign, nn.LogSigmoid, nn.Hardsigmoid),
)
_MAXIMA = (nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)


def _block(layer: nn.Module) -> Block:
    """A layer in pieces, at the first nonlinearity after its last weights."""
    operations = list(enumerate(layer_operations(layer)))
    weights = [i for i, module in operations if any(True for _ in module.parameters())]
    places = [i for i, module in operations if is_layer_function(module) and i > max(weights, default=-1)]
    if not places:
        return Block(operations, [], [])
    f = places[0]
    affine, function = operations[:f], operations[f : f + 1]
    rest = [(place, module) for place, module in operations[f + 1 :] if not isinstance(module, nn.Identity)]
    # The largest of rising functions is that of the largest: only what wins is then controlled and learns.
    while isinstance(operations[f][1], _RISING) and affine and rest and isinstance(rest[0][1], _MAXIMA):
        affine, rest = [*affine, rest[0]], rest[1:]
    return Block(affine, function, rest)


def _run(operations: Sequence[tuple[int, nn.Module]], x: Tensor, context: Context) -> Tensor:
    """Operations of a layer on other values, with what the forward pass drew and the statistics that it had."""
    for place, module in operations:
        # In place it would overwrite a voltage, or what the weights pull at.
        given = x.clone() if getattr(module, "inplace", False) else x
        x, _ = operation_of(module).forward(module, given, context[place], "noisy")
    return x


def _pulled(drive: Tensor, weights: Sequence[Tensor], teaching: Tensor) -> list[Tensor]:
    """Gradients of <teaching, drive> by the weights; the graph may be used again."""
    return list(torch.autograd.grad(drive, weights, teaching, retain_graph=True))


def _like(images: Tensor, values: Tensor) -> Tensor:
    """Numbers of each image (B,) to be multiplied with ``values`` (B, ...)."""
    return images.view(-1, *[1] * (values.dim() - 1))
