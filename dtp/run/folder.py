"""Run folders: where one is made, which one is resumed, what is written into it. Imports no torch."""

from __future__ import annotations

import datetime
import json
import os
import re
import shlex
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from dtp.cli.commands import command_line
from dtp.cli.config import Config, read_configuration, read_yaml, said_of_options, written_alike
from dtp.data.cache import data_folder
from dtp.data.image_files import images_in
from dtp.distributed import launcher, watch
from dtp.distributed.launcher import process_rank
from dtp.errors import UserError
from dtp.fields import flag
from dtp.run.layout import (
    CHECKPOINTS,
    CLUSTER_LOG,
    CONFIG_FILE,
    FAILURE_FILE,
    LOCK_FILE,
    METRICS_FILE,
    SUMMARY_FILE,
    WANDB_ID_FILE,
    WEIGHTS_FILE,
)
from dtp.run.provenance import masked
from dtp.run.reading import has_finished, read_summary, read_table, require_metrics
from dtp.system.files import SUFFIX, temporary_beside, write_atomically
from dtp.system.locks import try_lock

RUNS = Path("runs")
# What stands before a command in a configuration that a run has written: before the first, and so at its head, and
# before those that went on with the run.
HEADER, RESUMED = "# command: ", "# resumed: "
# Under which name a run records which images it reads, beside its options.
IMAGES = "--data-dir holds"
# How the first process of a machine tells the others, which inherit its environment, what it has chosen.
FOLDER_VARIABLE, CHECKPOINT_VARIABLE = "DTP_PROCESS_RUN_FOLDER", "DTP_PROCESS_RUN_CHECKPOINT"


def as_before(present: Container[str], config: Config | None = None) -> dict[str, Any]:
    """Values of those options among ``present`` that earlier versions lacked: of ours, and of a configuration's own."""
    before = config.said("before") if config else said_of_options("before")
    return {name: value for name, value in before.items() if name in present}


def may_vary(config: Config, *how: str) -> set[str]:
    """The options whose values may differ within one run, as :func:`dtp.fields.option` says how far (``varies``)."""
    return {name for name, varies in config.said("varies").items() if varies in how}


@dataclass(frozen=True)
class Run:
    """A run folder, and the checkpoint to go on from, if any."""

    folder: Path
    checkpoint: Path | None = None

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints, whether it exists yet or not."""
        return self.folder / CHECKPOINTS

    @property
    def summary(self) -> dict[str, Any] | None:
        """What the finished run wrote; None if it has not finished.

        Raises:
            UserError: the file is not one of ours.
        """
        return read_summary(self.folder / SUMMARY_FILE)

    def is_finished(self, config: Config) -> bool:
        """Whether it has been trained for as long as ``config`` says, and tested.

        Raises:
            UserError: it has, and longer, or been tested otherwise; or the summary is not one of ours.
        """
        finished = has_finished(self.summary, config.run.max_epochs, config.run.max_steps)
        if finished:
            require_same_test(self.folder, config)
        return finished

    def remove_leftovers(self) -> None:
        """Remove the unfinished files of processes that were killed while writing. Call it while holding the lock."""
        for path in (*self.folder.iterdir(), *self.checkpoints.glob("*")):
            if _is_leftover(path):
                with suppress(OSError):
                    path.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the folder; several processes of one run count as the first of them.

        Raises:
            UserError: another process has it.
        """
        if process_rank() > 0:
            yield
            return
        held = try_lock(self.folder / LOCK_FILE)
        if held is None:
            raise UserError(f"{self.folder}: another process is training in it; wait, or give another --run-dir.")
        with held:
            yield


def _is_leftover(path: Path) -> bool:
    """Whether a process writes, or wrote, to the file before it gets its name."""
    earlier = re.fullmatch(r"\.((config|metrics|summary|failed|wandb-id)\.\w+|writable)\.\d+", path.name)
    ours = path.name.startswith(".") or path.parent.name == CHECKPOINTS or path.name.endswith(f".png{SUFFIX}")
    return bool(earlier) or (ours and path.suffix == SUFFIX)


