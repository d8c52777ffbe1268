"""The template of target propagation: activations, feedback phase, targets, local losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dtp.algorithms.base import Algorithm
from dtp.algorithms.optimizers import make_optimizer
from dtp.algorithms.options import TargetPropagationOptions
from dtp.errors import UserError
from dtp.feedback import (
    Context,
    FeedbackEngine,
    FeedbackLayer,
    FeedbackNetwork,
    FeedbackProblem,
    FeedbackSettings,
    NotReducible,
    ReducedLDRL,
    derive_feedback,
    forward_with_context,
    per_sample_dot,
    require_known_operations,
)
from dtp.models.network import Network
from dtp.precision import full_precision


@dataclass(frozen=True)
class Activations:
    """One forward pass, cut between layers.

    Attributes:
        s: ``s[n]`` for n = 0..N, (B, *shape), detached float32 (or float64); ``s[0]`` is the input.
        contexts: ``contexts[n]`` for n = 1..N (``contexts[0]`` is empty): what layer n hands to its feedback.
        outputs: ``outputs[n]`` equals ``s[n]`` but its graph reaches the weights of layer n, and only those.
    """

    s: list[Tensor]
    contexts: list[Context]
    outputs: list[Tensor]


class TargetPropagation(Algorithm):
    """Template of the rules that learn from local targets.

    On every batch: activations; the feedback phase, in which each feedback layer takes its iterations on
    :meth:`feedback_loss`; targets, from :meth:`first_target` downwards by :meth:`lower_target`; one step of the forward
    weights on the sum of the layers' :meth:`forward_loss`. No gradient crosses a layer boundary. A rule overrides the
    hooks in which it differs; ``feedback_settings`` says how its feedback layers are made.

    Layers are numbered n = 1..N; ``self.network[n]`` is F_n, ``self.feedback[n]`` is G_n, which maps s_n to s_{n-1}.
    """

    Options = TargetPropagationOptions
    feedback_settings = FeedbackSettings()

    def __init__(self, network: Network, options: TargetPropagationOptions | None = None, seed: int = 0):
        super().__init__(network, options, seed)
        o = self.options
        self.feedback = self.make_feedback()
        # A layer without weights of its own (a user's pooling layer), or with frozen ones, has feedback, but nothing in
        # it to train.
        numbers = self.trained_feedback = [
            n for n in self.feedback.numbers if any(p.requires_grad for p in self.feedback[n].parameters())
        ]
        self.noise = per_layer("noise", o.noise, numbers, above=0)
        self.feedback_iterations = per_layer("feedback-iterations", o.feedback_iterations, numbers, least=0)
        rates = o.feedback_lr or [self.usual_feedback_lr(n) for n in numbers]
        self.feedback_lr = per_layer("feedback-lr", rates, numbers, above=0)
        self.feedback_optimizers: dict[int, Optimizer] = {}
        if not o.beta > 0:
            raise UserError(f"--beta: expected a number above 0, found {o.beta}.")
        if o.noise_samples < 1:
            raise UserError(f"--noise-samples: expected at least 1, found {o.noise_samples}.")
        if not 0 <= o.feedback_momentum < 1:
            raise UserError(f"--feedback-momentum: expected a number from 0 to below 1, found {o.feedback_momentum}.")
        if o.feedback_warmup < 0:
            raise UserError(f"--feedback-warmup: expected 0 or more, found {o.feedback_warmup}.")
        if o.feedback_memory < 0:
            raise UserError(f"--feedback-memory: expected 0 or more (MiB), found {o.feedback_memory}.")
        if not o.feedback_weight_decay >= 0:
            raise UserError(f"--feedback-weight-decay: expected 0 or more, found {o.feedback_weight_decay}.")
        self.engine = FeedbackEngine(o.engine, o.feedback_memory << 20, stops_early=self.close > 0)
        self.engine.choose(self.device, self._steps_directly())
        self._batches_alone = 0

    def on_fit_start(self) -> None:
        super().on_fit_start()
        # Now it is known on how many devices, and whether the engine that was asked for can be.
        self.engine.choose(self.device, self._steps_directly())
        if self.close and self.trainer.world_size > 1:
            raise UserError(
                "--feedback-stop-distance: expected one device, for ranks would stop at different iterations, found "
                f"{self.trainer.world_size}; use 0."
            )

    def on_train_start(self) -> None:
        limits = [self.trainer.max_epochs * self.trainer.num_training_batches, self.trainer.max_steps]
        batches = min(limit for limit in limits if limit > 0)
        if self.options.feedback_warmup >= batches:
            raise UserError(
                f"--feedback-warmup: expected fewer than the {batches} batches of the run, found "
                f"{self.options.feedback_warmup}; the forward weights would never be trained."
            )

    # --- hooks: what rules of the family differ in --------------------------------------------------------------------

    @property
    def top(self) -> int:
        """Number of the highest layer that has a target; the layers above it learn the task loss."""
        return self.network.depth

    def make_feedback(self) -> FeedbackNetwork:
        """The feedback layers, for n = 2..top."""
        settings = FeedbackSettings(
            self.feedback_settings.nonlinearity, self.feedback_settings.bias, self.options.unpool
        )
        numbers = range(2, self.top + 1)
        for n, layer in enumerate(self.network, start=1):
            require_known_operations(n, layer)
        feedback = derive_feedback(self.network.layers, self.network.shapes, numbers, settings)
        if self.options.feedback_init == "symmetric":
            for n in numbers:
                feedback[n].copy_transpose(self.network[n])
        return feedback

    def feedback_noise(self, n: int, activations: Activations) -> tuple[Tensor, ...]:
        """The noise of one feedback iteration of layer n. Default: noise on the layer's input, (m B, *in).

        It must come from :meth:`draw_noise`, the layer's own stream, and depend on no feedback weights: several
        iterations may be drawn ahead.
        """
        return (self.draw_noise(n, activations.s[n - 1]),)

    def feedback_loss(self, n: int, activations: Activations, noise: tuple[Tensor, ...]) -> Tensor:
        """What feedback layer n is trained on, a scalar; called once per iteration, without autocast.

        A pure function of its arguments and the weights; only those of ``self.feedback[n]`` are stepped on it.
        ``noise`` is what :meth:`feedback_noise` drew.
        """
        raise UserError(f"{type(self).__name__} does not say what its feedback learns; define feedback_loss in it.")

    def reduced_form(self, n: int) -> ReducedLDRL:
        """The reduced form of :meth:`feedback_loss` for layer n: the same gradients for less work.

        Raises:
            NotReducible: there is none, with the reason; the loss is then evaluated as it is written.
        """
        raise NotReducible("the rule's feedback loss has no reduced form")

    @property
    def close(self) -> float:
        """Distance of the Jacobians at which a feedback layer takes no more iterations in a batch; 0 for never."""
        return 0.0

    def turns(self) -> tuple[bool, bool]:
        """Whether this batch trains the feedback weights, and whether it trains the forward weights."""
        done = self._batches_alone if self._trainer is None else self.global_step
        if done < self.options.feedback_warmup:
            return True, False
        alternating = self.options.schedule == "alternating"
        return not alternating or self.current_epoch % 2 == 0, not alternating or self.current_epoch % 2 == 1

    def first_target(self, activations: Activations, y: Tensor) -> Tensor:
        """Target of layer :attr:`top`, (B, *shape). Default: t_N = s_N - beta d loss / d s_N, loss per sample."""
        s = activations.s[self.network.depth]
        return s - self.options.beta * self.loss_gradient(s, y)

    def lower_target(self, n: int, targets: dict[int, Tensor], activations: Activations) -> Tensor:
        """Target of layer n-1 from the targets above it. Default, the difference rule (Lee et al. 2015, eq. 15):

        t_{n-1} = s_{n-1} + G_n(t_n) - G_n(s_n), with the context of the clean pass.
        """
        a, feedback = activations, self.feedback[n]
        if self.options.engine == "literal" or not isinstance(feedback, FeedbackLayer):
            return a.s[n - 1] + feedback(targets[n], a.contexts[n]) - feedback(a.s[n], a.contexts[n])
        return a.s[n - 1] + feedback.difference(targets[n], a.s[n], a.contexts[n])

    def forward_loss(self, n: int, output: Tensor, target: Tensor) -> Tensor:
        """Local loss of layer n: half the squared distance to its target, summed over features, mean over samples.

        ``output`` (B, *shape) carries gradients to the weights of layer n; ``target`` is constant.
        """
        difference = output - target
        return 0.5 * per_sample_dot(difference, difference)

    # --- the template -------------------------------------------------------------------------------------------------

    def training_batch(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        feedback_turn, forward_turn = self.turns()
        activations = self.activations(x, gradients=forward_turn)
        # Parallel: the targets are those of the feedback weights as they were when the batch came in.
        targets = self.targets(activations, y) if self.options.schedule == "parallel" else None
        scalars = self.feedback_phase(activations) if feedback_turn else {}
        if forward_turn:
            if targets is None:
                targets = self.targets(activations, y)
            gradients = self._local_gradients(activations, targets, y)
            self.step(self.forward_optimizer, self.forward_parameters, gradients)
        # Without a trainer nobody else counts them.
        self._batches_alone += 1
        return activations.s[-1], scalars

    def forward_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        activations = self.activations(x)
        return activations.s[-1], self._local_gradients(activations, self.targets(activations, y), y)

    def activations(self, x: Tensor, gradients: bool = True) -> Activations:
        """One forward pass in which every layer starts from a detached input."""
        s, contexts, outputs = [full_precision(x.detach())], [Context()], [x.detach()]
        with torch.set_grad_enabled(gradients):
            for n in range(1, self.network.depth + 1):
                output, context = forward_with_context(self.network[n], s[-1])
                outputs.append(output)
                contexts.append(context)
                s.append(full_precision(output.detach()))
        return Activations(s, contexts, outputs)

    def feedback_phase(self, activations: Activations) -> dict[str, Tensor]:
        """Train every feedback layer for its iterations. Returns what is logged of it, detached scalars.

        Always in full precision: bfloat16 costs 3 to 60 per cent of error in these gradients.
        """
        with self.feedback_timer.measure(self.device), _no_autocast(activations.s[0]):
            activations = self._in_full_precision(activations)
            a = activations
            problems = [
                FeedbackProblem(
                    n,
                    self._feedback_parameters(n),
                    self.feedback_iterations[n],
                    lambda n=n: self.feedback_noise(n, a),
                    lambda noise, n=n: self.feedback_loss(n, a, noise),
                    self._reduced(n),
                    (a.s[n - 1], a.s[n], a.contexts[n]),
                    self.close,
                )
                for n in self.trained_feedback
                if self._feedback_parameters(n)
            ]
            # The literal engine is the specification: it also steps as every other optimizer of the project does.
            direct = self._steps_directly() and self.options.engine != "literal"
            step = None if direct else self._step_through_strategy
            result = self.engine.train(problems, self.feedback_optimizers, step)
        scalars = {f"feedback_loss_{n}": loss for n, loss in result.losses.items()}
        if self.close > 0:
            scalars.update({f"feedback_steps_{n}": torch.tensor(float(k)) for n, k in result.steps.items()})
        return scalars

    def targets(self, activations: Activations, y: Tensor) -> dict[int, Tensor]:
        """Targets t_n by layer number, (B, *shape), constants."""
        if self.top < 1:
            return {}
        with torch.no_grad(), _no_autocast(activations.s[0]):
            targets = {self.top: self.first_target(activations, y)}
            for n in range(self.top, 1, -1):
                targets[n - 1] = self.lower_target(n, targets, activations)
        return targets

    def local_losses(self, activations: Activations, targets: dict[int, Tensor], y: Tensor) -> dict[int, Tensor]:
        """The local loss of each layer n = 1..N, scalars whose graphs are disjoint."""
        losses = {}
        for n in range(1, self.network.depth + 1):
            output = full_precision(activations.outputs[n])
            if self._learns_task(n):
                losses[n] = self.task_loss(output, y)
            else:
                if targets[n].shape != output.shape:
                    # Broadcasting would go on silently, with another rule than was meant.
                    raise UserError(
                        f"The target of layer {n} has shape {tuple(targets[n].shape)}; expected that of its "
                        f"activation, {tuple(output.shape)}. Mend {type(self).__name__}."
                    )
                losses[n] = self.forward_loss(n, output, targets[n])
        return losses

    def gradient_scale(self, n: int) -> float:
        return 1.0 if self._learns_task(n) else self.options.beta

    def draw_noise(self, n: int, like: Tensor) -> Tensor:
        """Noise for feedback layer n, (m B, *shape) for ``like`` (B, *shape) and m noise samples."""
        shape = (self.options.noise_samples * like.shape[0], *like.shape[1:])
        return self.noise_streams.normal(n, shape, self.noise_scale(n), like)

    def noise_scale(self, n: int) -> float:
        """Standard deviation of the noise of feedback layer n."""
        return self.noise[n]

    def loss_gradient(self, s: Tensor, y: Tensor, function=None) -> Tensor:
        """Gradient of each sample's own task loss with respect to ``s`` (B, *shape), not divided by B.

        ``function`` maps ``s`` to the output; None where ``s`` is the output. A constant.
        """
        s = s.detach().requires_grad_()
        with torch.enable_grad():
            loss = self.task_loss(s if function is None else function(s), y, reduction="sum")
        return torch.autograd.grad(loss, s)[0]

    def feedback_optimizer_list(self) -> list[Optimizer]:
        o = self.options
        self.feedback_optimizers = {
            n: make_optimizer(
                o.feedback_optimizer,
                self.feedback[n].parameters(),
                self.feedback_lr[n],
                o.feedback_momentum,
                o.feedback_weight_decay,
            )
            for n in self.trained_feedback
        }
        return list(self.feedback_optimizers.values())

    def _learns_task(self, n: int) -> bool:
        return n == self.network.depth and (n > self.top or self.options.output_loss == "task")

    def _local_gradients(self, activations: Activations, targets: dict[int, Tensor], y: Tensor) -> list[Tensor]:
        total = sum(self.local_losses(activations, targets, y).values())
        return list(torch.autograd.grad(total, self.forward_parameters))

    def feedback_forms(self) -> dict[int, str]:
        """In words, by layer number: the form in which each feedback layer is trained, and why if it is the literal."""
        return {n: self.engine.describe(n, self._reduced_or_reason(n)) for n in self.trained_feedback}

    def describe(self) -> dict[str, Any]:
        forms = {str(n): form for n, form in self.feedback_forms().items()}
        return {"feedback_engines": {str(n): used for n, used in self.engine.used.items()}, "feedback_forms": forms}

    def _reduced(self, n: int) -> ReducedLDRL | None:
        """The reduced form that layer n is trained in; None where it is trained on the literal loss.

        Made anew for every batch: a layer, its hooks or a scale may have changed.
        """
        form = self._reduced_or_reason(n) if self.engine.name != "literal" else ""
        return form if isinstance(form, ReducedLDRL) else None

    def _feedback_parameters(self, n: int) -> tuple[Tensor, ...]:
        return tuple(p for p in self.feedback[n].parameters() if p.requires_grad)

    def _reduced_or_reason(self, n: int) -> ReducedLDRL | str:
        try:
            return self.reduced_form(n)
        except NotReducible as error:
            return str(error)

    def _steps_directly(self) -> bool:
        """Whether a feedback step is nothing but its layer's optimizer's: one device, and no hook of the rule's own."""
        customised = any(overridden(self, Algorithm, hook) for hook in ("step", "on_before_optimizer_step"))
        own = all(
            [id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
            == [id(p) for p in self._feedback_parameters(n)]
            for n, optimizer in self.feedback_optimizers.items()
        )
        return own and not customised and (self._trainer is None or self.trainer.world_size == 1)

    def _step_through_strategy(self, gradients: dict[int, tuple[Tensor, ...]]) -> None:
        for n, values in gradients.items():
            self.step(self.feedback_optimizers[n], list(self._feedback_parameters(n)), list(values))

    def _in_full_precision(self, activations: Activations) -> Activations:
        """The same activations, with outputs recomputed from the same inputs where autocast had rounded them."""
        a = activations
        if a.outputs[-1].dtype == a.s[-1].dtype:
            return a
        s, contexts = [a.s[0]], [a.contexts[0]]
        with torch.no_grad():
            for n in range(1, self.network.depth + 1):
                output, context = forward_with_context(self.network[n], s[-1], given=a.contexts[n])
                s.append(output)
                contexts.append(context)
        return Activations(s, contexts, s)

    def usual_feedback_lr(self, n: int) -> float:
        """1e-3 / (sigma^2 P), P the spatial positions of s_n: what the tuned rates of published networks share."""
        if self.options.feedback_optimizer != "sgd":
            # Adam divides by the size of the gradients, which the rule for SGD makes up for.
            return 3e-4
        positions = self.network.shapes[n][1:].numel()
        return 1e-3 / (self.noise[n] ** 2 * positions)


def overridden(rule: Algorithm, base: type[Algorithm], hook: str) -> bool:
    """Whether ``rule`` has another method ``hook`` than ``base``: its class, or the instance itself."""
    return getattr(getattr(rule, hook), "__func__", None) is not getattr(base, hook)


def per_layer(
    flag: str, values: Sequence[float], numbers: Sequence[int], least: float | None = None, above: float | None = None
) -> dict[int, float]:
    """One value for each feedback layer, from one value for all or one each.

    Raises:
        UserError: another number of values, or a value out of range.
    """
    if len(values) != 1 and len(values) != len(numbers):
        names = (
            ("layers " if len(numbers) > 1 else "layer ") + ", ".join(map(str, numbers)) if numbers else "there is none"
        )
        raise UserError(
            f"--{flag}: expected {len(numbers)} values, one for each trained feedback layer ({names}), or 1 for all; "
            f"found {len(values)}."
        )
    for value in values:
        if (least is not None and not value >= least) or (above is not None and not value > above):
            bound = f"at least {least}" if least is not None else f"above {above}"
            raise UserError(f"--{flag}: expected values {bound}, found {value}.")
        if not math.isfinite(value):
            raise UserError(f"--{flag}: expected finite values, found {value}.")
    return dict(zip(numbers, values if len(values) > 1 else list(values) * len(numbers), strict=True))


def _no_autocast(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)
