"""A network with a task: how batches are read, and how outputs are judged in validation and test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torchmetrics import Metric

from dtp import compat
from dtp.algorithms.batches import inputs_alone, inputs_and_goals
from dtp.algorithms.options import AlgorithmOptions
from dtp.algorithms.scores import Scores
from dtp.contracts import handed_back, require_loss_value, require_losses, shown
from dtp.errors import UserError
from dtp.feedback.noise import NoiseStreams, seeded_randomness
from dtp.models.inputs import require_inputs
from dtp.models.network import Network
from dtp.models.precision import full_precision
from dtp.tasks import OwnLoss, Task, require_loss


class TaskModule(LightningModule):
    """A network with a task, which validates, tests and predicts. How it learns is a rule's business.

    Args:
        network: the forward network.
        options: of the rule.
        seed: of the noise streams.

    Raises:
        UserError: network, task and loss do not fit each other.
    """

    options: AlgorithmOptions
    # Whether the rule follows the gradient of any loss of the outputs, so that a user may give one.
    learns_any_loss = True
    # Whether the rule has something of the shapes of the network's activations, as feedback layers are.
    made_for_shapes = False
    # Whether it has something of the shape of the inputs, too.
    made_for_inputs = False

    def __init__(self, network: Network, options: AlgorithmOptions, seed: int):
        super().__init__()
        self.network = network
        self.options = options
        self._own_loss: OwnLoss | None = None
        self._own_batch: Callable[[Any], Any] | None = None
        require_loss(self.task, self.options.loss)
        losses = require_losses(network)
        if losses and not self.task.uses_labels:
            raise UserError(
                f"--task {self.task.name}: {type(network).__name__} is made for classification; use another network."
            )
        if losses and self.options.loss not in losses:
            raise UserError(
                f"--loss: expected {' or '.join(losses)}, which alone {type(network).__name__} is made for, "
                f"found {self.options.loss}; give that, or use another network."
            )
        self.noise_streams = NoiseStreams(seed)
        # Shapes and types of inputs that the network is known to take, in training or not.
        self._known_inputs: set[tuple[Any, ...]] = set()
        self.scores = Scores.of_task(self.task)
        self.mean_losses = Scores.of_loss()

    def use(
        self,
        loss: Callable[..., Any] | None = None,
        metrics: Metric | Mapping[str, Metric] | None = None,
        batch: Callable[[Any], Any] | None = None,
    ) -> None:
        """Use the user's own loss, metrics or way to read batches; None keeps what is there.

        The arguments are as in :meth:`RuleType.__call__ <dtp.algorithms.making.RuleType.__call__>`.

        Raises:
            UserError: the rule or the network is made for a certain loss; something else than metrics.
        """
        if loss is not None:
            name = type(self).__name__
            if not self.learns_any_loss or self.network.losses:
                whose = name if not self.learns_any_loss else type(self.network).__name__
                raise UserError(f"loss: {whose} is made for a loss of its own; leave loss out, or use another.")
            if not callable(loss) or isinstance(loss, type):
                found = f"the class {loss.__name__}; make one of it" if isinstance(loss, type) else shown(loss)
                raise UserError(f"loss: expected its name or a function of outputs and goals, found {found}.")
            if isinstance(loss, torch.nn.Module):
                # Its weights, of classes say, go where the rule goes.
                self.loss_module = loss
            self._own_loss = OwnLoss(self.network.num_classes, loss)
            self.scores = Scores.of_task(self.task)
        if metrics is not None:
            self.scores = Scores.of_user(metrics)
        if batch is not None:
            if not callable(batch):
                raise UserError(
                    f"batch: expected a function that takes inputs and goals out of a batch, found {shown(batch)}."
                )
            self._own_batch = batch

    @property
    def task(self) -> Task:
        """What the network is trained to do."""
        return self._own_loss or self.network.task

    def task_loss(self, output: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        """The loss to minimise, by ``--task`` and ``--loss``, of outputs (B, K) and goals: mean or sum.

        Goals are labels (B,), or what else :attr:`task` makes of a batch.
        """
        return self.task.loss(self.options.loss, output, y, reduction)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        return self._require_logits(self.network, "forward", self.network(x), x)

    def _require_logits(self, owner: Any, method: str, found: Any, x: Tensor) -> Tensor:
        shape = len(x), self.network.num_classes
        if not isinstance(found, Tensor) or found.shape != shape:
            raise handed_back(owner, method, f"the logits as a tensor of shape {shape}", found)
        return found

    def randomness(self, *purpose: int | str) -> AbstractContextManager[None]:
        """A context in which torch's global generators, used by layers (dropout, binary units), depend on ``purpose``.

        They depend on that, the seed and the images of this rank, and on nothing else. So a resumed run draws what it
        would have drawn without the stop, and a measurement in between changes nothing.
        """
        return seeded_randomness(self.device, self.noise_streams.seed, self.noise_streams.rank, *purpose)

    # --- batches ------------------------------------------------------------------------------------------------------

    def batch(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Inputs (B, ...) and goals (B, ...) from a batch of the data loader; a hook for batches of another form.

        By default it accepts pairs, and dictionaries that have one of the usual names for each.
        """
        return inputs_and_goals(batch, type(self).__name__)

    def taken(self, batch: Any, training: bool = True) -> tuple[Tensor, Tensor]:
        """Inputs and the task's goals of what the data loader gives.

        Raises:
            UserError: they are not two tensors, none that the network takes, or no goals of the task.
        """
        x, y = self.unpacked(batch)
        if training:
            self._require_batch(x, y)
        else:
            self.task.require_goals(x, y)
        return x, self.task.goal(x, y, training=training)

    def _require_batch(self, x: Tensor, y: Tensor) -> None:
        """Raise UserError unless the rule can learn from inputs ``x`` and goals ``y``."""
        self._require_inputs(x, type(self).__name__ if self.made_for_shapes else "")
        self.task.require_goals(x, y)

    def unpacked(self, batch: Any) -> tuple[Tensor, Tensor]:
        """What :meth:`batch`, or a function given in its place, takes out of a batch.

        Raises:
            UserError: that is not two tensors, or inputs that the network does not take.
        """
        found = (self._own_batch or self.batch)(batch)
        if not isinstance(found, tuple | list) or len(found) != 2 or not all(isinstance(t, Tensor) for t in found):
            raise UserError(
                f"A batch must come to two tensors, inputs and goals, found {shown(found)}; fix the data, or the "
                "function that is given as batch."
            )
        self._require_inputs(found[0])
        x, y = found
        return x, y

    def _require_inputs(self, x: Tensor, made_for_shapes: str = "") -> None:
        kind = x.shape[1:], x.dtype, x.device.type, made_for_shapes
        if kind not in self._known_inputs:
            require_inputs(self.network, x, made_for_shapes, self.made_for_inputs)
            self._known_inputs.add(kind)

    # --- validation and test ------------------------------------------------------------------------------------------

    def _evaluate(self, batch: Any, split: str, batch_idx: int, loader: int) -> None:
        x, y = self.taken(batch, training=False)
        logits = full_precision(self(x))
        scores, mean = self.scores.of(split, loader), self.mean_losses.of(split, loader)["loss"]
        if batch_idx == 0:
            # An evaluation that was stopped halfway has left its images in them.
            for metric in (*scores.values(), mean):
                metric.reset()
        for score in scores.values():
            score.update(self.task.scored(logits), y)
        loss = require_loss_value(self, "task_loss", self.task_loss(logits, y), trained=False)
        mean.update(loss, len(x))
        # Lightning looks metrics up once, before those of further loaders are made.
        attribute = f"mean_losses.{split}{loader or ''}.loss"
        self.log(f"{split}/loss", mean, batch_size=len(x), logger=self._to_loggers, metric_attribute=attribute)

    @property
    def _to_loggers(self) -> bool | None:
        """For ``self.log``: False in ``fit``, where :meth:`report` does it, else Lightning's default.

        With that ``validate`` and ``test`` return the metrics and give them to loggers where there are any.
        """
        return False if self.trainer.state.fn == TrainerFn.FITTING else None

    def _report_scores(self, split: str) -> None:
        batches = self.trainer.num_test_batches if split == "test" else self.trainer.num_val_batches
        # As Lightning names the losses of several loaders.
        places = [f"/dataloader_idx_{i}" for i in range(len(batches))] if len(batches) > 1 else [""]
        scores = {
            f"{split}/{name}{place}": value
            for loader, place in enumerate(places)
            for name, value in self.scores.taken(split, loader).items()
        }
        self.log_dict(scores, logger=self._to_loggers, add_dataloader_idx=False)
        if self.trainer.state.fn != TrainerFn.FITTING:
            compat.log_at(self.trainer, self.global_step)
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            known, names = self.trainer.callback_metrics, [f"{split}/loss{place}" for place in places]
            losses = {name: float(known[name]) for name in names if name in known}
            self.report({"epoch": float(self.current_epoch), **losses, **scores})

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        with self.randomness("val", batch_idx, *([dataloader_idx] if dataloader_idx else [])):
            self._evaluate(batch, "val", batch_idx, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        self._report_scores("val")

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        with self.randomness("test", batch_idx, *([dataloader_idx] if dataloader_idx else [])):
            self._evaluate(batch, "test", batch_idx, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        self._report_scores("test")

    def report(self, metrics: dict[str, float]) -> None:
        """Send metrics to every logger, at the present batch count."""
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=self.global_step)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Outputs (B, K), of a batch as in training or of inputs alone."""
        x = inputs_alone(batch, self._own_batch is not None, self._own_batch or self.batch)
        self._require_inputs(x)
        with self.randomness("predict", batch_idx):
            return full_precision(self(x))
