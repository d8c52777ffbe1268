"""One run from configuration to summary: data, network, rule, trainer, test."""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import ProgressBar

from dtp import compat
from dtp.algorithms.base import Algorithm
from dtp.cli.commands import command_words
from dtp.cli.config import Config, RunOptions, parse_limit
from dtp.contracts import handed_back
from dtp.data.base import ImageData
from dtp.data.image_files import images_in
from dtp.data.sampler import require_even_shares, require_one_each
from dtp.diagnostics.callback import AlignmentCallback
from dtp.diagnostics.images import PicturesCallback
from dtp.distributed import watch
from dtp.distributed.devices import choose_devices, choose_strategy, leave_together, watch_started_processes
from dtp.distributed.launcher import process_rank, uses_slurm
from dtp.errors import Diverged, UserError, all_in_turn
from dtp.fields import PRECISIONS
from dtp.run.building import build
from dtp.run.checkpoints import (
    CheckpointFiles,
    Checkpoints,
    load_checkpoint,
    read_checkpoint,
    weights_as_bytes,
    with_usable_checkpoint,
)
from dtp.run.folder import (
    Run,
    how_to_go_on,
    open_run,
    tell_other_ranks,
    write_config,
    write_failure,
    write_summary,
    write_weights,
)
from dtp.run.loggers import MetricsCSV, make_wandb_logger
from dtp.run.progress import progress_callback
from dtp.run.provenance import commit, cpu_name, recorded, versions
from dtp.system.memory import keep_freed_memory
from dtp.system.signals import Stopped, stop_request
from dtp.tasks import Task


def train(config: Config, argv: Sequence[str]) -> Run:
    """Train, test once and write the summary into the run folder, which is returned.

    Raises:
        UserError: a mistake of the user anywhere on the way.
        Stopped: a signal asked to stop; the checkpoint is written.
    """
    watch.begin()
    # They may have changed since an earlier run of this process.
    images_in.cache_clear()
    _quiet_libraries()
    keep_freed_memory()
    # For the summary: by the time that it is written the files may have changed.
    commit()
    command = recorded([*command_words("train"), *argv])
    accelerator, devices, nodes = choose_devices(config.run)
    _choose_algorithms(accelerator, config.run.deterministic)
    if config.run.feedback_parallel == "data":
        # Before there is a folder.
        require_even_shares(config.data.batch_size, devices * nodes)
    data, algorithm = build(config)
    batches = {split: _count_batches(data, f"{split}_dataloader") for split in ("train", "val", "test")}
    if batches["train"] == 0:
        raise UserError(f"train_dataloader of {type(data).__name__} has no batches; fix {type(data).__name__}.")
    if accelerator != "gpu" and getattr(config.algo, "engine", "") == "graph":
        # Where it would run as plain functions, and the summary call that a graph.
        raise UserError("--engine graph: expected a GPU, for it is a CUDA graph, found a CPU; use --engine auto.")
    limits = {
        "train": _limit("train", config.run.limit_train_batches, batches["train"]),
        "val": _limit("val", config.run.limit_val_batches, batches["val"]),
    }
    limit = limits["train"] if isinstance(limits["train"], int) else int(limits["train"] * batches["train"])
    algorithm.check_length(config.run.max_epochs, config.run.max_steps, min(limit, batches["train"]))
    for part, used in (("val", limits["val"]), ("test", True)):
        if used and data.sizes[part]:
            # Now, and not when the test begins.
            require_one_each(part, data.sizes[part], devices * nodes)
    run = open_run(config, lambda path: load_checkpoint(path, config, algorithm))
    with run.locked():
        return _train_in(run, config, command, data, algorithm, limits)


