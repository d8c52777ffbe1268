"""Checkpoints: at the end of each epoch, every given number of batches, and when a signal asks to stop."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import safetensors
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from dtp.cli.commands import command_line
from dtp.cli.config import Config
from dtp.distributed.launcher import process_rank
from dtp.errors import UserError, user_path
from dtp.fields import flag
from dtp.run.folder import (
    Run,
    how_to_go_on,
    images_of,
    may_vary,
    newest_first,
    require_same_configuration,
    resume_words,
    saved_options,
)
from dtp.run.layout import CHECKPOINTS, WEIGHTS_FILE
from dtp.run.sealed import Damaged, require_whole, save_sealed, sealed_tensors, whole_tensors
from dtp.system.files import replaced_when_whole
from dtp.system.signals import Stopped, stop_request


class Checkpoints(Checkpoint):
    """Writes ``checkpoints/step=N.ckpt``, of which the newest two are kept, and ``checkpoints/best.ckpt``.

    The best is that with the highest validation accuracy, or the least loss where the task has no accuracy.

    A subclass of Lightning's ``Checkpoint`` so that it runs after every other hook at the end of an epoch.

    Args:
        config: the configuration, saved in each checkpoint and compared when one is loaded.
    """

    KEEP = 2

    def __init__(self, run: Run, config: Config):
        self.run = run
        self.config = config
        self.best_accuracy = float("-inf")
        self.best_loss = float("inf")
        self.best_epoch = -1
        self.best_step = -1
        self.epochs_done = 0
        # Whether the last checkpoint, or the end of training, lies within an epoch.
        self.ended_within_epoch = False
        # The last validation, kept for the summary.
        self.validated: dict[str, float] = {}
        self._seconds_before = 0.0
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall seconds of training so far, over all starts of this run."""
        return self._seconds_before + time.perf_counter() - self._began

    @property
    def best(self) -> Path:
        """The file of the best checkpoint, whether it exists yet or not."""
        return self.run.checkpoints / "best.ckpt"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.world_size > 1:
            self._require_agreement(trainer)

    def _require_agreement(self, trainer: pl.Trainer) -> None:
        """Raise UserError unless all ranks are about to do the same: options, numbers of images, checkpoint."""
        of_each = may_vary(self.config, "process")
        options = {name: value for name, value in saved_options(self.config).items() if name not in of_each}
        mine = {flag(name): value for name, value in options.items()}
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue] (Lightning's connectors set it)
        mine |= {f"number of {split} images": size for split, size in data.sizes.items()}
        checkpoint = self.run.checkpoint
        mine["checkpoint"] = f"{checkpoint.name} of {checkpoint.stat().st_size} bytes" if checkpoint else "none"
        found: list[dict[str, Any]] = [{} for _ in range(trainer.world_size)]
        torch.distributed.all_gather_object(found, mine)
        for rank, other in enumerate(found):
            for name in {**found[0], **other}:
                if found[0].get(name) != other.get(name):
                    raise UserError(
                        f"The ranks must all do the same, but {name} is {found[0].get(name)} on rank 0 and "
                        f"{other.get(name)} on rank {rank}; start all with the same command and the same files."
                    )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began = time.perf_counter()
        self.find_best(trainer)
        # Lightning registers its own handlers whenever it begins to fit or test. It broadcasts to the other ranks from
        # wherever the signal lands, which can deadlock, and ends the process before the summary is written.
        stop_request.take_back()
        stop_request.training = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        stop_request.training = False

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A signal now is too late for a checkpoint, and the test is short: it finishes.
        stop_request.take_back()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.is_last_batch:
            # The end of the epoch is about to come, and with it a checkpoint that includes it.
            return
        self.ended_within_epoch = True
        if trainer.global_step == trainer.max_steps:
            # The rule is about to log this part of an epoch. Whoever goes on from here has no batch left to log it
            # after: the checkpoint counts from then on, with the state of now, for longer runs go on within the epoch.
            self._write(trainer)
        elif self._must_stop(trainer):
            self._stop(trainer, self._save(trainer))
        elif (every := self.config.run.checkpoint_every) and (batch_idx + 1) % every == 0:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.ended_within_epoch = not trainer.is_last_batch
        if self.ended_within_epoch:
            # max_steps ended training within the epoch; the checkpoint of that batch is what can be continued.
            if trainer.global_step == trainer.max_steps:
                path = self._keep(trainer)
                if self._must_stop(trainer):
                    self._stop(trainer, path)
            return
        self.epochs_done = trainer.current_epoch + 1
        found = trainer.callback_metrics.items()
        self.validated |= {name: float(value) for name, value in found if name.startswith("val/")}
        improved = self._note_best(trainer)
        path = self._save(trainer)
        if improved and trainer.is_global_zero:
            _link(path, self.best)
        if self._must_stop(trainer):
            self._stop(trainer, path)

    def _note_best(self, trainer: pl.Trainer) -> bool:
        """Whether this epoch has the best validation.

        Of equal accuracies, frequent in small sets, the lower loss is better. Tasks without accuracy have the loss
        alone.
        """
        metrics = trainer.callback_metrics
        if "val/loss" not in metrics:
            return False
        accuracy, loss = float(metrics.get("val/accuracy", 0.0)), float(metrics["val/loss"])
        if not math.isfinite(loss):
            return False
        if (accuracy, -loss) <= (self.best_accuracy, -self.best_loss):
            return False
        self.best_accuracy, self.best_loss = accuracy, loss
        self.best_epoch, self.best_step = trainer.current_epoch, trainer.global_step
        return True

    def find_best(self, trainer: pl.Trainer) -> None:
        """Make sure that best.ckpt holds what the state calls best: after a kill between two writes, or in a branch.

        All ranks call this; the first looks.
        """
        if trainer.is_global_zero and self.best_step >= 0:
            self._find_best()
        names = ("best_accuracy", "best_loss", "best_epoch", "best_step")
        found = trainer.strategy.broadcast([getattr(self, name) for name in names])
        for name, value in zip(names, found, strict=True):
            setattr(self, name, value)

    def _find_best(self) -> None:
        places = [self.run.checkpoints]
        if self.run.checkpoint is not None:
            places.append(self.run.checkpoint.parent)
        damaged: list[Path] = []
        candidates = [place / name for place in places for name in (self.best.name, _name(self.best_step))]
        for path in dict.fromkeys([*candidates, *filter(None, [self.run.checkpoint])]):
            try:
                found = path.is_file() and read_checkpoint(path, mmap=True).get("global_step") == self.best_step
            except UserError:
                damaged.append(path)
                continue
            if found:
                if path != self.best:
                    if damaged:
                        print(
                            f"warning: {damaged[0]}: is damaged or cannot be read; {path} replaces it.", file=sys.stderr
                        )
                    _link(path, self.best)
                return
        lost = f"{places[-1] / self.best.name}: the best weights so far, of epoch {self.best_epoch + 1}, are not there"
        if damaged:
            lost = f"{damaged[0]}: is damaged or cannot be read, and with it the best weights so far"
        print(f"warning: {lost}; the best of the epochs to come are tested, or the last.", file=sys.stderr)
        # Nothing to go back to: from here on the best of the epochs to come.
        self.best_accuracy, self.best_loss, self.best_epoch, self.best_step = float("-inf"), float("inf"), -1, -1

    _STATE = ("best_accuracy", "best_loss", "best_epoch", "best_step", "epochs_done", "ended_within_epoch", "validated")

    def state_dict(self) -> dict[str, Any]:
        return {**{name: getattr(self, name) for name in self._STATE}, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in self._STATE:
            # Those of earlier versions have not all of it.
            setattr(self, name, state_dict.get(name, getattr(self, name)))
        self._seconds_before = state_dict["seconds"]

    def on_save_checkpoint(self, trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = saved_options(self.config) | images_of(self.config)

    def _must_stop(self, trainer: pl.Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(stop_request.signum is not None, all=False)

    def _stop(self, trainer: pl.Trainer, path: Path) -> None:
        # An exception, not trainer.should_stop: that would still run validation and the hooks of the epoch's end, which
        # the resumed run has yet to come to.
        raise Stopped(
            f"Stopped by {stop_request.name or 'another process'} after batch {trainer.global_step}; everything is in "
            f"{path}. Go on with: {command_line('train')} {resume_words(self.run.folder)}"
        )

    def _save(self, trainer: pl.Trainer) -> Path:
        self._write(trainer)
        return self._keep(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        """Write the checkpoint of this batch, which counts once it is kept."""
        rule: Any = trainer.lightning_module
        rule.check_finite()
        # Rank 0 alone writes. Should it fail, the others end with it, wherever they wait.
        temporary = (self.run.checkpoints / _name(trainer.global_step)).with_suffix(".tmp")
        try:
            trainer.save_checkpoint(temporary)
        except BaseException:
            # Of a Ctrl-C, say.
            if trainer.is_global_zero:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
            raise

    def _keep(self, trainer: pl.Trainer) -> Path:
        """Give the checkpoint of this batch its name."""
        path = self.run.checkpoints / _name(trainer.global_step)
        if trainer.is_global_zero:
            temporary = path.with_suffix(".tmp")
            try:
                temporary.replace(path)
                for old in newest_first(self.run.folder)[self.KEEP :]:
                    old.unlink()
            except OSError as error:
                raise _unwritable(path, error) from error
            finally:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
        trainer.strategy.barrier("checkpoint")
        return path


class CheckpointFiles(TorchCheckpointIO):
    """Writes checkpoints straight to their files, and never leaves part of one behind.

    Lightning's own way takes twice the memory, and a temporary file elsewhere, which stays when the disk is full.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` with its digest; when this returns it is on the disk.

        Raises:
            UserError: no room or no permission.
        """
        path = Path(path)
        try:
            with path.open("wb") as file:
                save_sealed(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except BaseException as error:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            # torch.save answers a full disk with a RuntimeError of its own.
            why = error if isinstance(error, OSError) else error.__context__
            if not isinstance(why, OSError):
                raise
            raise _unwritable(path, why) from error


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path.with_suffix('.ckpt')}: the checkpoint cannot be written ({error.strerror}); make room or fix its "
        f"permissions, then {how_to_go_on(path.parent.parent)}"
    )


def _name(step: int) -> str:
    return f"step={step:08d}.ckpt"


def _link(source: Path, target: Path) -> None:
    """Make ``target`` another name of ``source``, replacing what it named before in one step."""
    try:
        with replaced_when_whole(target) as temporary:
            # A killed process of this number may have left a link, through which the copy would be written.
            temporary.unlink(missing_ok=True)
            try:
                # Of the file itself: a link to it may be relative to another folder.
                os.link(source.resolve(), temporary)
            except OSError:
                # Some file systems have no hard links.
                temporary.write_bytes(source.read_bytes())
    except OSError as error:
        raise _unwritable(target, error) from error


class DamagedCheckpoint(UserError):
    """The file cannot be read as a checkpoint."""


def with_usable_checkpoint(run: Run, config: Config, module: pl.LightningModule) -> tuple[Run, int]:
    """``run`` with a checkpoint that can be read and fits, and the batch of it; 0 for a run without one.

    A run that goes on in its own folder falls back to the checkpoint before a damaged one, which is renamed.

    Raises:
        UserError: no checkpoint can be used.
    """
    if run.checkpoint is None:
        return run, 0
    try:
        return run, load_checkpoint(run.checkpoint, config, module)["global_step"]
    except DamagedCheckpoint as error:
        if process_rank() > 0:
            # Rank 0 has read it and told us to; another one would be another run.
            raise
        others = [path for path in newest_first(run.folder) if path != run.checkpoint]
        if run.checkpoint.parent != run.checkpoints or not others:
            raise
        set_aside = run.checkpoint.with_suffix(".damaged")
        run.checkpoint.replace(set_aside)
        print(f"warning: {error} It is now {set_aside.name}; going on from the one before.", file=sys.stderr)
        return with_usable_checkpoint(Run(run.folder, others[0]), config, module)


def read_checkpoint(path: Path, mmap: bool = False) -> dict[str, Any]:
    """What is in a checkpoint of ours, on the CPU, bit for bit as it was written. Nothing in it is run.

    With ``mmap`` tensors are left in the file until they are used.

    Raises:
        DamagedCheckpoint: the file is not what was written, or no checkpoint.
        UserError: it cannot be read, or is a checkpoint of another program.
    """
    try:
        require_whole(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); fix its permissions.") from error
    except MemoryError:
        raise
    except Exception as error:
        why = error if isinstance(error, Damaged) else type(error).__name__
        raise DamagedCheckpoint(
            f"{path}: is damaged or no checkpoint ({why}); give another one of the run, or start anew."
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise _no_checkpoint_of_ours(path)
    return checkpoint


def _no_checkpoint_of_ours(path: Path) -> UserError:
    return UserError(f"{path}: is not a checkpoint of this program; expected one from a run folder's checkpoints/.")


def load_checkpoint(path: Path, config: Config, module: pl.LightningModule) -> dict[str, Any]:
    """Read a checkpoint and make sure that it was made with this configuration and fits ``module``.

    Raises:
        UserError: not a checkpoint of ours, damaged, of something else, or with weights of other shapes.
    """
    checkpoint = read_checkpoint(path)
    found = checkpoint.get("config")
    if not isinstance(found, dict):
        raise _no_checkpoint_of_ours(path)
    require_same_configuration(path, found, config)
    saved, present = (_shapes(state) for state in (checkpoint["state_dict"], module.state_dict()))
    for name in sorted({*saved, *present}):
        if saved.get(name) != present.get(name):
            raise UserError(
                f"{path}: holds weights of other shapes, {name} is {saved.get(name, 'missing')} and should be "
                f"{present.get(name, 'missing')}; give the options that the run was made with."
            )
    return checkpoint


def _shapes(state: dict[str, Any]) -> dict[str, str]:
    return {name: "x".join(map(str, tensor.shape)) or "a number" for name, tensor in state.items()}


def checkpoints_of(path: Path, best_first: bool = True) -> list[Path]:
    """The checkpoints in a run folder: the best and then the newest, or in the other order; or the file that it is."""
    if not path.is_dir():
        return [path] if path.is_file() else []
    best = [*(path / CHECKPOINTS).glob("best.ckpt")]
    newest = newest_first(path)
    return [*best, *newest] if best_first else [*newest, *best]


def read_first_whole(candidates: Sequence[Path], what: str = "") -> tuple[Path, dict[str, Any]]:
    """The first of several checkpoints that is not damaged, and what is in it. Messages begin with ``what``.

    Raises:
        UserError: none is whole; or one is something else, or cannot be read.
    """
    for found in candidates:
        try:
            return found, read_checkpoint(found)
        except DamagedCheckpoint as error:
            if found == candidates[-1]:
                raise UserError(f"{what}{error}") from error
            if process_rank() == 0:
                print(f"warning: {what}{found}: is damaged; taking another one of the run.", file=sys.stderr)
        except UserError as error:
            raise UserError(f"{what}{error}") from error
    raise ValueError("no candidates")


def weights_as_bytes(network: torch.nn.Module) -> bytes:
    """The weights and buffers of a network in the format of safetensors, under the names of its ``state_dict``."""
    # A copy of each, for the format has neither strides nor tensors that share their memory.
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in network.state_dict().items()
    }
    return sealed_tensors(tensors)


def _saved_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        weights, sealed = whole_tensors(path)
        if not sealed and process_rank() == 0:
            print(f"warning: {path}: carries no digest, so that damage to it may not be noticed.", file=sys.stderr)
        return weights
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); fix its permissions.") from error
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{path}: is damaged or no safetensors file ({error}); give another one.") from error


def _weights_of(source: str) -> tuple[Path, dict[str, torch.Tensor]]:
    """The weights of a network by name, and the file that they are from."""
    path = user_path(source)
    candidates = checkpoints_of(path)
    if not candidates and (path / WEIGHTS_FILE).is_file():
        candidates = [path / WEIGHTS_FILE]
    if not candidates:
        raise UserError(
            f"--init-weights {source}: no checkpoint there; give a run folder, a checkpoint file, or {WEIGHTS_FILE}."
        )
    if candidates[0].suffix == ".safetensors":
        try:
            return candidates[0], _saved_weights(candidates[0])
        except UserError as error:
            raise UserError(f"--init-weights {error}") from error
    found, checkpoint = read_first_whole(candidates, "--init-weights ")
    state = checkpoint["state_dict"]
    return found, {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}


def take_weights(network: torch.nn.Module, source: str) -> None:
    """Copy into ``network`` the weights of another run, of the layers where both have the same name and shape.

    Args:
        source: a run folder, of which the best checkpoint is taken, else the newest that is whole; or a checkpoint
            file; or a file of weights, as a run has it beside its checkpoints.

    Raises:
        UserError: nothing there, damaged, or no layer in common.
    """
    found, theirs = _weights_of(source)
    own = network.state_dict()
    common = {
        name: value
        for name, value in theirs.items()
        if name.startswith("layers.") and name in own and own[name].shape == value.shape
    }
    # A layer is taken whole or not at all.
    layers = {name.split(".")[1] for name in own if name.startswith("layers.")}
    whole = {layer for layer in layers if all(n in common for n in own if n.startswith(f"layers.{layer}."))}
    taken = {name: value for name, value in common.items() if name.split(".")[1] in whole}
    if not taken:
        raise UserError(
            f"--init-weights {found}: expected at least one layer of the same name and shape as in the network, found "
            "none; give the widths and channels that it was trained with."
        )
    network.load_state_dict(taken, strict=False)
    if process_rank() == 0:
        numbers = ", ".join(str(int(layer) + 1) for layer in sorted(whole, key=int))
        print(f"layers {numbers} start from {found}", flush=True)
