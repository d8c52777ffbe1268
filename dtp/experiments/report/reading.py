"""Reading run folders: finished, unfinished and failed ones. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas

from dtp.cli.config import read_yaml
from dtp.errors import UserError
from dtp.experiments.jobs import FAILURE_FILE
from dtp.run.folder import CHECKPOINTS, CONFIG_FILE, METRICS_FILE, SUMMARY_FILE
from dtp.run.reading import Row, read_rows, read_summary

# Options that are counted with, and the least that they can be.
COUNTED = {
    "max_epochs": 0,
    "max_steps": -1,
    "batch_size": 0,
    "feedback_warmup": 0,
    "feedback_warmup_epochs": 0,
    "extra_feedback_epochs": 0,
    "seed": 0,
}

State = Literal["finished", "unfinished", "failed"]


@dataclass(frozen=True)
class RunRecord:
    """What a run folder says.

    Attributes:
        folder: where it lies.
        name: the same, below the folder that was asked for.
        state: finished (as long as its configuration says, and tested), failed by its own fault, or neither.
        options: its configuration; empty where it failed before it had one.
        commands: what was typed, first start first.
        rows: its metrics, one dictionary of the finite numbers for each step that has any.
        summary: what it wrote at its end; empty if it has not finished.
        failure: why it failed, in one sentence.
    """

    folder: Path
    name: str
    state: State
    options: dict[str, Any]
    commands: tuple[str, ...]
    rows: tuple[Row, ...]
    summary: dict[str, Any]
    failure: str

    @property
    def seed(self) -> int | None:
        return self.options.get("seed")

    def column(self, name: str) -> list[tuple[Row, float]]:
        """The rows that have a number in column ``name``, and that number."""
        return [(row, row[name]) for row in self.rows if name in row]

    def last_layers(self, kind: str) -> dict[int, float]:
        """The last measured ``kind/layerN`` by layer; empty where none was measured."""
        prefix = f"{kind}/layer"
        for row in reversed(self.rows):
            found = {int(name.removeprefix(prefix)): row[name] for name in row if name.startswith(prefix)}
            if found:
                return dict(sorted(found.items()))
        return {}

    @cached_property
    def ends(self) -> pandas.DataFrame:
        """A row for each end of an epoch, of any kind: epoch, step, rate (images per second) and seconds.

        The seconds are those of all training batches up to there, without validation, angles and checkpoints.
        """
        found = [(row["epoch"], row["step"], rate) for row, rate in self.column("train/images_per_second")]
        ends = pandas.DataFrame(found, columns=["epoch", "step", "rate"], dtype=float)
        images = ends["step"].diff().fillna(ends["step"]) * self.options.get("batch_size", 0)
        ends["seconds"] = (images / ends["rate"]).where(ends["rate"] > 0, 0.0).cumsum()
        return ends

    def at_the_end(self, column: str) -> float:
        """Of ``ends``, the last; 0 where no epoch has ended."""
        return float(self.ends[column].iloc[-1]) if len(self.ends) else 0.0

    @property
    def epochs(self) -> int:
        """Epochs that it has trained, of any kind."""
        return self.summary["epochs"] if self.summary else len(set(self.ends["epoch"]))

    @cached_property
    def batches_per_epoch(self) -> float:
        """Batches of an epoch, the mean over those that it has trained."""
        steps = self.summary["steps"] if self.summary else self.at_the_end("step")
        return steps / max(1, self.epochs)

    @property
    def steps(self) -> int:
        """Batches that it has trained on."""
        return self.summary["steps"] if self.summary else int(max((row["step"] for row in self.rows), default=0))


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """All runs in ``folders`` and below, each once, in the order of their names.

    Raises:
        UserError: a folder that is none, or holds no run; a file in a run folder that is damaged.
    """
    records: dict[Path, RunRecord] = {}
    for asked in folders:
        if not asked.is_dir():
            what = "is a file" if asked.exists() else "no such folder"
            raise UserError(f"{asked}: {what}; expected a run folder, or one that holds run folders.")
        found = _run_folders(asked)
        if not found:
            raise UserError(
                f"{asked}: no runs found, which are folders with {CONFIG_FILE} or {FAILURE_FILE}; give the folder of a "
                "run, a sweep or a search."
            )
        for folder in found:
            name = folder.relative_to(asked).as_posix()
            records.setdefault(folder.resolve(), read_run(folder, folder.name if name == "." else name))
    return sorted(records.values(), key=lambda record: (_natural(record.name), str(record.folder)))


def _run_folders(folder: Path) -> list[Path]:
    """Run folders in ``folder``, itself included; nothing is looked for within a run."""
    found = []
    for path, below, files in os.walk(folder, followlinks=False):
        is_run = CONFIG_FILE in files and (METRICS_FILE in files or SUMMARY_FILE in files or CHECKPOINTS in below)
        if is_run or FAILURE_FILE in files:
            found.append(Path(path))
            below.clear()
        below.sort()
    return found


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts seed10 after seed9."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split("([0-9]+)", name) if part]


def read_run(folder: Path, name: str | None = None) -> RunRecord:
    """The run in ``folder``.

    Raises:
        UserError: one of its files cannot be read, or is damaged.
    """
    config = folder / CONFIG_FILE
    options = read_yaml(config) if config.is_file() else {}
    comments = _text(config).splitlines() if config.is_file() else []
    commands = [line.partition(": ")[2] for line in comments if line.startswith(("# command: ", "# resumed: "))]
    for flag in ("algo", "model", "data", "seed") if config.is_file() else ():
        if flag not in options:
            raise UserError(f"{config}: expected the configuration of a run, found none of its {flag!r}; move it away.")
    for option, least in COUNTED.items():
        found = options.get(option, least)
        if not (isinstance(found, int) and found >= least):
            raise UserError(
                f"{config}: {option}: expected a whole number of at least {least}, found {found!r}; move it away."
            )
    summary = read_summary(folder / SUMMARY_FILE, ("epochs", "steps")) or {}
    failure_file = folder / FAILURE_FILE
    failure = " ".join(_text(failure_file).split()) if failure_file.is_file() else ""
    # A run that was made longer has the summary of when it was shorter.
    longer = bool(summary) and not (
        summary["epochs"] >= options.get("max_epochs", 0) or 0 < options.get("max_steps", -1) <= summary["steps"]
    )
    if summary and not longer:
        state: State = "finished"
    else:
        summary, state = {}, "failed" if failure else "unfinished"
    rows = read_rows(folder / METRICS_FILE)
    return RunRecord(folder, name or folder.name, state, options, tuple(commands), tuple(rows), summary, failure)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}).") from error