def _train_in(
    run: Run, config: Config, command: str, data: ImageData, algorithm: Algorithm, limits: dict[str, int | float]
) -> Run:
    """Train in the folder of ``run``, which no other process may use meanwhile.

    Args:
        limits: batches of an epoch by ``train`` and ``val``, as Lightning takes them.
    """
    if process_rank() == 0:
        run.remove_leftovers()
    run, resumed_at = with_usable_checkpoint(run, config, algorithm)
    tell_other_ranks(run)
    watch.set_advice(lambda: how_to_go_on(run.folder))
    checkpoints = Checkpoints(run, config)
    if run.is_finished(config) and (done := run.summary):
        if process_rank() == 0:
            print(f"This run has finished: {_result_line(done)}")
        return run
    if run.checkpoint is None and (done := run.summary):
        raise UserError(
            f"{run.folder}: has finished after {done['steps']} batches, and no checkpoint is left to go on from; put "
            "its checkpoints back, or move it away, or give another --run-dir."
        )
    if process_rank() == 0:
        # A run that goes on from the beginning may have lost it.
        try:
            run.checkpoints.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{run.checkpoints}: cannot be made ({error.strerror}); make this folder.") from error
        write_config(run, config, command)
        write_failure(run.folder, "")
        _print_header(config, run, data, algorithm, resumed_at)
    trainer = _make_trainer(checkpoints, limits, resumed_at)
    if stop_request.signum is not None:
        raise Stopped(f"Stopped by {stop_request.name} before training; start it again with --resume auto.")
    before = sys.exception()
    try:
        trainer.fit(algorithm, datamodule=data, ckpt_path=run.checkpoint)
        _finish(command, trainer, algorithm, data, checkpoints)
    except Stopped:
        leave_together()
        raise
    except Diverged as error:
        _remember(run.folder, error)
        raise
    except RuntimeError as error:
        # Where a capture has failed nothing works on the GPU any more, nor does tidying up, which is not to hide why.
        for earlier in all_in_turn(error, before):
            if isinstance(earlier, UserError):
                _remember(run.folder, earlier)
                raise earlier from None
        operation, refused, _ = str(error).partition(" does not have a deterministic implementation")
        if config.run.deterministic and refused:
            raise UserError(f"--deterministic: torch has no deterministic {operation}; leave it out.") from error
        raise
    for logger in trainer.loggers:
        logger.finalize("success")
    leave_together()
    return run


def _title(folder: Path) -> str:
    """The name of a run where many are listed: that of its folder, in a sweep with the setting before the seed."""
    # Of a relative path, too, which may end above the setting.
    parent = Path(os.path.abspath(folder)).parent
    return f"{parent.name}/{folder.name}" if re.fullmatch(r"seed\d+", folder.name) else folder.name


def _make_trainer(checkpoints: Checkpoints, limits: dict[str, int | float], resumed_at: int) -> pl.Trainer:
    """Lightning's trainer for the run, with its loggers and callbacks; ``limits`` as for :func:`_train_in`."""
    run, config = checkpoints.run, checkpoints.config
    accelerator, devices, nodes = choose_devices(config.run)
    metrics_csv = MetricsCSV(run.folder)
    metrics_csv.resume_at(resumed_at)
    loggers: list[Any] = [metrics_csv]
    if config.run.logger == "wandb":
        loggers.append(make_wandb_logger(run.folder, config.as_dict(), name=_title(run.folder)))
    progress = progress_callback()
    callbacks: list[Any] = [progress, checkpoints, PicturesCallback(run.folder)]
    if config.run.diagnostics_every:
        callbacks.insert(0, AlignmentCallback(run.folder, config.run.diagnostics_every))
    watch_started_processes()
    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=choose_strategy(config.run, devices * nodes),
        precision=PRECISIONS[config.run.precision],
        max_epochs=config.run.max_epochs,
        max_steps=config.run.max_steps,
        limit_train_batches=limits["train"],
        # 0 where there are no validation images: Lightning takes a missing loader for a mistake otherwise.
        limit_val_batches=limits["val"],
        log_every_n_steps=config.run.log_every,
        logger=loggers,
        callbacks=callbacks,
        plugins=[CheckpointFiles(), *([SLURMEnvironment(auto_requeue=False)] if uses_slurm() else [])],
        default_root_dir=run.folder,
        num_sanity_val_steps=0,
        # The sampler shards by itself; Lightning's would shuffle and forget where a resumed epoch was.
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=isinstance(progress, ProgressBar),
        enable_checkpointing=True,
    )
    compat.train_by_epochs(trainer)
    return trainer


def _remember(folder: Path, error: UserError) -> None:
    """Write down that the run has diverged, if that is the error."""
    if isinstance(error, Diverged) and process_rank() == 0:
        write_failure(folder, str(error))