def open_run(config: Config, check: Callable[[Path], Any] = lambda checkpoint: None) -> Run:
    """The folder that this start of the program writes to. Creates nothing that exists already.

    On other ranks than 0 what that rank tells, which may take until it has looked at the data.

    Args:
        check: raises an exception for a checkpoint that no run can continue from; called before a folder is made.

    Raises:
        UserError: a folder that holds another run, cannot be written, or nothing to resume where a path was given.
    """
    if process_rank() > 0:
        # Rank 0 has chosen already: a folder's name holds the second it was made in, and one checkpoint may be damaged.
        told = (os.environ[FOLDER_VARIABLE], os.environ[CHECKPOINT_VARIABLE]) if FOLDER_VARIABLE in os.environ else None
        told = told or watch.ask("run")
        if told is not None:
            folder, checkpoint = told
            return Run(Path(folder), Path(checkpoint) if checkpoint else None)
    return _chosen_run(config, check)


def tell_other_ranks(run: Run) -> None:
    """Have them take the same folder and checkpoint: those that are there, and those that are yet to be started."""
    if process_rank() == 0:
        chosen = str(run.folder), str(run.checkpoint or "")
        os.environ[FOLDER_VARIABLE], os.environ[CHECKPOINT_VARIABLE] = chosen
        watch.tell("run", chosen)


def goes_on(config: Config) -> bool:
    """Whether a checkpoint is there that this start of the program goes on from."""
    run = config.run
    if not run.resume:
        return False
    if run.resume != "auto":
        path = Path(run.resume)
        return newest_checkpoint(path) is not None if path.is_dir() else path.is_file()
    if run.run_dir:
        return newest_checkpoint(Path(run.run_dir)) is not None
    return _newest_matching(config) is not None


def _newest_matching(config: Config) -> Run | None:
    """The newest run of the same configuration, with its newest checkpoint."""
    checkpoints = filter(None, map(newest_checkpoint, _parent(config).glob("*")))
    for checkpoint in sorted(checkpoints, key=lambda path: path.stat().st_mtime, reverse=True):
        folder = checkpoint.parent.parent
        if _matches(folder, config):
            return Run(folder, checkpoint)
    return None


def _chosen_run(config: Config, check: Callable[[Path], Any]) -> Run:
    run = config.run
    if run.resume and run.resume != "auto":
        return _resumed(Path(run.resume), config, check)
    if run.run_dir:
        folder = Path(run.run_dir)
        if run.resume == "auto" and (folder / CONFIG_FILE).is_file() and not _holds_nothing_else(folder, config):
            require_same_configuration(folder, recorded_options(folder), config)
            return Run(folder, newest_checkpoint(folder))
        checkpoint = newest_checkpoint(folder)
        if run.resume == "auto" and checkpoint is not None and not (folder / CONFIG_FILE).is_file():
            raise UserError(
                f"--run-dir {folder}: has checkpoints but no {CONFIG_FILE}, so no run can go on in it; put that back, "
                f"or go on in another folder: --resume {shlex.quote(str(checkpoint))} --run-dir DIR."
            )
        return _made(folder)
    if run.resume == "auto":
        found = _newest_matching(config)
        if found is not None:
            return found
    return _made(_new_folder(config))


def _holds_nothing_else(folder: Path, config: Config) -> bool:
    """Whether another run began in the folder and left nothing to go on from, nor any results."""
    return not _matches(folder, config) and not _contents(folder)


def _matches(folder: Path, config: Config) -> bool:
    try:
        # One that has finished must be the one that is asked for.
        Run(folder).is_finished(config)
        return not differing_options(recorded_options(folder), config)
    except UserError:
        # Somebody's damaged run is no reason not to find or start another.
        return False


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a run folder that are called after their batch, newest first."""
    return sorted((folder / CHECKPOINTS).glob("step=*.ckpt"), key=checkpoint_step, reverse=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most batches in a run folder."""
    return next(iter(newest_first(folder)), None)


def checkpoint_step(path: Path) -> int:
    """The number of batches after which a checkpoint was written, by its name; -1 if that does not say."""
    match = re.search(r"step=(\d+)", path.name)
    return int(match.group(1)) if match else -1


def saved_config_of(resume: str) -> Path | None:
    """The configuration file of the run that ``--resume PATH`` names: a run folder, or a checkpoint in one.

    Raises:
        UserError: there is nothing at PATH.
    """
    path = Path(resume)
    if not path.exists():
        raise UserError(
            f"--resume {resume}: no such file or folder; expected a run folder, a checkpoint file, or auto."
        )
    folder = _folder_of(path)
    return None if folder is None else folder / CONFIG_FILE


