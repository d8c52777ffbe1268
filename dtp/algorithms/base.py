"""The base of all learning rules: optimizers, training, counters and checkpoints. A rule adds only its maths."""

from __future__ import annotations

import functools
import inspect
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar, cast

import torch
from lightning.pytorch.callbacks import ModelPruning, StochasticWeightAveraging
from lightning.pytorch.utilities.parsing import AttributeDict
from torch import Size, Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, Optimizer
from torch.utils.data import DistributedSampler

from dtp import compat
from dtp.algorithms.captured import Capture, CapturedBatches, repeats
from dtp.algorithms.epoch import EpochTotals
from dtp.algorithms.hooks import complete_hooks, warn_of_misspelt
from dtp.algorithms.making import RuleType
from dtp.algorithms.metrics import as_vector
from dtp.algorithms.optimizers import check_rates, layer_groups, make_optimizer, make_schedule
from dtp.algorithms.options import AlgorithmOptions
from dtp.algorithms.schedules import Schedule, epochs_to_come, parsed
from dtp.algorithms.scores import TRAINING
from dtp.algorithms.task_module import TaskModule
from dtp.algorithms.timing import PhaseTimer
from dtp.contracts import (
    handed_back,
    is_number,
    no_gradients,
    require_loss_value,
    require_mapping,
    shown,
)
from dtp.data.sampler import TrainingBatches
from dtp.data.shares import training_share
from dtp.distributed.averaging import average_tensors, same_on_all_ranks
from dtp.distributed.division import Division
from dtp.distributed.strategy import FeedbackDDPStrategy
from dtp.errors import Diverged, UserError
from dtp.feedback.steppers import in_one_pass, is_plain, set_gradients
from dtp.fields import PRECISIONS, as_saved, require_precision
from dtp.models.modules import Standardise
from dtp.models.network import Network
from dtp.models.precision import full_precision
from dtp.run.loading import DESCRIPTION, described, load_rule

_UNDIVIDED = Division()


_Method = TypeVar("_Method", bound=Callable[..., Any])


def _counted(learn: _Method) -> _Method:
    """A ``training_batch`` after which the rule has learned from one batch more, whether or not it calls super()'s."""
    # One with other arguments is the user's own, who knows what they are.
    is_usual = list(inspect.signature(learn).parameters)[1:] == ["x", "y"]

    @functools.wraps(learn)
    def counted(self: Algorithm, *args: Any, **kwargs: Any) -> Any:
        if self._within_batch:
            return learn(self, *args, **kwargs)
        if is_usual and not self._within_step:
            self._require_batch_by_hand(*args, **kwargs)
        self._within_batch = True
        try:
            found = learn(self, *args, **kwargs)
        finally:
            self._within_batch = False
        self.batches_by_hand += 1
        return found

    cast(Any, counted).counts = True
    return cast(_Method, counted)


def _require_samples(x: Tensor) -> None:
    if not len(x):
        raise UserError("A batch to learn from must have samples, found none; leave it out.")


def _next_one(cls: type, inherited: _Method) -> _Method:
    """The ``training_batch`` after that of ``cls``: ``inherited``, or of a class that a subclass has beside ``cls``."""

    @functools.wraps(inherited)
    def learn(self: Algorithm, *args: Any, **kwargs: Any) -> Any:
        return cast(Any, super(cls, self)).training_batch(*args, **kwargs)

    return cast(_Method, learn)