def _choose_algorithms(accelerator: str, deterministic: bool) -> None:
    """Which of several algorithms torch takes in this process. Call it before anything starts CUDA."""
    # The fastest is found by trying all, and it may be another one each time.
    torch.backends.cudnn.benchmark = accelerator == "gpu" and not deterministic
    if deterministic:
        # Read by cuBLAS when it starts: its streams then share no memory.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    # Nothing here reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue] (is there)


def tf32_advice(options: RunOptions, accelerator: str) -> str:
    """A line on --tf32 where the GPU has it and the run does not use it; else nothing."""
    used = options.tf32 or accelerator != "gpu" or PRECISIONS[options.precision] == "64-true"
    if used or torch.cuda.get_device_capability() < (8, 0):
        return ""
    return "  --tf32 would be faster on this GPU, with numbers of 10 bits in products and convolutions\n"


def _count_batches(data: ImageData, loader: str) -> int:
    batches = getattr(data, loader)()
    if isinstance(batches, list | tuple | dict) and len(batches) > 0:
        raise handed_back(data, loader, "one DataLoader, which makes the batches", batches)
    try:
        return len(batches)
    except TypeError as error:
        if "has no len()" not in str(error):
            raise
        raise UserError(
            f"{loader} of {type(data).__name__} must return batches that can be counted, such as a DataLoader, found "
            f"something else ({error}); fix {type(data).__name__}."
        ) from error


def _limit(split: str, text: str, batches: int) -> int | float:
    """Batches per epoch as Lightning takes them: a count, or a fraction that is at least one batch."""
    limit = parse_limit(split, text)
    if batches == 0:
        return 0
    if isinstance(limit, float) and int(limit * batches) < 1:
        raise UserError(f"--limit-{split}-batches {text}: less than one of {batches} batches; give a larger one.")
    return limit