def _folder_of(path: Path) -> Path | None:
    """The run folder that ``path`` is, or that the checkpoint ``path`` lies in; None for a checkpoint on its own."""
    folder = path if path.is_dir() else path.parent.parent
    in_run = path.is_dir() or path.parent.name == CHECKPOINTS
    return folder if in_run and (folder / CONFIG_FILE).is_file() else None


def saved_options(config: Config) -> dict[str, Any]:
    """The options that make up a run's configuration, by name, in the types that YAML has, without passwords."""
    of_a_start = may_vary(config, "start")
    return {name: plain(value) for name, value in config.as_dict().items() if name not in of_a_start}


def plain(value: Any) -> Any:
    """A value of an option in the types that YAML and checkpoints have, without passwords."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return value.name
    return value if value is None or isinstance(value, bool | int | float) else masked(str(value))


def images_of(config: Config) -> dict[str, str]:
    """Which images lie in the folder that is read, under :data:`IMAGES`; nothing for other datasets, or where none do.

    The place of a run's images may change, the images may not.
    """
    found = images_in(data_folder(config.data.data_dir).resolve()) if config.run.data == "imagefolder" else ""
    return {IMAGES: found} if found else {}


def recorded_options(folder: Path) -> dict[str, Any]:
    """The options of the run in ``folder``, by name, and its images as :func:`images_of`.

    Raises:
        UserError: its configuration cannot be read.
    """
    saved = read_configuration(folder / CONFIG_FILE)
    images = recorded_images((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    return {**saved, IMAGES: images} if images else saved


def recorded_images(text: str) -> str:
    """Which images a run reads, in words, as its configuration of this text says; empty where it does not say."""
    head = f"# {IMAGES}: "
    return next((line.removeprefix(head) for line in text.splitlines() if line.startswith(head)), "")


def differing_options(saved: dict[str, Any], config: Config) -> dict[str, tuple[Any, Any]]:
    """Options that must agree to resume, but differ between a saved configuration and ``config``: (saved, present)."""
    present = saved_options(config)
    if IMAGES in saved:
        # Earlier versions did not record them. Where there are none now, the run itself says what is missing.
        present |= images_of(config) or {IMAGES: saved[IMAGES]}
    saved = written_alike(as_before(present, config) | saved)
    # Passwords of earlier versions' are no difference.
    saved = {name: plain(value) for name, value in saved.items()}
    may_differ = may_vary(config, "start", "process", "resumed")
    if present.get("lr_schedule") == "constant" or present.get("lr_period") or present.get("lr_milestones"):
        # Otherwise the schedule is one over all epochs, and another one for another number of them.
        may_differ.add("max_epochs")
    return {
        name: (saved.get(name), present.get(name))
        for name in {*saved, *present} - may_differ
        if saved.get(name) != present.get(name)
    }


def require_same_configuration(
    what: Path, saved: dict[str, Any], config: Config, go_on: str = "", begin: str = ""
) -> None:
    """Raise UserError if ``config`` would compute something else than ``saved``, the configuration of ``what``.

    Args:
        go_on: how the user goes on with what there is (default: with ``--resume``).
        begin: how the user begins another (default: with another ``--run-dir``).
    """
    go_on = go_on or f"a resumed run keeps its configuration: go on with --resume {shlex.quote(str(what))} alone"
    begin = begin or "start a new run with another --run-dir"
    different = differing_options(saved, config)
    for name in ("algo", "model", "data", *sorted(different)):
        if name in different:
            before, now = different[name]
            # None where no value stands for what versions did that had no such option.
            if name not in saved and before is None:
                raise UserError(f"{what} was made before {flag(name)} existed, and computed otherwise; {begin}.")
            why = ", and its learning rate follows a schedule over all of them" if name == "max_epochs" else ""
            if name == IMAGES:
                go_on = "give the folder of those images"
            raise UserError(
                f"{what} was made with {called(name)} {_as_typed(before)}, not {_as_typed(now)}{why}; "
                f"{go_on}, or {begin}."
            )


def called(name: str) -> str:
    """An option, or the images, in a sentence before their value."""
    return "a --data-dir of" if name == IMAGES else flag(name)


def require_same_test(
    folder: Path, config: Config, begin: str = "start a new run with another --run-dir, without --resume"
) -> None:
    """Raise UserError if the run in ``folder`` has finished longer, or been tested otherwise, than ``config`` says."""
    summary, run = read_summary(folder / SUMMARY_FILE), config.run
    if summary is None:
        return
    saved = read_yaml(folder / CONFIG_FILE)
    for name in ("test_weights", "limit_val_batches"):
        if name in saved and saved[name] != getattr(run, name):
            raise UserError(
                f"{folder}: has finished with {flag(name)} {saved[name]}, found {getattr(run, name)}; {begin}."
            )
    if summary["epochs"] > run.max_epochs or 0 < run.max_steps < summary["steps"]:
        raise UserError(
            f"{folder}: has finished after {summary['epochs']} epochs ({summary['steps']} batches), more than are "
            f"asked for; {begin}."
        )


def _as_typed(value: Any) -> str:
    return (" ".join(map(str, value)) if isinstance(value, list) else str(value)) or "(nothing)"


def write_config(run: Run, config: Config, command: str) -> None:
    """Write the resolved configuration, which ``--config`` reads back, under the commands that led to it."""
    path = run.folder / CONFIG_FILE
    if path.is_file():
        before = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        header = [*before, f"{RESUMED}{command}"]
    else:
        said = (*config.origins, *(f"{name}: {found}" for name, found in images_of(config).items()))
        header = [f"{HEADER}{command}", *(f"# {line}" for line in said)]
    _write(path, "\n".join(header) + "\n" + yaml.safe_dump(saved_options(config), sort_keys=False))


def recorded_commands(text: str) -> list[str]:
    """The commands in a configuration of this text that a run has written, first start first."""
    return [line.partition(": ")[2] for line in text.splitlines() if line.startswith((HEADER, RESUMED))]


def write_summary(run: Run, summary: dict[str, Any]) -> None:
    """Write the summary of a run that has ended."""
    _write(run.folder / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")


def write_weights(run: Run, content: bytes) -> None:
    """Write the trained weights, a safetensors file as bytes."""
    _write(run.folder / WEIGHTS_FILE, content)


def write_failure(folder: Path, why: str) -> None:
    """Note in a run folder why its run failed by its own fault, or, with an empty text, that it is tried again."""
    path = folder / FAILURE_FILE
    if why:
        _write(path, why + "\n")
    else:
        path.unlink(missing_ok=True)


def _write(path: Path, content: str | bytes) -> None:
    try:
        write_atomically(path, content)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); make room or fix its permissions, then "
            f"{how_to_go_on(path.parent)}"
        ) from error


def resume_words(folder: Path) -> str:
    """The words of the command line that go on with the run in ``folder``."""
    try:
        saved = read_yaml(folder / CONFIG_FILE)
    except UserError:
        saved = {}
    return shlex.join(["--resume", str(folder), *trust_words(saved)])


def trust_words(values: Mapping[str, Any]) -> list[str]:
    """``--trust`` where a configuration names a class of the user's own, which is not run for a file alone."""
    return ["--trust"] if any(":" in str(values.get(name, "")) for name in ("algo", "model", "data")) else []