class Algorithm(TaskModule, metaclass=RuleType):
    """A learning rule: how a network's weights change on a batch.

    A subclass implements :meth:`forward_gradients`. With more than one phase per batch it also implements
    :meth:`training_batch`. Everything else (devices, precision, schedules, metrics, resuming) works for all rules. It
    is a ``LightningModule`` for any ``lightning.Trainer``; ``docs/lightning.md`` lists which features of Lightning
    work.

    Args:
        network: the forward network. Whoever calls the class may give other modules, and options by keyword
            (:class:`~dtp.algorithms.making.RuleType`).
        options: an instance of the dataclass ``Options``; its fields are the rule's command-line options.
        seed: of the noise streams.
    """

    Options = AlgorithmOptions
    # Numbers of the layers whose feedback has weights that are trained in a phase of their own.
    trained_feedback: Sequence[int] = ()
    # Why a batch reads values, for which the host must wait for the device; empty where it reads none.
    waits = ""
    # Whether batches may be captured as CUDA graphs, where they are fixed sequences of operations.
    capture_batches = False
    # Whether it learns from gradients that autograd takes, and so from nothing where they are switched off.
    uses_autograd = True
    # Whether :meth:`training_batch` is under way, and whether :meth:`training_step` of a trainer's batch is.
    _within_batch = _within_step = False
    # How the training of feedback weights is divided where no trainer says so.
    _division_alone = _UNDIVIDED

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        learn = inspect.getattr_static(cls, "training_batch")
        # One of a class beside the rules, too. What cannot be called as a method is refused elsewhere.
        if inspect.isfunction(learn) and not hasattr(learn, "counts"):
            cls.training_batch = _counted(learn if "training_batch" in vars(cls) else _next_one(cls, learn))
        if "configure_optimizers" in vars(cls):
            cls.configure_optimizers = _completed(cls.configure_optimizers)
        complete_hooks(cls)
        warn_of_misspelt(cls)

    def __init__(self, network: Network, options: AlgorithmOptions | None = None, seed: int = 0):
        super().__init__(network, options if options is not None else self.Options(), seed)
        # Hooks of ours that have run since a user's own of that name began.
        self._hooks_run: set[str] = set()
        # Rules step several optimizers several times per batch.
        self.automatic_optimization = False
        check_rates(self.options, list(self._trained_layers()))
        self.feedback_timer = PhaseTimer()
        self.forward_optimizer: Optimizer | None = None
        # All that step the forward weights; more than one where a user gives several.
        self._forward_optimizers: list[Optimizer] = []
        self._made_optimizers: list[Optimizer] = []
        self._schedules: list[Schedule] = []
        self._captured = CapturedBatches(self._learn, generators=self.noise_streams.generators)
        self.captures = False
        self._totals = EpochTotals(self.feedback_timer)
        # Ranks, and how many parts of every batch they have.
        self._ranks = self._shares = 1
        # How many batches were learned from, where no trainer is at work to count them (:func:`_counted`).
        self.batches_by_hand = 0
        # The last epoch after which the schedules that watch no metric were stepped.
        self._stepped_epoch = -1
        # Of a checkpoint within an epoch, what was added up in it until then.
        self._begun: dict[str, Any] | None = None
        for name, value in network.named_parameters():
            if value.dtype in (torch.float16, torch.bfloat16):
                raise UserError(
                    f"Expected weights in float32 or float64, found {name} in {str(value.dtype)[6:]}; call "
                    '.float(), and give Trainer(precision="bf16-mixed") for passes in bfloat16.'
                )
        # For checkpoints: load_from_checkpoint makes the rule of them.
        values, others = as_saved(self.options)
        values |= {name: str(getattr(self.options, name)) for name in others}
        self.save_hyperparameters({"options": values, "seed": seed})

    @property
    def hparams_initial(self) -> AttributeDict:
        """The hyper-parameters for loggers: the rule and its options, flat, and what a subclass has saved."""
        saved = dict(super().hparams_initial)
        return AttributeDict({"rule": type(self).__name__, **saved.pop("options", {}), **saved})

    # --- the rule ---------------------------------------------------------------------------------------------------

    def forward_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The gradients that the rule gives the forward weights on this batch.

        Changes no weight, ``.grad`` or optimizer state.

        Args:
            x: images (B, C, H, W).
            y: labels (B,) int64, or what else the task has for goals.

        Returns:
            The logits (B, classes), detached, and one gradient for each of :attr:`forward_parameters`, in their order.
        """
        raise UserError(
            f"{type(self).__name__} has no forward_gradients, on which training_batch of Algorithm steps, and whose "
            "angles to backprop's are measured; define it, or a training_batch that does without it, with "
            "--diagnostics-every 0."
        )

    @_counted
    def training_batch(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Learn from one batch: one step on :meth:`forward_gradients`.

        Returns:
            The logits before the step (B, classes), detached, and scalars to be averaged and logged as ``train/NAME``.
        """
        logits, gradients = self.checked_gradients(x, y)
        self.step(self.forward_optimizer, self.forward_parameters, gradients)
        return logits, {}

    def checked_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What :meth:`forward_gradients` returns.

        Raises:
            UserError: that is something else than it must be.
        """
        found = self.forward_gradients(x, y)
        if not isinstance(found, tuple | list) or len(found) != 2 or not isinstance(found[1], tuple | list):
            raise handed_back(self, "forward_gradients", "the logits and a list of gradients", found)
        logits, gradients = self._require_logits(self, "forward_gradients", found[0], x), list(found[1])
        self._require_gradients(self.forward_parameters, gradients)
        return logits, gradients

    def gradient_scale(self, n: int) -> float:
        """Factor between this rule's forward gradient of layer n and the backprop gradient that it approximates."""
        return 1.0

    def feedback_weights(self) -> dict[int, list[tuple[Tensor, Tensor]]]:
        """By layer, feedback weights and the transposed forward weights that they replace, in the same shape.

        Empty for rules without such weights. Angles between them are logged.
        """
        return {}

    def describe(self) -> dict[str, Any]:
        """What the summary of the run says about how the rule was computed."""
        return {}

    def description(self) -> dict[str, Any]:
        """What :meth:`describe` returns.

        Raises:
            UserError: that cannot be written into the summary.
        """
        found = self.describe()
        try:
            json.dumps(found)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"describe of {type(self).__name__} must return what JSON has (numbers, words, lists, dictionaries), "
                f"found something else ({error}); fix {type(self).__name__}."
            ) from error
        if not isinstance(found, dict):
            raise handed_back(self, "describe", "a dictionary", found)
        return found

    @property
    def forward_parameters(self) -> list[Tensor]:
        """The forward weights that are trained, in the order of the layers; frozen ones are left out."""
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    # --- optimizers -------------------------------------------------------------------------------------------------

    def feedback_optimizer_list(self) -> list[Optimizer]:
        """Optimizers other than the forward one, made anew; for rules that train more than the forward weights."""
        return []

    def configure_optimizers(self):
        o = self.options
        if not self.forward_parameters:
            raise UserError(
                f"Expected a {type(self.network).__name__} with weights to train, found all of them frozen "
                "(requires_grad is False); set requires_grad_(True) on those of at least one layer."
            )
        groups = self.forward_groups()
        self.forward_optimizer = self._optimizer_of(groups, (o.layer_lr or [o.lr])[0])
        # One that has come to its end stays with the rule, and counts no epochs of a loop of the user's own.
        trainer = compat.trainer_of(self) if compat.trains(self) else None
        rate = make_schedule(self.forward_optimizer, o, epochs_to_come(trainer, o))
        return self._with_others([self.forward_optimizer], [Schedule(rate, name="lr/forward")])

    def _optimizer_of(self, groups: list[Any], lr: float) -> Optimizer:
        """That of the options, for weights or groups of them; ``lr`` where a group has no rate of its own."""
        o = self.options
        return make_optimizer(o.optimizer, groups, lr, o.momentum, o.weight_decay, o.beta2, (o.eps or [0.0])[0])

    def _with_others(self, forward: list[Optimizer], schedules: list[Schedule]) -> tuple[list[Optimizer], list[dict]]:
        """For Lightning: the optimizers of the forward weights, those of the rule's other weights, and schedules."""
        # Before the others are made: a rule may have to know which weights are stepped by those.
        self.forward_optimizer, self._forward_optimizers = forward[0], forward
        others = self.feedback_optimizer_list()
        if not isinstance(others, list) or not all(isinstance(other, Optimizer) for other in others):
            raise handed_back(self, "feedback_optimizer_list", "a list of optimizers", others)
        self._made_optimizers, self._schedules = [*forward, *others], schedules
        return self._made_optimizers, [schedule.for_lightning() for schedule in schedules]

    def _complete(self, found: Any) -> tuple[list[Optimizer], list[dict]]:
        """What a user's ``configure_optimizers`` returned, with the optimizers that the rule itself needs."""
        optimizers, schedules = parsed(type(self).__name__, found, self._schedules)
        made = [optimizer for optimizer in optimizers if any(optimizer is known for known in self._made_optimizers)]
        if made and len(made) == len(self._made_optimizers) == len(optimizers):
            # Ours, perhaps with changed groups or another schedule.
            self._schedules = schedules
            return optimizers, [schedule.for_lightning() for schedule in self._schedules]
        trained = {id(parameter) for parameter in self.forward_parameters}
        for optimizer in optimizers:
            if not trained & {id(p) for group in optimizer.param_groups for p in group["params"]}:
                raise UserError(
                    f"configure_optimizers of {type(self).__name__} returns an optimizer ({type(optimizer).__name__}) "
                    "without any weight of the network; the rule makes those of its feedback weights by itself "
                    "(feedback_optimizer_list), so leave it out."
                )
        wanted = self.options.layer_lr
        rates = {group.get("initial_lr", group["lr"]) for optimizer in optimizers for group in optimizer.param_groups}
        if wanted and len(rates) == 1 and rates != set(wanted):
            raise UserError(
                f"--layer-lr: expected none beside configure_optimizers of {type(self).__name__}, which gives all "
                f"weights the rate {rates.pop():g}, found {wanted}; leave it out, or make the optimizer of "
                "self.forward_groups(), which have these rates."
            )
        for number, schedule in enumerate(schedules):
            schedule.name = schedule.name or f"lr/forward{number + 1 if len(schedules) > 1 else ''}"
        return self._with_others(optimizers, schedules)

    def forward_groups(self) -> list[Any]:
        """What the forward optimizer steps: weights, or groups of them with rates and epsilons of their own."""
        o, layers = self.options, self._trained_layers()
        # Layers may have been frozen since the rule was made, and values by layer would go to others.
        check_rates(o, list(layers))
        groups: list[Any] = [*layer_groups(layers, o.layer_lr, o.eps)]
        of_layers = {id(p) for parameters in layers.values() for p in parameters}
        # Those of a network with a pass of its own, which may have weights beside its layers.
        beside = [p for p in self.forward_parameters if id(p) not in of_layers]
        if beside and groups and isinstance(groups[0], dict):
            beside = [{"params": beside, "lr": o.lr, "name": "beside"}]
        return groups + beside

    def _trained_layers(self) -> dict[int, list[Tensor]]:
        """The trained forward weights by layer, where there are any."""
        seen: set[int] = set()
        layers: dict[int, list[Tensor]] = {}
        for n, layer in enumerate(self.network, 1):
            # A weight that layers share is the first one's.
            layers[n] = [p for p in layer.parameters() if p.requires_grad and id(p) not in seen]
            seen.update(map(id, layers[n]))
        return {n: parameters for n, parameters in layers.items() if parameters}

    @property
    def batches_done(self) -> int:
        """How many batches were learned from before this one."""
        return self.global_step if compat.trains(self) else self.batches_by_hand

    def _no_optimizers(self) -> UserError:
        """The mistake of learning without a trainer before the optimizers are made."""
        return UserError(
            f"{type(self).__name__} has no optimizers yet; call its configure_optimizers() before it learns without a "
            "trainer."
        )

    def step(self, optimizer: Optimizer | None, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """One step of ``optimizer`` on ``gradients``; afterwards no parameter has a ``.grad``.

        The step goes through the strategy, which averages the gradients over ranks and applies the precision plugin.
        It does not go through Lightning's optimizer wrapper, which would count it as a global step.

        Raises:
            UserError: the optimizers are not made yet, or the gradients are not those of the parameters.
        """
        if optimizer is None:
            raise self._no_optimizers()
        self._require_gradients(parameters, gradients)
        optimizers = self._forward_optimizers if optimizer is self.forward_optimizer else [optimizer]
        strategy = getattr(compat.trainer_of(self), "strategy", None)
        # Those of an embedding may be sparse, which no fused step takes.
        one_pass = self._gradients_stay() and not any(gradient.is_sparse for gradient in gradients)
        with in_one_pass(optimizers if one_pass else []):
            set_gradients(optimizers, parameters, gradients)
            # Clipping looks at the gradients of all optimizers before the first one's step.
            with strategy.averaged(optimizers) if isinstance(strategy, FeedbackDDPStrategy) else nullcontext():
                for each in optimizers:
                    if strategy is None:
                        self.on_before_optimizer_step(each)
                        each.step()
                    else:
                        strategy.optimizer_step(each, lambda: None)
        for parameter in parameters:
            parameter.grad = None

    def _gradients_stay(self) -> bool:
        """Whether no hook of others could put gradients of another layout in place of those that a step is given."""
        parts = [self, *getattr(compat.trainer_of(self), "callbacks", [])]
        hooks = [part.on_before_optimizer_step for part in parts]
        return all(hook.__module__.partition(".")[0] in ("dtp", "lightning") for hook in hooks)

    def _require_gradients(self, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        shapes = [g.shape if isinstance(g, Tensor) else shown(g) for g in gradients]
        if shapes != [p.shape for p in parameters]:
            found = ", ".join(str(tuple(shape)) if isinstance(shape, Size) else shape for shape in shapes)
            raise UserError(
                f"Expected one gradient of the shape of each of {len(parameters)} weights, "
                f"{', '.join(str(tuple(p.shape)) for p in parameters)}, found {found or 'none'}; fix "
                f"{type(self).__name__}."
            )

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # Here the gradients are already averaged over ranks.
        # All forward weights at once, so before the first of their optimizers.
        if self.options.clip_norm > 0 and optimizer is self.forward_optimizer:
            torch.nn.utils.clip_grad_norm_(self.forward_parameters, self.options.clip_norm)
        if self.options.clip_each > 0:
            for parameter in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
                torch.nn.utils.clip_grad_norm_([parameter], self.options.clip_each)

    # --- training, as Lightning calls it ----------------------------------------------------------------------------

    @property
    def division(self) -> Division:
        """How the ranks divide the training of feedback weights."""
        trainer = compat.trainer_of(self)
        return self._division_alone if trainer is None else getattr(trainer.strategy, "division", _UNDIVIDED)

    def divide_by(self, division: Division) -> None:
        """Divide the training of feedback weights in this way without a trainer, whose strategy would say how."""
        self._division_alone = division

    def setup(self, stage: str) -> None:
        """Before anything runs, in every stage.

        Raises:
            UserError: a precision in which the rules do not hold.
        """
        if str(self.trainer.precision) not in PRECISIONS.values():
            require_precision(str(self.trainer.precision))

    def on_fit_start(self) -> None:
        if self.forward_optimizer is None or self.forward_optimizer not in self.trainer.optimizers:
            raise UserError(
                f"configure_optimizers of {type(self).__name__} must make self.forward_optimizer and return it, found "
                "none; have it return super().configure_optimizers()."
            )
        strategy = self.trainer.strategy
        if self.trainer.world_size > 1:
            if not isinstance(strategy, FeedbackDDPStrategy):
                raise UserError(
                    f"Expected the strategy feedback-ddp on several devices, found {type(strategy).__name__}, under "
                    'which ranks would drift apart; give Trainer(strategy="feedback-ddp").'
                )
            if not self.division.shares_images and not self.trained_feedback:
                raise UserError(
                    f"--feedback-parallel {strategy.feedback_parallel}: {type(self).__name__} has no feedback layers "
                    "that are trained in a phase of their own, which could be divided; use data."
                )
        self.division.begin()
        self._ranks = self.trainer.world_size
        # Ranks that see the same images draw the same noise.
        self.noise_streams.rank, self._shares = training_share(self.trainer)

    def check_length(self, max_epochs: int, max_steps: int, batches: int | float) -> None:
        """Raise UserError if a run of that length would not train what it should. Called before there is a run folder.

        Args:
            max_epochs, max_steps: as the trainer's; below 0 for no such limit.
            batches: of an epoch; ``inf`` where nobody knows.
        """

    def on_train_start(self) -> None:
        self._require_callbacks_that_fit()
        # Before the first batch, which diagnostics see first.
        batches = getattr(self.trainer.train_dataloader, "batch_sampler", None)
        sampler = getattr(self.trainer.train_dataloader, "sampler", None)
        if self._ranks > self._shares and isinstance(sampler, DistributedSampler) and sampler.num_replicas > 1:
            raise UserError(
                "--feedback-parallel: expected all images on every rank, found a DistributedSampler, which gives each "
                "its share; give Trainer(use_distributed_sampler=False)."
            )
        normalises = any(isinstance(module, _BatchNorm | Standardise) for module in self.modules())
        if normalises and isinstance(batches, TrainingBatches) and batches.batch_size == batches.ranks:
            raise UserError(
                "--batch-size: expected at least 2 images on each device, which the network normalises over, found 1."
            )

        self._captured.forget()
        self.captures = self._may_capture()
        # Better now than when the training is over.
        self.description()
        # An epoch that goes on in its middle has no start.
        self._totals.begin()
        if self._begun is not None:
            self._go_on_within_epoch(self._begun)
            self._begun = None

    def _require_callbacks_that_fit(self) -> None:
        """Raise UserError where a callback would set rates, which rules do alone, or prune what it must not."""
        callbacks = self.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue] (its connectors set it)
        if any(isinstance(callback, StochasticWeightAveraging) for callback in callbacks):
            raise UserError(
                "StochasticWeightAveraging: its learning rates would be ignored, for rules step their own schedule; "
                "use EMAWeightAveraging, or another WeightAveraging, and the rate of the rule."
            )
        if [each.scheduler for each in self.trainer.lr_scheduler_configs] != [s.scheduler for s in self._schedules]:
            raise UserError(
                "LearningRateFinder: its learning rates would be ignored, for rules step their own schedule; leave it "
                "out, and compare rates by dtp search."
            )
        # Left to itself it prunes all that this module holds.
        pruning = [callback for callback in callbacks if isinstance(callback, ModelPruning)]
        pruned = {module for callback in pruning for module, _ in callback._parameters_to_prune}
        if not pruned <= {*self.network.modules()}:
            raise UserError(
                "ModelPruning: expected weights of the network, found those of feedback or of a loss too; give "
                'parameters_to_prune, such as [(network[1], "weight")].'
            )
        if pruned and not self.uses_autograd:
            raise UserError(
                f"ModelPruning: pruned weights are computed from others, and {type(self).__name__} steps its weights "
                "themselves; prune after training, or take another rule, such as fa."
            )

    def on_train_end(self) -> None:
        self.division.end(self.noise_streams)

    def on_fit_end(self) -> None:
        # Their graphs hold memory, and workspaces that are freed now.
        self._captured.forget()

    def on_train_epoch_start(self) -> None:
        self._totals.begin()

    def _go_on_within_epoch(self, begun: dict[str, Any]) -> None:
        rank = self.noise_streams.rank if self._shares > 1 else 0
        same = begun["shares"] == self._shares and rank < len(begun["ranks"])
        added = [begun["ranks"][rank]] if same else begun["ranks"]
        self._totals.go_on(begun, added, self.device, begun["shares"] / self._shares)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = self.taken(batch)
        _require_samples(x)
        if batch_idx == 0 and self._ranks > self._shares and not same_on_all_ranks(x):
            raise UserError(
                "--feedback-parallel: expected the same images on every rank, found others; have the loader shuffle by "
                "a generator with the same seed on each."
            )
        self._within_step = True
        try:
            with self.randomness("training", self.global_step):
                if self.captures:
                    names, values = self._captured(x, y, self.kind_of_batch(), self.fixed_numbers())
                else:
                    names, values = self._learn(x, y)
        finally:
            self._within_step = False
        self._totals.add(names, values, len(x), self._shares)
        self._count_batch()
        # From where a loop of the user's own goes on after the trainer.
        self.batches_by_hand = self.global_step
        # Here, not in a hook after the batch: a checkpoint of this batch is written by such a hook, and the row at its
        # step must be there before it.
        every = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue] (its connectors set it)
        last = self.trainer.is_last_batch
        if last or (every and (batch_idx + 1) % every == 0):
            # For callbacks: means of the epoch so far, which stay on the device.
            for name, value in self._totals.epoch_means.tensors().items():
                self.log(f"train/{name}", value, on_step=True, on_epoch=False, logger=False, sync_dist=self._shares > 1)
            self._log_window()
        # Manual optimization steps no schedule. As Lightning does for others: the rate of the next epoch is in a
        # checkpoint of the last batch, and schedules that watch a metric wait for those of the epoch's end.
        self._step_schedules("step", self.global_step, self._schedules)
        if last:
            self._end_epoch_of_schedules()

    def _learn(self, x: Tensor, y: Tensor) -> tuple[tuple[str, ...], Tensor]:
        """Learn from a batch. Returns the names of what is logged of it and the values, (len(names),)."""
        found = self.training_batch(x, y)
        if not isinstance(found, tuple) or len(found) != 2:
            raise handed_back(self, "training_batch", "the logits and a dictionary of numbers", found)
        logits = self._require_logits(self, "training_batch", found[0], x)
        scalars = require_mapping(self, "training_batch", found[1], is_number, "numbers")
        if self._ranks > 1:
            # The statistics of batch normalisation; what else ranks hold, they have averaged already.
            average_tensors([b for b in self.buffers() if b.is_floating_point()])
        with torch.no_grad():
            logits = full_precision(logits)
            loss = require_loss_value(self, "task_loss", self.task_loss(logits, y), trained=False)
            for score in self.scores.of(TRAINING).values() if self.scores.of_training else ():
                score.update(self.task.scored(logits), y)
            return as_vector({"loss": loss, **self.task.training_scores(logits, y), **scalars})

    def _require_batch_by_hand(self, x: Any = None, y: Any = None) -> None:
        """Raise UserError unless :meth:`training_batch` can learn from this batch; a trainer's has been looked at."""
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            raise UserError(
                f"{type(self).__name__}.training_batch: expected two tensors, inputs and goals, found {shown(x)} and "
                f"{shown(y)}."
            )
        if torch.is_inference_mode_enabled():
            raise UserError(
                f"{type(self).__name__} changes weights, found torch.inference_mode, in which it cannot; take its "
                "batches out of that."
            )
        if self.uses_autograd and not torch.is_grad_enabled():
            raise no_gradients(self)
        device = next(self.network.parameters()).device
        for what, part in (("inputs", x), ("goals", y)):
            if part.device != device:
                raise UserError(
                    f"Expected {what} on {device}, where the weights are, found them on {part.device}; move them there "
                    "with .to(rule.device)."
                )
        self._require_batch(x, y)
        _require_samples(x)

    def captured(self, capture: Capture | None = None) -> CapturedBatches:
        """What learns from batches without a trainer and replays those that are alike, as a run on a GPU does.

        Args:
            capture: as for :class:`~dtp.algorithms.captured.CapturedBatches`; left out, CUDA graphs.
        """
        return _CountedBatches(self, capture)

    def _may_capture(self) -> bool:
        """Whether a batch is a fixed sequence of operations on a GPU, which can be captured."""
        on_gpu = self.device.type == "cuda" and self.trainer.world_size == 1
        # What an optimizer decides on the host would be that of one batch.
        plain = all(is_plain(optimizer, SGD, groups=True) for optimizer in self._made_optimizers)
        own = self._own_loss is not None or self.scores.of_training or len(self._forward_optimizers) > 1
        fixed = self.capture_batches and self.fixed_sequence() and not own
        return on_gpu and fixed and plain and repeats(self.network, self.modules())

    def fixed_sequence(self) -> bool:
        """Whether :meth:`training_batch` does the same operations on every batch, and waits for nothing.

        What it draws must come from :attr:`noise_streams`, of which a graph knows. Not for subclasses, unless they say
        so: what they do on the host would be done once.
        """
        return False

    def kind_of_batch(self) -> Any:
        """What tells the operations of this batch from those of others, for rules with a schedule."""
        return None

    def fixed_numbers(self) -> Any:
        """Numbers and addresses that a captured batch has fixed."""
        groups = [group for optimizer in self._made_optimizers for group in optimizer.param_groups]
        settings = tuple((group["lr"], group["momentum"], group["weight_decay"]) for group in groups)
        states = [value for o in self._made_optimizers for state in o.state.values() for value in state.values()]
        tensors = [t for t in (*self.parameters(), *self.buffers(), *states) if isinstance(t, Tensor)]
        return settings, tuple((t.data_ptr(), t.requires_grad) for t in tensors)

    def _count_batch(self) -> None:
        """Make ``global_step`` count this batch, once, whatever the number of optimizer steps in it.

        Lightning counts the steps of its own optimizer wrappers, about 160 in a batch of L-DRL on VGG, and
        ``max_steps``, checkpoints and loggers follow that count. ``step`` above bypasses the wrappers; this is the one
        count instead.
        """
        compat.count_step(self.trainer)

    def on_train_epoch_end(self) -> None:
        self.check_finite()
        self._require_same_weights()
        self._log_window()
        found = self._totals.epoch_means.compute(over_ranks=self._shares > 1)
        found |= self.scores.taken(TRAINING) if self.scores.of_training else {}
        means = {f"train/{name}_epoch": value for name, value in found.items()}
        # For callbacks, beside what they see of validation.
        self.log_dict({f"train/{name}": value for name, value in found.items()}, logger=False)
        progress = self.progress()
        self.report(
            {
                "epoch": float(self.current_epoch),
                **means,
                "train/images_per_second": progress["images_per_second"],
                **({} if self.captures else {"train/feedback_share": progress["feedback_share"]}),
            }
        )
        cut_short = self.trainer.should_stop or 0 < self.trainer.max_steps <= self.global_step
        if self._stepped_epoch != self.current_epoch and not cut_short:
            # Nothing told the last batch: the data ended before, or a hook left the rest out.
            self._end_epoch_of_schedules()
        watching = [schedule for schedule in self._schedules if schedule.watches]
        self._step_schedules("epoch", self.current_epoch + 1, watching, {f"train/{k}": v for k, v in found.items()})

    def _end_epoch_of_schedules(self) -> None:
        """Step those that watch no metric after this epoch."""
        self._stepped_epoch = self.current_epoch
        self._step_schedules("epoch", self.current_epoch + 1, [s for s in self._schedules if not s.watches])

    def _step_schedules(
        self, interval: str, count: int, schedules: Sequence[Schedule], found: Mapping[str, float] | None = None
    ) -> None:
        """Step those of ``schedules`` that are due; ``found`` are metrics beside those that callbacks see."""
        for schedule in schedules:
            if not schedule.is_due(interval, count):
                continue
            value = schedule.value({**self.trainer.callback_metrics, **(found or {})}) if schedule.watches else None
            if schedule.watches and value is None:
                continue
            with warnings.catch_warnings():
                # In an epoch that trains feedback weights alone the forward optimizer has not stepped, which torch
                # suspects.
                warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
                self.lr_scheduler_step(schedule.scheduler, value)

    def _log_window(self) -> None:
        means = self._totals.window_means.compute(over_ranks=self._shares > 1)
        self._totals.window_means.reset()
        if not means:
            return
        self._require_finite(means)
        assert self.forward_optimizer is not None, "on_fit_start has looked at it"
        lr = self.forward_optimizer.param_groups[0]["lr"]
        self.report(
            {
                "epoch": float(self.current_epoch),
                **{f"train/{name}": value for name, value in means.items()},
                "train/lr": lr,
            }
        )

    def progress(self) -> dict[str, float]:
        """Loss, accuracy, images per second, share of time in the feedback phase: of the epoch's training batches."""
        return self._totals.progress()

    def check_finite(self) -> None:
        """Raise UserError if a loss of this epoch or a weight is NaN or infinite. Waits for device and other ranks."""
        # Of all ranks, so that they stop together.
        self._require_finite(self._totals.epoch_means.compute(over_ranks=self._shares > 1))
        bad = [name for name, value in self.named_parameters() if not torch.isfinite(value).all()]
        if bad:
            self._raise_not_finite(f"the weights {bad[0]}")

    @torch.no_grad()
    def _require_same_weights(self) -> None:
        """Raise UserError, on all ranks, where a rule of the user's has changed weights otherwise on one of them."""
        if self._ranks == 1:
            return
        named = {n: torch.view_as_real(p) if p.is_complex() else p for n, p in self.named_parameters()}
        values = [value.to(self.device, torch.float32) for value in named.values()]
        mine = torch.stack([torch.stack([value.sum(), value.norm()]) for value in values])
        mean = mine.clone()
        average_tensors([mean])
        # Far more than rounding may make of it.
        apart = ((mine - mean).abs().amax(1) > 1e-3 * mean[:, 1]).float()
        average_tensors([apart])
        if names := [name for name, share in zip(named, apart.tolist(), strict=True) if share > 0]:
            raise UserError(
                f"Ranks have drifted apart: {type(self).__name__} changes {names[0]} otherwise on each, from its own "
                "images or random numbers; have it step such weights (self.step, whose gradients are averaged), or "
                "draw from a generator with the same seed on all ranks."
            )

    def _require_finite(self, means: dict[str, float]) -> None:
        for name, value in means.items():
            if not math.isfinite(value):
                self._raise_not_finite(name)

    def _raise_not_finite(self, what: str) -> NoReturn:
        rates = [
            name for name in ("lr", "layer_lr", "feedback_lr", "noise", "mirror_lr") if getattr(self.options, name, 0)
        ]
        raise Diverged(
            f"Training diverged: {what} is not a finite number by batch {self.global_step}. Lower "
            f"{' or '.join('--' + name.replace('_', '-') for name in rates)}, or look for such numbers in the data; "
            "checkpoints written before it are kept."
        )

    # --- checkpoints ------------------------------------------------------------------------------------------------

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path,
        map_location: str | torch.device = "cpu",
        *,
        network: Any = None,
        trust: bool = False,
        **options: Any,
    ) -> Self:
        """The trained rule of a checkpoint or a run folder, in evaluation mode; see :func:`dtp.load`.

        Raises:
            UserError: as there, and where the checkpoint is of another rule.
        """
        return load_rule(cls, checkpoint_path, map_location, network, trust, options)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[DESCRIPTION] = described(self)
        begun, sums = self._totals.state_dict()
        states: list[Any] = [(self.noise_streams.state_dict(), sums)]
        trainer = compat.trainer_of(self)
        if trainer is not None and trainer.world_size > 1:
            states = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, (self.noise_streams.state_dict(), sums))
        checkpoint["noise"] = self.division.noise_states([noise for noise, _ in states])
        # Ranks that see the same images have added up the same.
        ranks = [sums for _, sums in states[: self._shares]]
        checkpoint["within_epoch"] = {**begun, "shares": self._shares, "ranks": ranks}
        checkpoint["division"] = self.division.state_dict()
        checkpoint["feedback_seconds"] = self.feedback_timer.seconds
        checkpoint["stepped_epoch"] = self._stepped_epoch

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        states = checkpoint["noise"]
        self.division.load_state_dict(checkpoint.get("division", {}))
        rank, _ = training_share(compat.trainer_of(self))
        if rank < len(states):
            self.noise_streams.load_state_dict(states[rank])
        else:
            self.noise_streams.restart(checkpoint["global_step"], states[0])
        self.feedback_timer.seconds = checkpoint["feedback_seconds"]
        self.batches_by_hand = checkpoint["global_step"]
        # Checkpoints of earlier versions have none; at the end of an epoch the next one's start forgets it.
        self._begun = checkpoint.get("within_epoch")
        # Those stepped schedules at the end of an epoch, which a trainer that goes on from its validation runs again.
        self._stepped_epoch = checkpoint.get("stepped_epoch", -1)


complete_hooks(Algorithm)


def _completed(configure: Callable[..., Any]) -> Callable[..., Any]:
    """A user's ``configure_optimizers``, which may be about the forward weights alone."""

    @functools.wraps(configure)
    def completed(self: Algorithm) -> Any:
        return self._complete(configure(self))

    return completed


class _CountedBatches(CapturedBatches):
    """Captured batches of a loop of the user's own, counted by the rule: a replay runs no Python that would."""

    def __init__(self, rule: Algorithm, capture: Capture | None):
        super().__init__(rule._learn, capture, rule.noise_streams.generators)
        self._rule = rule

    def __call__(self, x: Tensor, y: Tensor, kind: Any, values: Any) -> tuple[tuple[str, ...], Tensor]:
        done = self._rule.batches_by_hand
        found = super().__call__(x, y, kind, values)
        self._rule.batches_by_hand = done + 1
        return found
