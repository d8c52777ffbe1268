"""Run folders: where one is made, which one is resumed, what is written into it. Imports no torch."""

from __future__ import annotations

import datetime
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dtp.config import Config, read_yaml
from dtp.errors import UserError

RUNS = Path("runs")
CONFIG_FILE = "config.yaml"
SUMMARY_FILE = "summary.json"
CHECKPOINTS = "checkpoints"
# How the first process of a machine tells the others, which inherit its environment, what it has chosen.
FOLDER_VARIABLE, CHECKPOINT_VARIABLE = "DTP_PROCESS_RUN_FOLDER", "DTP_PROCESS_RUN_CHECKPOINT"

# Options that may change when a run is resumed: they say how long, where and how it is watched, not what is computed.
MAY_DIFFER = {
    "max_epochs",
    "max_steps",
    "config",
    "resume",
    "run_dir",
    "logger",
    "log_every",
    "checkpoint_every",
    "diagnostics_every",
    "limit_val_batches",
    "test_weights",
    "verbose",
    "data_dir",
    "download",
    "num_workers",
    "devices",
    "num_nodes",
    "strategy",
    "accelerator",
}
# Options that belong to one start of a run, not to its configuration.
NOT_SAVED = {"config", "resume", "run_dir", "download"}


@dataclass(frozen=True)
class Run:
    """A run folder, and the checkpoint to go on from, if any."""

    folder: Path
    checkpoint: Path | None = None

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS

    @property
    def summary(self) -> dict[str, Any] | None:
        """What the finished run wrote; None if it has not finished."""
        path = self.folder / SUMMARY_FILE
        return json.loads(path.read_text()) if path.is_file() else None


def process_rank() -> int:
    """Rank of this process as its launcher (torchrun, srun, Lightning) tells it; 0 for a single process."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


def open_run(config: Config) -> Run:
    """The folder that this start of the program writes to. Creates nothing that exists already.

    Raises:
        UserError: a folder that holds another run, cannot be written, or nothing to resume where a path was given.
    """
    if process_rank() > 0 and FOLDER_VARIABLE in os.environ:
        # Started by a first process, which has chosen already; a folder's name holds the second it was made in.
        checkpoint = os.environ[CHECKPOINT_VARIABLE]
        return Run(Path(os.environ[FOLDER_VARIABLE]), Path(checkpoint) if checkpoint else None)
    found = _chosen_run(config)
    os.environ[FOLDER_VARIABLE] = str(found.folder)
    os.environ[CHECKPOINT_VARIABLE] = str(found.checkpoint or "")
    return found


def _chosen_run(config: Config) -> Run:
    run = config.run
    if run.resume and run.resume != "auto":
        found = _resumed(Path(run.resume), Path(run.run_dir) if run.run_dir else None)
        require_same_configuration(found, config)
        return found
    if run.run_dir:
        folder = Path(run.run_dir)
        found = Run(folder, newest_checkpoint(folder))
        if run.resume == "auto" and (folder / CONFIG_FILE).is_file():
            require_same_configuration(found, config)
            return found
        if process_rank() == 0:
            _require_unused(folder)
        return _made(folder)
    if run.resume == "auto":
        for folder in sorted(_parent(config).glob("*"), key=_age, reverse=True):
            checkpoint = newest_checkpoint(folder)
            if checkpoint is not None and not differing_options(folder, config):
                return Run(folder, checkpoint)
    return _made(_new_folder(config))


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most batches in a run folder."""
    checkpoints = list((folder / CHECKPOINTS).glob("step=*.ckpt"))
    return max(checkpoints, key=checkpoint_step, default=None)


def checkpoint_step(path: Path) -> int:
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
    for folder in (path, path.parent, path.parent.parent):
        if folder.is_dir() and (folder / CONFIG_FILE).is_file():
            return folder / CONFIG_FILE
    return None


def differing_options(folder: Path, config: Config) -> dict[str, tuple[Any, Any]]:
    """Options whose values differ between a run folder and ``config``, as (saved, present); all must agree."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        return {"config": (None, None)}
    saved, present = read_yaml(path), config.as_dict()
    return {
        name: (saved.get(name), present.get(name))
        for name in {*saved, *present} - MAY_DIFFER
        if saved.get(name) != present.get(name)
    }


def require_same_configuration(run: Run, config: Config) -> None:
    """Raise UserError if ``config`` would compute something else than what the run folder was made with."""
    if not (run.folder / CONFIG_FILE).is_file():
        return
    different = differing_options(run.folder, config)
    for name in ("algo", "model", "data", *sorted(different)):
        if name in different:
            saved, present = different[name]
            raise UserError(
                f"{run.folder} was made with --{name.replace('_', '-')} {_shown(saved)}, not {_shown(present)}; a "
                "resumed run keeps its configuration: leave the option out, or start a new run with another --run-dir."
            )


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def write_config(run: Run, config: Config, command: str) -> None:
    """Write the resolved configuration, which ``--config`` reads back; a resumed run keeps its first."""
    path = run.folder / CONFIG_FILE
    if path.is_file():
        return
    values = {name: value for name, value in config.as_dict().items() if name not in NOT_SAVED}
    header = "".join(f"# {line}\n" for line in [f"command: {command}", *config.origins])
    write_atomically(path, header + yaml.safe_dump(values, sort_keys=False))


def write_summary(run: Run, summary: dict[str, Any]) -> None:
    write_atomically(run.folder / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it: readers see the old or the new text, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _parent(config: Config) -> Path:
    run = config.run
    return RUNS / "_".join(re.sub(r"[^\w.-]", "-", name) for name in (run.algo, run.model, run.data))


def _new_folder(config: Config) -> Path:
    if int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1:
        raise UserError(
            "Several processes were started together and must agree on the run's folder; give it with --run-dir."
        )
    stem = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-seed{config.run.seed}"
    folder, again = _parent(config) / stem, 1
    while folder.exists():
        again += 1
        folder = _parent(config) / f"{stem}-{again}"
    return folder


def _resumed(path: Path, run_dir: Path | None) -> Run:
    if path.is_dir():
        checkpoint = newest_checkpoint(path)
        if checkpoint is None:
            raise UserError(
                f"--resume {path}: no checkpoint in {path / CHECKPOINTS}; expected a run folder that has one."
            )
        folder = path
    else:
        checkpoint, folder = path, path.parent.parent if path.parent.name == CHECKPOINTS else path.parent
    if run_dir is not None and run_dir.resolve() != folder.resolve():
        _require_unused(run_dir)
        return Run(_made(run_dir).folder, checkpoint)
    return Run(folder, checkpoint)


def _require_unused(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--run-dir {folder}: is a file; expected a folder, or a path where one can be made.")
    # A start that failed early leaves the empty folder of the checkpoints.
    if folder.is_dir() and any(path.name != CHECKPOINTS or any(path.iterdir()) for path in folder.iterdir()):
        raise UserError(
            f"--run-dir {folder}: is not empty, and nothing in it is overwritten; give another folder, or --resume "
            "auto to go on with the run in it."
        )


def _made(folder: Path) -> Run:
    try:
        (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--run-dir {folder}: cannot be written ({error.strerror}); give a folder that can.") from error
    return Run(folder)


def _age(folder: Path) -> float:
    checkpoint = newest_checkpoint(folder)
    return checkpoint.stat().st_mtime if checkpoint is not None else 0.0