def how_to_go_on(folder: Path) -> str:
    """The end of a sentence: how the run in ``folder`` is continued, and from where."""
    checkpoint = newest_checkpoint(folder)
    again = f"{command_line('train')} {resume_words(folder)}"
    if launcher.has_launcher():
        again = f"{resume_words(folder)} under the same launcher"
    return f"go on from {checkpoint or 'the beginning'} with {again}"


def _parent(config: Config) -> Path:
    run = config.run
    return RUNS / "_".join(re.sub(r"[^\w.-]", "-", name) for name in (run.algo, run.model, run.data))


def _new_folder(config: Config) -> Path:
    if launcher.began_together():
        raise UserError(
            "Several processes were started together and must agree on the run's folder; give it with --run-dir."
        )
    stem = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-seed{config.run.seed}"
    folder, again = _parent(config) / stem, 1
    while not _is_mine(folder):
        again += 1
        folder = _parent(config) / f"{stem}-{again}"
    return folder


def _is_mine(folder: Path) -> bool:
    """Whether a new run of this process may have the folder, which is made then, for others may begin just now.

    Other ranks than 0 make none. Why a folder cannot be made is told by :func:`_made`.
    """
    if process_rank() == 0:
        with suppress(OSError):
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            return True
    return not folder.exists()


