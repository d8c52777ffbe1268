"""What all learning rules share: optimizers, counters, metrics, noise and checkpoints. A rule adds only its maths."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NoReturn

import torch
from lightning.pytorch import LightningModule
from torch import Size, Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import SGD, Optimizer

from dtp.algorithms.captured import CapturedBatches
from dtp.algorithms.metrics import RunningMeans, as_vector
from dtp.algorithms.optimizers import layer_groups, make_optimizer, make_schedule
from dtp.algorithms.options import AlgorithmOptions
from dtp.algorithms.timing import PhaseTimer
from dtp.contracts import (
    handed_back,
    is_number,
    require_loss_value,
    require_losses,
    require_mapping,
    require_tensor,
    shown,
)
from dtp.data.sampler import TrainingBatches
from dtp.distributed.averaging import average_tensors
from dtp.distributed.division import Division
from dtp.distributed.strategy import FeedbackDDPStrategy, training_share
from dtp.errors import Diverged, UserError
from dtp.feedback.layers import has_hooks
from dtp.feedback.noise import NoiseStreams, seeded_randomness
from dtp.feedback.steppers import is_plain
from dtp.fields import checked
from dtp.models.network import Network
from dtp.modules import RandomOperation, Standardise
from dtp.precision import full_precision
from dtp.tasks import Classification, require_loss

_UNDIVIDED = Division()


class Algorithm(LightningModule):
    """A learning rule: how a network's weights change on a batch.

    A subclass implements :meth:`forward_gradients`; one with more than one phase per batch also
    :meth:`training_batch`. Everything else (devices, precision, schedules, metrics, resume) works for all rules.

    Args:
        network: the forward network.
        options: an instance of the dataclass ``Options``; its fields are the rule's command-line options.
        seed: of the noise streams.
    """

    Options = AlgorithmOptions
    # Numbers of the layers whose feedback has weights that are trained in a phase of their own.
    trained_feedback: Sequence[int] = ()
    # Whether batches may be captured as CUDA graphs, where they are fixed sequences of operations.
    capture_batches = False

    def __init__(self, network: Network, options: AlgorithmOptions | None = None, seed: int = 0):
        super().__init__()
        # Rules step several optimizers several times per batch.
        self.automatic_optimization = False
        self.network = network
        self.options = checked(options if options is not None else self.Options())
        require_loss(self.task, self.options.loss)
        losses = require_losses(network)
        if losses and self.task.name != "classification":
            raise UserError(
                f"--task {self.task.name}: {type(network).__name__} is made for classification; use another network."
            )
        if losses and self.options.loss not in losses:
            raise UserError(
                f"--loss: expected {' or '.join(losses)}, which alone {type(network).__name__} is made for, "
                f"found {self.options.loss}; give that, or use another network."
            )
        _check_together(self.options, list(self._trained_layers()))
        self.noise_streams = NoiseStreams(seed)
        self.feedback_timer = PhaseTimer()
        self.forward_optimizer: Optimizer | None = None
        self._made_optimizers: list[Optimizer] = []
        self._captured = CapturedBatches(self._learn, generators=self.noise_streams.generators)
        self.captures = False
        self._epoch_means = RunningMeans()
        self._window_means = RunningMeans()
        self._images = 0
        # Ranks, and how many parts of every batch they have.
        self._ranks = self._shares = 1
        # Without a trainer nobody else counts them.
        self._batches_alone = 0
        self._epoch_began = self._last_batch_ended = time.perf_counter()
        self._feedback_before = 0.0
        # Of a checkpoint within an epoch, what was added up in it until then.
        self._begun: dict[str, Any] | None = None
        self.scores = torch.nn.ModuleDict({split: self.task.scores() for split in ("val", "test")})

    # --- the rule ---------------------------------------------------------------------------------------------------

    def forward_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What the rule would have the forward weights descend on this batch.

        Changes no weight, ``.grad`` or optimizer state.

        Args:
            x: images (B, C, H, W).
            y: labels (B,) int64, or what else the task has for goals.

        Returns:
            The logits (B, classes), detached, and one gradient for each of :attr:`forward_parameters`, in their order.
        """
        raise UserError(f"{type(self).__name__} does not say how the forward weights learn; define forward_gradients.")

    def training_batch(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Learn from one batch: one step on :meth:`forward_gradients`.

        Returns:
            The logits before the step (B, classes), detached, and scalars to be averaged and logged as ``train/NAME``.
        """
        logits, gradients = self.checked_gradients(x, y)
        self.step(self.forward_optimizer, self.forward_parameters, gradients)
        self._batches_alone += 1
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
        """Factor between this rule's forward gradient of layer n and the backprop gradient it stands for."""
        return 1.0

    def task_loss(self, output: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        """What the network is to minimise, by ``--task`` and ``--loss``, of outputs (B, K) and goals: mean or sum.

        Goals are labels (B,), or what else :attr:`task` makes of a batch.
        """
        return self.task.loss(self.options.loss, output, y, reduction)

    def feedback_weights(self) -> dict[int, list[tuple[Tensor, Tensor]]]:
        """By layer, feedback weights and the transposed forward weights that they stand for, in one shape each.

        Empty for rules without such weights. Angles between them are logged.
        """
        return {}

    def describe(self) -> dict[str, Any]:
        """What the run's summary says of how the rule was computed."""
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
                f"found something else ({error}); mend {type(self).__name__}."
            ) from error
        if not isinstance(found, dict):
            raise handed_back(self, "describe", "a dictionary", found)
        return found

    @property
    def task(self) -> Classification:
        """What the network is trained to do."""
        return self.network.task

    @property
    def forward_parameters(self) -> list[Tensor]:
        """The forward weights that are trained, in the order of the layers; frozen ones are left out."""
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        return self._require_logits(self.network, "forward", self.network(x), x)

    def _require_logits(self, owner: Any, method: str, found: Any, x: Tensor) -> Tensor:
        return require_tensor(owner, method, "the logits", found, (len(x), self.network.num_classes))

    # --- optimizers -------------------------------------------------------------------------------------------------

    def feedback_optimizer_list(self) -> list[Optimizer]:
        """Optimizers other than the forward one, made anew; for rules that train more than the forward weights."""
        return []

    def configure_optimizers(self):
        o = self.options
        groups = layer_groups(self._trained_layers(), o.layer_lr, o.eps)
        lr, eps = (o.layer_lr or [o.lr])[0], (o.eps or [0.0])[0]
        self.forward_optimizer = make_optimizer(o.optimizer, groups, lr, o.momentum, o.weight_decay, o.beta2, eps)
        max_epochs = self.trainer.max_epochs if self._trainer is not None else None
        schedule = make_schedule(self.forward_optimizer, o, max_epochs or 1)
        others = self.feedback_optimizer_list()
        if not isinstance(others, list) or not all(isinstance(other, Optimizer) for other in others):
            raise handed_back(self, "feedback_optimizer_list", "a list of optimizers", others)
        self._made_optimizers = [self.forward_optimizer, *others]
        return self._made_optimizers, [schedule]

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
        return self._batches_alone if self._trainer is None else self.global_step

    def randomness(self, *purpose: int | str) -> AbstractContextManager[None]:
        """Within it torch's global generators, which layers draw from (dropout, binary units), depend on ``purpose``.

        On that, the seed and which images this rank has, and nothing else: so a run that was stopped goes on with what
        it would have drawn, and a measurement on the way changes nothing.
        """
        return seeded_randomness(self.device, self.noise_streams.seed, self.noise_streams.rank, *purpose)

    def step(self, optimizer: Optimizer, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """One step of ``optimizer`` on ``gradients``; afterwards no parameter has a ``.grad``.

        The step goes through the strategy, which averages the gradients over ranks and applies the precision plugin.
        It does not go through Lightning's optimizer wrapper, which would count it as a global step.
        """
        self._require_gradients(parameters, gradients)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if self._trainer is None:
            self.on_before_optimizer_step(optimizer)
            optimizer.step()
        else:
            self.trainer.strategy.optimizer_step(optimizer, lambda: None)
        for parameter in parameters:
            parameter.grad = None

    def _require_gradients(self, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        shapes = [g.shape if isinstance(g, Tensor) else shown(g) for g in gradients]
        if shapes != [p.shape for p in parameters]:
            found = ", ".join(str(tuple(shape)) if isinstance(shape, Size) else shape for shape in shapes)
            raise UserError(
                f"Expected one gradient of the shape of each of {len(parameters)} weights, "
                f"{', '.join(str(tuple(p.shape)) for p in parameters)}, found {found or 'none'}; mend "
                f"{type(self).__name__}."
            )

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # Here the gradients are already averaged over ranks.
        if self.options.clip_norm > 0 and optimizer is self.forward_optimizer:
            torch.nn.utils.clip_grad_norm_(self.forward_parameters, self.options.clip_norm)

    # --- training, as Lightning calls it ----------------------------------------------------------------------------

    @property
    def division(self) -> Division:
        """How the ranks divide the training of feedback weights."""
        return getattr(self.trainer.strategy, "division", _UNDIVIDED) if self._trainer is not None else _UNDIVIDED

    def on_fit_start(self) -> None:
        if self.forward_optimizer is None or self.forward_optimizer not in self.trainer.optimizers:
            raise UserError(
                f"configure_optimizers of {type(self).__name__} must make self.forward_optimizer and return it, found "
                "none; have it return super().configure_optimizers()."
            )
        strategy = self.trainer.strategy
        if self.trainer.world_size > 1 and not isinstance(strategy, FeedbackDDPStrategy):
            raise UserError(
                f"Expected the strategy feedback-ddp on several devices, found {type(strategy).__name__}, under which "
                'ranks would drift apart; give Trainer(strategy="feedback-ddp").'
            )
        if self.trainer.world_size > 1 and not self.division.shares_images and not self.trained_feedback:
            raise UserError(
                f"--feedback-parallel {strategy.feedback_parallel}: {type(self).__name__} has no feedback layers that "
                "are trained in a phase of their own, which could be divided; use data."
            )
        self.division.begin()
        self._ranks = self.trainer.world_size
        # Ranks that see the same images draw the same noise.
        self.noise_streams.rank, self._shares = training_share(self.trainer)

    def check_length(self, max_epochs: int, max_steps: int, batches: int) -> None:
        """Raise UserError if a run of that length would not train what it is for. Asked before there is a run folder.

        Args:
            max_epochs, max_steps: as the trainer's; below 0 for no such limit.
            batches: of an epoch.
        """

    def on_train_start(self) -> None:
        # Before the first batch, which diagnostics see first.
        batches = getattr(self.trainer.train_dataloader, "batch_sampler", None)
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
        self._begin_epoch()
        if self._begun is not None:
            self._go_on_within_epoch(self._begun)
            self._begun = None

    def on_fit_end(self) -> None:
        # Their graphs hold memory, and workspaces that are freed now.
        self._captured.forget()

    def on_train_epoch_start(self) -> None:
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._epoch_means.reset()
        self._window_means.reset()
        self._images = 0
        self._epoch_began = self._last_batch_ended = time.perf_counter()
        self._feedback_before = self.feedback_timer.seconds

    def _state_within_epoch(self) -> dict[str, Any]:
        """What has been added up since the epoch began."""
        return {
            "epoch_means": self._epoch_means.state_dict(),
            "window_means": self._window_means.state_dict(),
            "images": self._images,
            "seconds": self._last_batch_ended - self._epoch_began,
            "feedback_before": self._feedback_before,
            "shares": self._shares,
        }

    def _go_on_within_epoch(self, begun: dict[str, Any]) -> None:
        rank = self.noise_streams.rank if self._shares > 1 else 0
        same = begun["shares"] == self._shares and rank < len(begun["ranks"])
        states = [begun["ranks"][rank]] if same else begun["ranks"]
        for name, means in (("epoch_means", self._epoch_means), ("window_means", self._window_means)):
            means.load_state_dict([state[name] for state in states], self.device, begun["shares"] / self._shares)
        self._images, self._feedback_before = begun["images"], begun["feedback_before"]
        self._epoch_began -= begun["seconds"]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        y = self.task.goal(x, y)
        with self.randomness("training", self.global_step):
            if self.captures:
                names, values = self._captured(x, y, self.kind_of_batch(), self.fixed_numbers())
            else:
                names, values = self._learn(x, y)
        self._epoch_means.add(names, values, weight=len(x))
        self._window_means.add(names, values, weight=len(x))
        self._images += len(x) * self._shares
        self._count_batch()
        self._last_batch_ended = time.perf_counter()
        # Here, not in a hook after the batch: a checkpoint of this batch is written by such a hook, and the row at its
        # step must be there before it.
        if (batch_idx + 1) % self.trainer.log_every_n_steps == 0:
            self._log_window()

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
            return as_vector({"loss": loss, **self.task.training_scores(logits, y), **scalars})

    def _may_capture(self) -> bool:
        """Whether a batch is a fixed sequence of operations on a GPU, which can be captured."""
        on_gpu = self.device.type == "cuda" and self.trainer.world_size == 1
        # What an optimizer decides on the host would be that of one batch.
        plain = all(is_plain(optimizer, SGD, groups=True) for optimizer in self._made_optimizers)
        return on_gpu and self.capture_batches and self.fixed_sequence() and plain and self._network_repeats()

    def _network_repeats(self) -> bool:
        """Whether the layers do the same operations on every batch, and draw nothing.

        Of a user's own modules that is not known: what they do on the host would be done once.
        """
        varies = any(
            isinstance(module, RandomOperation | _DropoutNd)
            or has_hooks(module)
            # It weighs its statistics by a count that the host reads.
            or (isinstance(module, _BatchNorm) and module.momentum is None)
            for module in self.modules()
        )
        # A network of the user's own is one more list of layers, unless it has a pass of its own.
        listed = type(self.network).forward is Network.forward
        known = all(map(_is_shipped, self.network.layers.modules() if listed else self.network.modules()))
        return known and not varies

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
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        progress.increment_completed()

    def on_train_epoch_end(self) -> None:
        self.check_finite()
        self._log_window()
        means = self._epoch_means.compute(over_ranks=self._shares > 1)
        means = {f"train/{name}_epoch": value for name, value in means.items()}
        progress = self.progress()
        self.report(
            {
                "epoch": float(self.current_epoch),
                **means,
                "train/images_per_second": progress["images_per_second"],
                **({} if self.captures else {"train/feedback_share": progress["feedback_share"]}),
            }
        )
        # Manual optimization steps no schedule; here the new rate is in the checkpoint that the epoch's end writes.
        with warnings.catch_warnings():
            # In an epoch that trains feedback weights alone the forward optimizer has not stepped, which torch
            # suspects.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            for scheduler in _as_list(self.lr_schedulers()):
                scheduler.step()

    def _log_window(self) -> None:
        means = self._window_means.compute(over_ranks=self._shares > 1)
        self._window_means.reset()
        if not means:
            return
        self._require_finite(means)
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
        seconds = max(self._last_batch_ended - self._epoch_began, 1e-9)
        means = self._epoch_means.compute()
        return {
            "loss": means.get("loss", float("nan")),
            **{name: means[name] for name in ("accuracy", "mse") if name in means},
            "images_per_second": self._images / seconds,
            "feedback_share": min((self.feedback_timer.seconds - self._feedback_before) / seconds, 1.0),
        }

    def check_finite(self) -> None:
        """Raise UserError if a loss of this epoch or a weight is NaN or infinite. Waits for device and other ranks."""
        # Of all ranks, so that they stop together.
        self._require_finite(self._epoch_means.compute(over_ranks=self._shares > 1))
        bad = [name for name, value in self.named_parameters() if not torch.isfinite(value).all()]
        if bad:
            self._raise_not_finite(f"the weights {bad[0]}")

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
            f"{' or '.join('--' + name.replace('_', '-') for name in rates)}; checkpoints written before it are kept."
        )

    # --- validation and test ----------------------------------------------------------------------------------------

    def _evaluate(self, batch: tuple[Tensor, Tensor], split: str) -> None:
        x, y = batch
        y = self.task.goal(x, y, training=False)
        logits = full_precision(self(x))
        for score in self.scores[split].values():
            score.update(self.task.scored(logits), y)
        self.log(f"{split}/loss", self.task_loss(logits, y), batch_size=len(x), logger=False, sync_dist=True)

    def _report_scores(self, split: str) -> None:
        scores = {}
        for name, score in self.scores[split].items():
            scores[f"{split}/{name}"] = float(score.compute())
            score.reset()
        self.log_dict(scores, logger=False)
        if not self.trainer.sanity_checking:
            loss = self.trainer.callback_metrics.get(f"{split}/loss")
            losses = {} if loss is None else {f"{split}/loss": float(loss)}
            self.report({"epoch": float(self.current_epoch), **losses, **scores})

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        with self.randomness("val", batch_idx):
            self._evaluate(batch, "val")

    def on_validation_epoch_end(self) -> None:
        self._report_scores("val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        with self.randomness("test", batch_idx):
            self._evaluate(batch, "test")

    def on_test_epoch_end(self) -> None:
        self._report_scores("test")

    def report(self, metrics: dict[str, float]) -> None:
        """Send metrics to every logger, at the present batch count."""
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=self.global_step)

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        begun = self._state_within_epoch()
        sums = {name: begun.pop(name) for name in ("epoch_means", "window_means")}
        states: list[Any] = [(self.noise_streams.state_dict(), sums)]
        if self._trainer is not None and self.trainer.world_size > 1:
            states = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(states, (self.noise_streams.state_dict(), sums))
        checkpoint["noise"] = self.division.noise_states([noise for noise, _ in states])
        # Ranks that see the same images have added up the same.
        checkpoint["within_epoch"] = {**begun, "ranks": [sums for _, sums in states[: self._shares]]}
        checkpoint["division"] = self.division.state_dict()
        checkpoint["feedback_seconds"] = self.feedback_timer.seconds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        states = checkpoint["noise"]
        self.division.load_state_dict(checkpoint.get("division", {}))
        rank, _ = training_share(self._trainer)
        if rank < len(states):
            self.noise_streams.load_state_dict(states[rank])
        else:
            self.noise_streams.restart(checkpoint["global_step"], states[0])
        self.feedback_timer.seconds = checkpoint["feedback_seconds"]
        # Checkpoints of earlier versions have none; at the end of an epoch the next one's start forgets it.
        self._begun = checkpoint.get("within_epoch")


def _as_list(found: Any) -> list:
    if found is None:
        return []
    return found if isinstance(found, list) else [found]


def _is_shipped(module: torch.nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] in ("torch", "dtp")


def _check_together(options: AlgorithmOptions, layers: list[int]) -> None:
    o = options
    for flag, values in (("layer-lr", o.layer_lr), ("eps", o.eps)):
        if len(values) not in ((0, len(layers)) if flag == "layer-lr" else (0, 1, len(layers))):
            raise UserError(
                f"--{flag}: expected {len(layers)} values, one for each layer with weights, found {len(values)}."
            )
    lowest, whose = (min(o.layer_lr), "the lowest of --layer-lr") if o.layer_lr else (o.lr, "--lr")
    if o.lr_schedule == "cosine" and lowest < o.lr_min:
        raise UserError(
            f"--lr-min: expected at most {whose}, {lowest}, found {o.lr_min}; the schedule would raise the rate."
        )
    # A default for another optimizer is no mistake of the user's.
    if o.optimizer == "sgd" and (o.beta2 not in (0, type(o).beta2) or o.eps):
        raise UserError("--beta2, --eps: expected --optimizer adam, rmsprop or lee-rmsprop, found sgd; leave them out.")