def _finish(command: str, trainer: pl.Trainer, algorithm: Algorithm, data: ImageData, checkpoints: Checkpoints) -> None:
    """Test once, and write weights and summary."""
    run, config = checkpoints.run, checkpoints.config
    # Of the training; the test takes time too.
    epochs, steps, seconds = checkpoints.epochs_done, trainer.global_step, checkpoints.seconds
    batches_per_epoch = trainer.num_training_batches
    feedback_seconds = algorithm.feedback_timer.seconds
    val, tested = _take_tested_weights(trainer, algorithm, checkpoints)
    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue] (Lightning's connectors set it)
        if isinstance(callback, AlignmentCallback):
            # Where there was nothing left to train, nobody has drawn it.
            callback.draw(trainer)
    trainer.test(algorithm, datamodule=data, verbose=False)
    test = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test/")}
    # Converted as for the batches: what they could take does not end the run here.
    mean, std = (torch.tensor(each, dtype=torch.float64).flatten().tolist() for each in data.statistics)
    selected_by, scores = algorithm.task.selected_by, cast(Any, algorithm.scores["test"])
    summary = {
        "algo": config.run.algo,
        "model": config.run.model,
        "data": config.run.data,
        "seed": config.run.seed,
        "epochs": epochs,
        "steps": steps,
        "batches_per_epoch": batches_per_epoch,
        "wall_seconds": round(seconds, 3),
        "feedback_seconds": round(feedback_seconds, 3),
        "task": algorithm.task.name,
        f"val_{selected_by}": val.get(f"val/{selected_by}"),
        **{f"test_{name}": test.get(f"test/{name}") for name in scores},
        "test_loss": test.get("test/loss"),
        "result": _in_words(algorithm.task, {name[5:]: value for name, value in test.items()}),
        "tested_weights": tested,
        "train_images": data.sizes["train"],
        "val_images": data.sizes["val"],
        "test_images": data.sizes["test"],
        # What has been subtracted and divided by, per channel, of pixels in [0, 1]: other images need it too.
        "pixel_mean": mean,
        "pixel_std": std,
        "parameters": sum(p.numel() for p in algorithm.forward_parameters),
        "device": torch.cuda.get_device_name() if trainer.strategy.root_device.type == "cuda" else cpu_name(),
        "world_size": trainer.world_size,
        "threads": torch.get_num_threads(),
        "precision": config.run.precision,
        # Batches that are captured whole have no feedback phase that could be timed.
        "captured": algorithm.captures,
        **algorithm.description(),
        "versions": versions(),
        "command": command,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    if trainer.is_global_zero:
        write_weights(run, weights_as_bytes(algorithm.network))
        # The last, for it says that the run has finished.
        write_summary(run, summary)
        print(_result_line(summary))
        print(f"Results in {run.folder}")


def _take_tested_weights(
    trainer: pl.Trainer, algorithm: Algorithm, checkpoints: Checkpoints
) -> tuple[dict[str, float], str]:
    """Give the rule the weights that ``--test-weights`` asks for: what is known of their validation, and which."""
    val = dict(checkpoints.validated)
    # It may have been damaged since; and where there was nothing left to train, no hook of the callback has looked.
    checkpoints.find_best(trainer)
    if checkpoints.ended_within_epoch:
        # These weights were never validated, and are what --max-steps asked for.
        return {}, "last"
    if checkpoints.config.run.test_weights != "best" or checkpoints.best_step < 0:
        return val, "last"
    algorithm.load_state_dict(read_checkpoint(checkpoints.best)["state_dict"])
    if "val/accuracy" in val:
        val["val/accuracy"] = checkpoints.best_accuracy
    else:
        val = {"val/loss": checkpoints.best_loss}
    return val, f"epoch {checkpoints.best_epoch + 1}, best on validation"


def _in_words(task: Task, scores: dict[str, float]) -> str:
    """The scores of the test: as the task puts them, or by their names where a rule of a user's has others."""
    usual = set(task.scores())
    if usual and usual <= set(scores):
        return task.describe(scores)
    return ", ".join(f"test {name} {value:.4g}" for name, value in scores.items())


def _result_line(summary: dict[str, Any]) -> str:
    s = {"wall_seconds": 0.0, "feedback_seconds": 0.0, "tested_weights": "last", **summary}
    share = s["feedback_seconds"] / s["wall_seconds"] if s["wall_seconds"] else 0.0
    # Summaries of earlier versions do not say it in words.
    result = s.get("result") or f"test accuracy {s.get('test_accuracy') or math.nan:.2%}"
    names = " ".join(str(s.get(name, "")) for name in ("algo", "model", "data"))
    return (
        f"{result} ({s['tested_weights']}); {names}, "
        f"{_counted(s['epochs'], 'epoch')}, {_counted(s['steps'], 'batch', 'es')}, {s['wall_seconds']:.1f} s"
        f"{', batches captured' if s.get('captured') else f', feedback phase {share:.0%}' if share else ''}."
    )


def _counted(count: int, what: str, plural: str = "s") -> str:
    return f"{count} {what}{plural if count != 1 else ''}"


def _print_header(config: Config, run: Run, data: ImageData, algorithm: Algorithm, resumed_at: int) -> None:
    print(f"{config.run.algo} on {config.run.data} with {config.run.model}, seed {config.run.seed}")
    for origin in config.origins:
        print(f"  {origin}")
    shape = "x".join(map(str, data.input_shape))
    print(
        f"  {algorithm.task.name}, images {shape}, {data.num_classes} classes: {data.sizes['train']} training, "
        f"{data.sizes['val']} validation, {data.sizes['test']} test"
    )
    print(f"  layers {' -> '.join('x'.join(map(str, shape)) for shape in algorithm.network.shapes)}")
    if resumed_at:
        print(f"  goes on from batch {resumed_at}")
    print(f"  run folder {run.folder}", flush=True)
    if config.run.verbose:
        print(algorithm)
        for n, form in algorithm.describe().get("feedback_forms", {}).items():
            print(f"  feedback of layer {n}: {form}")
    if config.run.resume == "auto" and run.checkpoint is None:
        where = run.folder if config.run.run_dir else run.folder.parent
        print(f"--resume auto: nothing to resume in {where}; begins anew.", file=sys.stderr, flush=True)
    print(tf32_advice(config.run, choose_devices(config.run)[0]), end="", flush=True)


def _quiet_libraries() -> None:
    """Keep Lightning's advice about its own flags, and what decoders say of files that they read, out of the output.

    Errors and warnings about the run stay.
    """
    # Odd metadata, large images, pickles of an older numpy. A file that cannot be read is an error of ours.
    warnings.filterwarnings("ignore", module=r"PIL\.|torchvision\.datasets\.")
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    warnings.filterwarnings("ignore", message=".*not resumable.*")
    # A rule without optimizers is refused, in our words.
    warnings.filterwarnings("ignore", message=".*configure_optimizers.*returned `None`.*")
    # Of Lightning's own use of torch, nothing a user could change.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