def _resumed(path: Path, config: Config, check: Callable[[Path], Any]) -> Run:
    """The run that ``--resume PATH`` goes on with: in its folder from its newest checkpoint, else in a new folder.

    A checkpoint with later ones beside it, or one outside a run folder, is not continued in place: what came after it,
    or what lies around it, would be lost.
    """
    folder, checkpoint = _folder_of(path), newest_checkpoint(path) if path.is_dir() else path
    if checkpoint is None and folder is not None:
        # Killed before its first checkpoint: from the beginning, where it was to be.
        require_same_configuration(folder, recorded_options(folder), config)
        return Run(folder)
    if checkpoint is None:
        raise UserError(f"--resume {path}: no checkpoint in {path / CHECKPOINTS}; give a run folder that has one.")
    target = Path(config.run.run_dir) if config.run.run_dir else None
    if folder is not None:
        require_same_configuration(folder, recorded_options(folder), config)
        newest = newest_checkpoint(folder)
        is_newest = newest is not None and newest.resolve() == checkpoint.resolve()
        if is_newest and (target is None or target.resolve() == folder.resolve()):
            return Run(folder, checkpoint)
    check(checkpoint)
    return Run(_made(target or _new_folder(config)).folder, checkpoint)


def _require_unused(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--run-dir {folder}: is a file; expected a folder, or a path where one can be made.")
    if folder.is_dir() and _contents(folder):
        raise UserError(
            f"--run-dir {folder}: is not empty, and nothing in it is overwritten; give another folder, or --resume "
            "auto to go on with the run in it."
        )
    for above in folder.absolute().parents:
        if is_recorded(above / CONFIG_FILE):
            raise UserError(
                f"--run-dir {folder}: lies within the run {above}, where reports look for no other; give a folder "
                "beside it."
            )


def _contents(folder: Path) -> list[Path]:
    """What a run folder holds, besides the files of a start that ended without a checkpoint or results."""
    left = [FAILURE_FILE, LOCK_FILE, WANDB_ID_FILE, METRICS_FILE]
    if is_recorded(folder / CONFIG_FILE):
        left.append(CONFIG_FILE)
    found = [path for path in folder.iterdir() if path.name not in left]
    # A cluster's script puts its log there first, and W&B the logs of all starts.
    found = [path for path in found if not (path.match(CLUSTER_LOG) or path.name in (CHECKPOINTS, "wandb"))]
    found += (folder / CHECKPOINTS).glob("*")
    if _has_results(folder / METRICS_FILE):
        found.append(folder / METRICS_FILE)
    return [path for path in found if not _is_leftover(path)]


def is_recorded(config: Path) -> bool:
    """Whether :func:`write_config` wrote the file, not a person."""
    try:
        return config.read_text(encoding="utf-8").startswith(HEADER)
    except (OSError, UnicodeDecodeError):
        return False


def _has_results(metrics: Path) -> bool:
    """Whether a metrics file holds more than the batches of a first epoch that was not finished."""
    if not metrics.exists() or (metrics.is_file() and not metrics.stat().st_size):
        return False
    try:
        columns, rows = read_table(metrics)
        require_metrics(metrics, columns)
    except UserError:
        # Not one of ours, or one that cannot be read: nothing to be overwritten.
        return True
    cells = (dict(zip(columns, row, strict=False)) for row in rows)
    return any(row.get("train/images_per_second") or (row.get("epoch") or "0") != "0" for row in cells)


def _made(folder: Path) -> Run:
    """Make a new run folder, in the first process alone."""
    if process_rank() > 0:
        return Run(folder)
    _require_unused(folder)
    run = Run(folder)
    try:
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        probe = temporary_beside(folder / "writable")
        probe.touch()
        probe.unlink()
        if any(path.name != CHECKPOINTS and not path.match(CLUSTER_LOG) for path in folder.iterdir()):
            # Of a start that came to nothing; one that is alive holds the lock.
            with run.locked():
                _require_unused(folder)
                run.remove_leftovers()
                for name in (CONFIG_FILE, FAILURE_FILE, WANDB_ID_FILE, METRICS_FILE):
                    (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"--run-dir {folder}: cannot be written ({error.strerror}); give a folder that can.") from error
    return run
