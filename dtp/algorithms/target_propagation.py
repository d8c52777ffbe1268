"""The template of target propagation: local targets through feedback layers that are trained."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dtp import compat
from dtp.algorithms.base import Algorithm
from dtp.algorithms.captured import Capture, CapturedBatches
from dtp.algorithms.feedback_schedule import FeedbackSchedule
from dtp.algorithms.local_targets import Activations, LocalTargets
from dtp.algorithms.optimizers import make_optimizer
from dtp.algorithms.options import TargetPropagationOptions
from dtp.contracts import handed_back, require_layer_numbers, require_loss_value
from dtp.distributed.division import FeedbackPhase
from dtp.distributed.strategy import FeedbackDDPStrategy
from dtp.errors import UserError
from dtp.feedback import (
    ExpectedLDRL,
    FeedbackEngine,
    FeedbackLayer,
    FeedbackNetwork,
    FeedbackProblem,
    FeedbackResult,
    FeedbackSettings,
    NotExpected,
    NotReducible,
    ReducedLDRL,
    derive_feedback,
    forward_with_context,
    require_known_operations,
)
from dtp.feedback.layers import shared_positions
from dtp.feedback.loop import Average, Gradients, Step
from dtp.models.network import Network, initialise
from dtp.models.precision import no_autocast


class TargetPropagation(LocalTargets):
    """Template for rules that train feedback layers, which make the local targets.

    On every batch it computes the activations. The feedback phase follows, in which each feedback layer takes its
    iterations on :meth:`feedback_loss`. Then come targets and the step of the forward weights, as in
    :class:`LocalTargets`. A rule overrides the hooks in which it differs; ``feedback_settings`` says how its feedback
    layers are made.

    ``self.feedback[n]`` is G_n, which maps s_n to s_{n-1}.
    """

    Options = TargetPropagationOptions
    options: TargetPropagationOptions
    feedback_iterations: dict[int, int | float]
    feedback_settings = FeedbackSettings()
    # Whether the feedback loss says nothing without noise, as where it compares the answers to it.
    needs_noise = True
    # Whether a layer's feedback loss looks at no other layer's feedback weights, so that layers can be trained apart.
    independent_feedback = True

    def __init__(self, network: Network, options: TargetPropagationOptions | None = None, seed: int = 0):
        super().__init__(network, options, seed)
        o = self.options
        self.feedback = self.make_feedback()
        if not isinstance(self.feedback, FeedbackNetwork):
            raise handed_back(self, "make_feedback", "a FeedbackNetwork", self.feedback)
        # A layer without weights of its own (a user's pooling layer), or with frozen ones, has feedback, but nothing in
        # it to train.
        numbers = self.trained_feedback = [
            n for n in self.feedback.numbers if any(p.requires_grad for p in self.feedback[n].parameters())
        ]
        self.noise = per_layer("noise", o.noise, numbers)
        if self.needs_noise and not all(scale > 0 for scale in o.noise):
            raise UserError(f"--noise: expected values above 0, found {min(o.noise)}.")
        self.feedback_iterations = per_layer("feedback-iterations", o.feedback_iterations, numbers)
        rates = o.feedback_lr or [self.usual_feedback_lr(n) for n in numbers]
        self.feedback_lr = per_layer("feedback-lr", rates, numbers)
        self.feedback_optimizers: dict[int, Optimizer] = {}
        if o.feedback_optimizer == "sgd" and (o.feedback_beta2 or o.feedback_eps):
            raise UserError(
                "--feedback-beta2, --feedback-eps: expected --feedback-optimizer adam, rmsprop or lee-rmsprop, found "
                "sgd; leave them out."
            )
        if o.extra_feedback_epochs and o.schedule in ("alternating", "warmup"):
            raise UserError(
                f"--extra-feedback-epochs: --schedule {o.schedule} says itself when feedback weights learn alone; use "
                "one of the two."
            )
        if o.schedule == "warmup" and not (o.feedback_warmup or o.feedback_warmup_epochs):
            raise UserError(
                "--schedule warmup: expected --feedback-warmup or --feedback-warmup-epochs above 0, which alone train "
                "the feedback weights then, found 0."
            )
        self.engine = FeedbackEngine(o.engine, o.feedback_memory << 20, stops_early=self.stop_distance > 0)
        self.engine.choose(self.device, self._steps_directly())
        self._check_probes()
        self._rate_factor = 1.0
        self._tracking = numbers if o.feedback_tracking == "kolen-pollack" else []
        weights = self.feedback_weights() if self._tracking else {}
        for n in self._tracking:
            pairs = weights.get(n, [])
            if not pairs or not all(isinstance(feedback, nn.Parameter) for feedback, _ in pairs):
                raise UserError(
                    f"--feedback-tracking: expected feedback weights of the shape of the transposed forward ones, "
                    f"found others in layer {n}; use no."
                )

    def _check_probes(self) -> None:
        for n in self.trained_feedback:
            if not math.isinf(self.feedback_iterations[n]):
                continue
            form, weights = self._expected_or_reason(n), set(map(id, self._feedback_parameters(n)))
            others = [
                m for m in self.trained_feedback if m != n and weights & set(map(id, self._feedback_parameters(m)))
            ]
            if others:
                raise UserError(
                    f"--feedback-iterations: expected whole numbers, found inf for layer {n}, which shares feedback "
                    f"weights with layer {others[0]}, and what is least for both is not known; give a number."
                )
            if isinstance(form, str):
                raise UserError(
                    f"--feedback-iterations: expected whole numbers, found inf for layer {n}, which is not trained in "
                    f"expectation ({form}); give a number."
                )

    def on_fit_start(self) -> None:
        super().on_fit_start()
        # Those of a fit that ended with an error, or of batches before.
        self.engine.forget_graphs()
        # Now it is known on how many devices, and whether the engine that was asked for can be.
        division, ranks = self.division, self.trainer.world_size
        self.engine.choose(self.device, self._steps_directly() and (ranks == 1 or not division.each_iteration))
        if self.stop_distance and ranks > 1 and (division.each_iteration or division.shares_images):
            raise UserError(
                "--feedback-stop-distance: expected one device or --feedback-parallel layer, for ranks that share a "
                f"layer would stop at different iterations, found {ranks}; use 0."
            )
        several = any(self.feedback_iterations[n] > 1 for n in self.trained_feedback)
        if ranks > 1 and not division.shares_images and not self.independent_feedback and several:
            raise UserError(
                f"--feedback-parallel: {type(self).__name__} trains each feedback layer by the others' weights of the "
                "same iteration, which are on other ranks; use data."
            )
        if ranks > 1 and not division.shares_images:
            self._require_separate_layers()
        if ranks > 1 and self.expects and not (division.shares_images and division.each_iteration):
            raise UserError(
                "--probes expected: expected --feedback-parallel data and --feedback-sync step, for devices then meet "
                "once per batch for one small sum, and there is nothing else to divide or to save; leave them out."
            )

    def on_fit_end(self) -> None:
        super().on_fit_end()
        self.engine.forget_graphs()

    def _require_separate_layers(self) -> None:
        """Ranks that train different layers must not both change something."""
        weights = [id(p) for n in self.trained_feedback for p in self._feedback_parameters(n)]
        if len(set(weights)) < len(weights):
            raise UserError(
                "--feedback-parallel: some feedback layers share weights, which only data can divide; use data."
            )
        if overridden(self, Algorithm, "step"):
            raise UserError(
                f"--feedback-parallel: {type(self).__name__} has a step of its own, which would see some layers only; "
                "use data."
            )

    def captured(self, capture: Capture | None = None) -> CapturedBatches:
        self.engine.whole_batches = True
        return super().captured(capture)

    def on_train_start(self) -> None:
        super().on_train_start()
        self.engine.whole_batches = self.captures
        # Where nobody has asked before: a trainer of the user's own.
        trainer = self.trainer
        if not trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue] (Lightning's connectors set it)
            epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
            self.check_length(epochs, trainer.max_steps, trainer.num_training_batches)

    def check_length(self, max_epochs: int, max_steps: int, batches: int | float) -> None:
        in_all = min((limit for limit in (max_epochs * batches, max_steps) if limit > 0), default=math.inf)
        if self.options.feedback_warmup >= in_all:
            raise UserError(
                f"--feedback-warmup: expected fewer than the {in_all} batches of the run, found "
                f"{self.options.feedback_warmup}; the forward weights would never be trained."
            )
        first = self.feedback_schedule.first_epoch
        if 0 < max_epochs <= first:
            raise UserError(
                f"--max-epochs: expected at least {first + 1}, found {max_epochs}; the feedback weights are trained "
                "alone first (--feedback-warmup-epochs, --schedule alternating), and the forward weights would never "
                "be trained."
            )
        alone = self.feedback_schedule.first_batch(batches)
        if math.isinf(alone):
            # Nobody knows how long an epoch is.
            return
        if in_all <= alone:
            flag = "--max-steps" if in_all == max_steps else "--max-epochs"
            raise UserError(
                f"{flag}: expected a run of more than the {alone} batches that train the feedback weights alone before "
                "any other (--feedback-warmup, --feedback-warmup-epochs, --extra-feedback-epochs, --schedule), found "
                f"{in_all}; the forward weights would never be trained."
            )

    # --- hooks: what rules of the family differ in --------------------------------------------------------------------

    def make_feedback(self) -> FeedbackNetwork:
        """The feedback layers, for n = 2..top."""
        o = self.options
        slope = getattr(o, "feedback_slope", "own")
        settings = replace(self.feedback_settings, unpool=o.unpool, gate=o.residual_gate, slope=slope)
        numbers = range(2, self.top + 1)
        for n, layer in enumerate(self.network, start=1):
            require_known_operations(n, layer)
        undone = {n: self.undone_layer(n) for n in range(1, self.network.depth + 1)}
        feedback = derive_feedback(list(undone.values()), self.network.shapes, numbers, settings)
        for n in numbers:
            layer = feedback[n]
            if o.feedback_init == "symmetric":
                assert isinstance(layer, FeedbackLayer)
                layer.copy_transpose(undone[n])
            elif o.feedback_init != "random":
                initialise(layer, o.feedback_init)
        return feedback

    def undone_layer(self, n: int) -> nn.Module:
        """The layer that feedback layer n is made for; another than F_n where :meth:`activation` changes the shape."""
        return self.network[n]

    def feedback_noise(self, n: int, activations: Activations) -> tuple[Tensor, ...]:
        """The noise of one feedback iteration of layer n. Default: noise on the layer's input, (m B, *in).

        It must come from :meth:`draw_noise`, the layer's own stream, and depend on no feedback weights: several
        iterations may be drawn ahead. Samples come first, (m B, ...), for ranks may share the images.
        """
        return (self.draw_noise(n, activations.s[n - 1]),)

    def noise_of_several(self, n: int, activations: Activations, iterations: int) -> tuple[Tensor, ...]:
        """What :meth:`feedback_noise` gives in that many iterations, joined along the samples."""
        draws = [self.feedback_noise(n, activations) for _ in range(iterations)]
        return tuple(torch.cat(parts) for parts in zip(*draws, strict=True))

    def feedback_loss(self, n: int, activations: Activations, noise: tuple[Tensor, ...]) -> Tensor:
        """The loss of feedback layer n, a scalar; called once per iteration, without autocast.

        A mean over the images, so that ranks can share them, and a pure function of its arguments and the weights; only
        those of ``self.feedback[n]`` are stepped on it. ``noise`` is what :meth:`feedback_noise` drew.
        """
        raise UserError(f"{type(self).__name__} does not say what its feedback learns; define feedback_loss in it.")

    def reduced_form(self, n: int) -> ReducedLDRL:
        """The reduced form of :meth:`feedback_loss` for layer n: the same gradients for less work.

        Raises:
            NotReducible: there is none, with the reason; the loss is then evaluated as it is written.
        """
        raise NotReducible("the rule's feedback loss has no reduced form")

    @property
    def expects(self) -> bool:
        """Whether feedback layers are trained on the mean of their loss over the noise, wherever it is known."""
        return False

    def expected_form(self, n: int) -> ExpectedLDRL:
        """The mean of :meth:`feedback_loss` for layer n over its noise.

        Raises:
            NotExpected: it is not known, with the reason; the noise is then drawn.
        """
        raise NotExpected("the mean of the rule's feedback loss is not known")

    @property
    def stop_distance(self) -> float:
        """Distance of the Jacobians at which a feedback layer takes no more iterations in a batch; 0 for never."""
        return 0.0

    def turns(self) -> tuple[bool, bool]:
        """Whether this batch trains the feedback weights, and whether it trains the forward weights.

        Raises:
            UserError: that depends on the epoch, and nobody counts epochs: neither a trainer, nor a subclass with a
                ``current_epoch`` of its own.
        """
        schedule, epoch = self.feedback_schedule, self.current_epoch
        counted = compat.trains(self) or type(self).current_epoch is not Algorithm.current_epoch
        if not counted and (schedule.period > 1 or epoch < schedule.warmup_epochs):
            raise UserError(
                f"{type(self).__name__}: its schedule counts epochs, and without a trainer nobody counts them; give "
                "feedback_warmup_epochs=0, extra_feedback_epochs=0 and another schedule than alternating "
                "(feedback_warmup counts batches), or use a trainer."
            )
        return schedule.turns(epoch, self.batches_done)

    @property
    def feedback_schedule(self) -> FeedbackSchedule:
        """Which epochs and batches train the feedback weights, and which the forward weights."""
        return FeedbackSchedule.of(self.options)

    def lower_target(self, n: int, targets: dict[int, Tensor], activations: Activations) -> Tensor:
        """Target of layer n-1 from the targets above it. Default, the difference rule (Lee et al. 2015, eq. 15):

        t_{n-1} = s_{n-1} + G_n(t_n) - G_n(s_n), with the context of the clean pass.
        """
        a, feedback = activations, self.feedback[n]
        if self.options.engine == "literal" or not isinstance(feedback, FeedbackLayer):
            return a.s[n - 1] + feedback(targets[n], a.contexts[n]) - feedback(a.s[n], a.contexts[n])
        return a.s[n - 1] + feedback.difference(targets[n], a.s[n], a.contexts[n])

    # --- the template -------------------------------------------------------------------------------------------------

    def kept(self, n: int) -> dict[str, Any]:
        feedback = self.feedback[n] if n in self.feedback else None
        if not isinstance(feedback, FeedbackLayer):
            return {}
        return {"slopes": feedback.gated, "affine": feedback.affine_position if self.expects else None}

    def training_batch(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        turns = self.turns()
        if not isinstance(turns, tuple) or len(turns) != 2:
            raise handed_back(self, "turns", "two truth values, (train feedback, train forward)", turns)
        feedback_turn, forward_turn = turns
        activations = self.activations(x, gradients=forward_turn)
        # Parallel: the targets are those of the feedback weights as they were when the batch came in.
        targets = self.targets(activations, y) if self.options.schedule == "parallel" else None
        scalars = self.feedback_phase(activations) if feedback_turn else {}
        if forward_turn:
            if targets is None:
                targets = self.targets(activations, y)
            with self._tracked():
                self.forward_step(activations, targets, y)
        return activations.logits, scalars

    @contextmanager
    def _tracked(self) -> Iterator[None]:
        """Move the feedback weights as the forward weights move within, where ``feedback_tracking`` says so."""
        before = [forward.detach().clone() for _, forward in self._tracked_weights()]
        yield
        with torch.no_grad():
            # Looked up again: forward weights may be computed from others at each look.
            for (feedback, forward), old in zip(self._tracked_weights(), before, strict=True):
                feedback.add_(forward - old)

    def _tracked_weights(self) -> list[tuple[Tensor, Tensor]]:
        weights = self.feedback_weights() if self._tracking else {}
        return [pair for n in self._tracking for pair in weights[n]]

    def kind_of_batch(self) -> Any:
        return self.turns()

    def fixed_numbers(self) -> Any:
        return super().fixed_numbers(), tuple(self.noise_scale(n) for n in self.trained_feedback)

    def feedback_phase(self, activations: Activations) -> dict[str, Tensor]:
        """Train every feedback layer for its iterations. Returns what is logged of it, detached scalars.

        Always in full precision: bfloat16 costs 3 to 60 per cent of error in these gradients.
        """
        with self.feedback_timer.measure(self.device), no_autocast(activations.s[0]):
            result = self._train_layers(RulePhase(self, activations))
        scalars = {f"feedback_loss_{n}": loss for n, loss in result.losses.items()}
        if self.stop_distance > 0:
            scalars.update(
                {f"feedback_steps_{n}": torch.as_tensor(k, dtype=torch.float32) for n, k in result.steps.items()}
            )
        return scalars

    def _train_layers(self, phase: RulePhase) -> FeedbackResult:
        return self.division.train(phase) if self.division.divides else phase.alone()

    def train_feedback_for(
        self, activations: Activations, iterations: Mapping[int, int], rate_factor: float = 1.0
    ) -> dict[str, Tensor]:
        """A :meth:`feedback_phase` of other lengths and rates, for studies of the feedback alone.

        Args:
            activations: of the batch.
            iterations: by layer; layers that are left out stay as they are.
            rate_factor: of the learning rates of all layers, in this phase alone.
        """
        usual, groups = self.feedback_iterations, {n: o.param_groups[0] for n, o in self.feedback_optimizers.items()}
        rates = {n: group["lr"] for n, group in groups.items()}
        self.feedback_iterations = {n: iterations.get(n, 0) for n in self.trained_feedback}
        self._rate_factor = rate_factor
        for n, group in groups.items():
            group["lr"] = rate_factor * self.feedback_lr[n]
        try:
            return self.feedback_phase(activations)
        finally:
            self.feedback_iterations, self._rate_factor = usual, 1.0
            for n, group in groups.items():
                group["lr"] = rates[n]

    def draw_noise(self, n: int, like: Tensor) -> Tensor:
        """Noise for feedback layer n, (m B, *shape) for ``like`` (B, *shape) and m noise samples."""
        shape = (self.options.noise_samples * like.shape[0], *like.shape[1:])
        return self.noise_streams.normal(n, shape, self.noise_scale(n), like)

    def noise_scale(self, n: int) -> float:
        """Standard deviation of the noise of feedback layer n, in this epoch."""
        decay = self.options.noise_decay
        return self.noise[n] / (1 + self._feedback_epoch() / decay) if decay else self.noise[n]

    def _feedback_epoch(self) -> int:
        """Number of this epoch among those that train feedback weights, from 1."""
        # Lee's epoch is two of ours where they alternate.
        warm = min(self.current_epoch, self.options.feedback_warmup_epochs)
        return warm + (self.current_epoch - warm) // (2 if self.feedback_schedule.alternating else 1) + 1

    def feedback_optimizer_list(self) -> list[Optimizer]:
        o = self.options
        require_layer_numbers(self, self.feedback_lr)
        self.feedback_optimizers = {
            n: make_optimizer(
                o.feedback_optimizer,
                # By this name LearningRateMonitor has it.
                [{"params": list(self.feedback[n].parameters()), "name": f"feedback{n}"}],
                self.feedback_lr[n],
                o.feedback_momentum,
                o.feedback_weight_decay,
                o.feedback_beta2,
                o.feedback_eps,
            )
            for n in self.trained_feedback
        }
        return list(self.feedback_optimizers.values())

    def feedback_forms(self) -> dict[int, str]:
        """In words, by layer number: the form in which each feedback layer is trained, and why if it is the literal."""
        forms = {}
        for n in self.trained_feedback:
            form = self._expected_or_reason(n)
            if isinstance(form, str):
                forms[n] = self.engine.describe(n, self._reduced_or_reason(n))
                forms[n] += f"; its noise is drawn: {form}" if self.expects else ""
            else:
                samples = self.options.noise_samples
                drawn = f"; its first term from {samples} noise samples per batch: {form.drawn}" if form.drawn else ""
                forms[n] = f"in expectation{drawn}"
        return forms

    def feedback_weights(self) -> dict[int, list[tuple[Tensor, Tensor]]]:
        pairs = {}
        for n in self.feedback.numbers:
            # A user's own feedback module may not be made of operations.
            layer = self.feedback[n]
            if isinstance(layer, FeedbackLayer):
                pairs[n] = layer.weight_pairs(self.undone_layer(n))
        return {n: found for n, found in pairs.items() if found}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["engines"] = dict(self.engine.used)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        # For the summary, where there is nothing left to train.
        self.engine.used = dict(checkpoint.get("engines", {}))

    def describe(self) -> dict[str, Any]:
        forms = {str(n): form for n, form in self.feedback_forms().items()}
        return {"feedback_engines": {str(n): used for n, used in self.engine.used.items()}, "feedback_forms": forms}

    def _reduced(self, n: int) -> ReducedLDRL | None:
        """The reduced form that layer n is trained in; None where it is trained on the literal loss.

        Made anew for every batch: a layer, its hooks or a scale may have changed.
        """
        form = self._reduced_or_reason(n) if self.engine.name != "literal" else ""
        return form if isinstance(form, ReducedLDRL) else None

    def _expected_or_reason(self, n: int) -> ExpectedLDRL | str:
        if not self.expects:
            return "--probes sampled"
        try:
            return self.expected_form(n)
        except NotExpected as error:
            return str(error)

    def _expected(self, n: int) -> ExpectedLDRL | None:
        form = self._expected_or_reason(n)
        return None if isinstance(form, str) else form

    def _feedback_parameters(self, n: int) -> tuple[Tensor, ...]:
        return tuple(p for p in self.feedback[n].parameters() if p.requires_grad)

    def _reduced_or_reason(self, n: int) -> ReducedLDRL | str:
        try:
            return self.reduced_form(n)
        except NotReducible as error:
            return str(error)

    def _steps_directly(self) -> bool:
        """Whether a feedback step is nothing but its layer's optimizer's, without clipping or own hooks."""
        customised = any(overridden(self, Algorithm, hook) for hook in ("step", "on_before_optimizer_step"))
        own = all(
            [id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
            == [id(p) for p in self._feedback_parameters(n)]
            for n, optimizer in self.feedback_optimizers.items()
        )
        return own and not customised and not self.options.clip_each

    def _step_through_strategy(self, gradients: Gradients) -> None:
        # The division of the phase has averaged what is to be averaged.
        strategy = getattr(compat.trainer_of(self), "strategy", None)
        with strategy.without_averaging() if isinstance(strategy, FeedbackDDPStrategy) else nullcontext():
            for n, values in gradients.items():
                self.step(self.feedback_optimizers[n], list(self._feedback_parameters(n)), list(values))

    def _in_full_precision(self, activations: Activations) -> Activations:
        """The same activations, with outputs recomputed from the same inputs where autocast had rounded them."""
        a = activations
        if all(output.dtype == s.dtype for output, s in zip(a.outputs, a.s, strict=True)):
            return a
        s, contexts = [a.s[0]], [a.contexts[0]]
        outputs = [s[0]]
        with torch.no_grad():
            for n in range(1, self.network.depth + 1):
                output, context = forward_with_context(self.network[n], s[-1], given=a.contexts[n], **self.kept(n))
                outputs.append(output)
                s.append(self.activation(n, output, s[-1]))
                contexts.append(context)
        return Activations(s, contexts, outputs)

    def usual_feedback_lr(self, n: int) -> float:
        """1e-3 / (sigma^2 P), P the positions of s_n that share weights: what the published rates have in common."""
        if self.options.feedback_optimizer != "sgd":
            # Adam divides by the size of the gradients, which the rule for SGD makes up for.
            return 3e-4
        if self.noise[n] == 0:
            raise UserError("--feedback-lr: expected learning rates, for the usual ones are made for a noise above 0.")
        positions = shared_positions(self.network[n], self.network.shapes[n - 1])
        if self.noise[n] < 1e-15:
            # Steps at such a rate would overflow in float32.
            raise UserError(
                f"--noise: expected at least 1e-15 where the usual feedback rate is taken, found {self.noise[n]:g}; "
                "give a larger one, or --feedback-lr."
            )
        return 1e-3 / (self.noise[n] ** 2 * positions)


class RulePhase(FeedbackPhase):
    """The feedback phase of one batch of a rule.

    One device trains it :meth:`alone`; on several a :class:`~dtp.distributed.division.Division` asks each rank for the
    problems of its part.
    """

    def __init__(self, rule: TargetPropagation, activations: Activations):
        self.rule = rule
        self.parameters = {
            n: rule._feedback_parameters(n) for n in rule.trained_feedback if rule.feedback_iterations[n]
        }
        self.layers: Sequence[int] = [n for n, parameters in self.parameters.items() if parameters]
        self.expected = {n: rule._expected(n) for n in self.layers}
        # What a mean over the noise is made of, the forward pass has; differences under noise need more digits.
        known = all(form is not None and not form.drawn for form in self.expected.values())
        self.activations = activations if known else rule._in_full_precision(activations)
        self.images, self.device = len(activations.s[0]), activations.s[0].device
        self.optimizers, self.noise_streams = rule.feedback_optimizers, rule.noise_streams
        if not self.optimizers.keys() >= {*self.layers}:
            raise rule._no_optimizers()

    def alone(self) -> FeedbackResult:
        return self.train(self.problems(self.layers), None)

    def problems(self, layers: Sequence[int], rows: slice | None = None) -> list[FeedbackProblem]:
        rule, whole = self.rule, self.activations
        a = whole if rows is None else whole.select(rows)

        def noise(n: int) -> tuple[Tensor, ...]:
            # Of all images, so that the layer's stream goes on alike however many ranks share it.
            drawn = rule.feedback_noise(n, whole)
            if not isinstance(drawn, tuple) or not all(isinstance(part, Tensor) for part in drawn):
                raise handed_back(rule, "feedback_noise", "a tuple of tensors, such as (noise,)", drawn)
            return drawn if rows is None else tuple(_rows_of_samples(t, self.images, rows) for t in drawn)

        def loss(n: int, noise: tuple[Tensor, ...]) -> Tensor:
            return require_loss_value(rule, "feedback_loss", rule.feedback_loss(n, a, noise))

        return [
            FeedbackProblem(
                n,
                self.parameters[n],
                rule.feedback_iterations[n],
                lambda n=n: noise(n),
                lambda noise, n=n: loss(n, noise),
                rule._reduced(n) if self.expected[n] is None else None,
                (a.s[n - 1], a.s[n], a.contexts[n]),
                rule.stop_distance,
                self.expected[n],
                None if rows is not None else lambda count, n=n: rule.noise_of_several(n, whole, count),
            )
            for n in layers
        ]

    def train(self, problems: Sequence[FeedbackProblem], average: Average | None) -> FeedbackResult:
        return self.rule.engine.train(problems, self.optimizers, self._step(), average)

    def _step(self) -> Step | None:
        # The literal engine is the specification: it also steps as every other optimizer of the project does.
        direct = self.rule._steps_directly() and self.rule.options.engine != "literal"
        return None if direct else self.rule._step_through_strategy

    def costs(self, shared: bool) -> dict[int, float]:
        direct = self._step() is None and not shared
        with self.rule.noise_streams.unchanged():
            return self.rule.engine.costs(self.problems(self.layers), self.optimizers, direct)


def _rows_of_samples(noise: Tensor, images: int, rows: slice) -> Tensor:
    """Some rows of the batch out of noise for all of it, (m B, ...), sample-major."""
    if len(noise) % images:
        raise UserError(
            f"Expected noise with one row for each of {images} images and each sample, found the shape "
            f"{tuple(noise.shape)}; fix the rule's feedback_noise."
        )
    return noise[rows] if len(noise) == images else noise.unflatten(0, (-1, images))[:, rows].flatten(0, 1)


def overridden(rule: Algorithm, base: type[Algorithm], hook: str) -> bool:
    """Whether ``rule`` has another method ``hook`` than ``base``: its class, or the instance itself."""
    return getattr(getattr(rule, hook), "__func__", None) is not getattr(base, hook)


def per_layer(flag: str, values: Sequence[float], numbers: Sequence[int]) -> dict[int, float]:
    """One value for each feedback layer, from one value for all or one each.

    Raises:
        UserError: another number of values.
    """
    if len(values) != 1 and len(values) != len(numbers):
        names = (
            ("layers " if len(numbers) > 1 else "layer ") + ", ".join(map(str, numbers)) if numbers else "there is none"
        )
        raise UserError(
            f"--{flag}: expected {len(numbers)} values, one for each trained feedback layer ({names}), or 1 for all; "
            f"found {len(values)}."
        )
    return dict(zip(numbers, values if len(values) > 1 else list(values) * len(numbers), strict=True))
