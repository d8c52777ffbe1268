"""Reading run folders: finished, unfinished and failed ones. Imports no torch."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas

from dtp.algorithms import ALGORITHMS
from dtp.algorithms.feedback_schedule import FeedbackSchedule
from dtp.cli.config import RunOptions, read_yaml
from dtp.data import DATA
from dtp.errors import UserError
from dtp.experiments.jobs import FAILURE_FILE
from dtp.fields import default_of, said_of
from dtp.models import MODELS
from dtp.run.folder import recorded_commands, recorded_images
from dtp.run.layout import CHECKPOINTS, CONFIG_FILE, METRICS_FILE, SUMMARY_FILE
from dtp.run.provenance import portable
from dtp.run.reading import Row, has_finished, read_rows, read_summary

# Options that are counted with: whole numbers of at least 0, but for --max-steps, whose -1 is no limit.
COUNTED = ("max_epochs", "max_steps", "batch_size", "feedback_warmup", "feedback_warmup_epochs")
COUNTED += ("extra_feedback_epochs", "seed")
RATE = "train/images_per_second"
State = Literal["finished", "unfinished", "failed", "damaged"]


@dataclass(frozen=True, eq=False)
class RunRecord:
    """What a run folder says.

    Attributes:
        name: of the folder, below the one that was asked for.
        state: finished (as long as its configuration says, and tested), failed by its own fault, damaged (a file cannot
            be read, and nothing else is said), or none of these.
        options: its configuration, with today's options; empty where it failed before it had one.
        commands: what was typed, first start first, without the folders of this machine.
        rows: its metrics, one dictionary of the finite numbers for each step that has any.
        summary: what it wrote at its end; empty if it has not finished.
        failure: why it failed, or what is damaged, in one sentence.
        images: which images its folder of images held, in words; empty where it does not say.
    """

    folder: Path
    name: str
    state: State
    options: dict[str, Any]
    commands: tuple[str, ...]
    rows: tuple[Row, ...]
    summary: dict[str, Any]
    failure: str
    images: str = ""

    @property
    def seed(self) -> int | None:
        """Of its options; None where it has none, as a run that failed before it had a configuration."""
        return self.options.get("seed")

    def column(self, name: str) -> list[tuple[Row, float]]:
        """The rows that have a number in column ``name``, and that number."""
        return [(row, row[name]) for row in self.rows if name in row]

    def last_layers(self, kind: str) -> dict[int, float]:
        """The last measured ``kind/layerN`` by layer; empty where none was measured after the first batch."""
        layer = re.compile(rf"{kind}/layer(\d+)")
        trained = (row for row in self.rows[::-1] if row["step"])
        layers = ({int(m[1]): row[n] for n in row if (m := layer.fullmatch(n))} for row in trained)
        return dict(sorted(next(filter(None, layers), {}).items()))

    # --- epochs and seconds ---

    @property
    def epochs(self) -> int:
        """Epochs that it has trained, of any kind."""
        return self.summary["epochs"] if self.summary else len({row["epoch"] for row, _ in self.column(RATE)})

    @property
    def steps(self) -> int:
        """Batches that it has trained on."""
        return self.summary["steps"] if self.summary else int(max((row["step"] for row in self.rows), default=0))

    @cached_property
    def batches_per_epoch(self) -> float:
        """Batches of a whole epoch; where no summary says it, of those that it has trained."""
        if "batches_per_epoch" in self.summary:
            return self.summary["batches_per_epoch"]
        # An epoch that --max-steps has cut ends in the metrics too, and once more where the run was made longer.
        ends = {row["epoch"]: row["step"] for row, _ in self.column(RATE)}
        if self.epochs and 0 in ends:
            return ends[0]
        if not self.epochs and "train_images" in self.summary:
            return max(1, self.summary["train_images"] // self.options["batch_size"])
        return self.steps / max(1, self.epochs)

    @cached_property
    def schedule(self) -> FeedbackSchedule:
        """Which of its epochs and batches trained the forward weights."""
        return FeedbackSchedule.of(self.options)

    @property
    def passes(self) -> float:
        """Passes over the training set that trained the forward weights; of an epoch that was cut short, its part."""
        return self._passes_in(self.steps if self.summary or self.epochs else 0)

    @property
    def feedback_passes(self) -> float:
        """Passes over the training set that trained feedback weights alone."""
        length = self.batches_per_epoch
        if not length:
            return self.epochs - self.passes
        return round((self.steps - self.schedule.forward_batches(self.steps, length)) / length, 3)

    def _passes_in(self, batches: float) -> float:
        """Those in the first ``batches``; an int where they are whole."""
        schedule, length = self.schedule, self.batches_per_epoch
        if not length:
            # A file of results may not say how many batches there were: whole epochs are counted then.
            schedule, length, batches = dataclasses.replace(schedule, warmup=0), 1, self.epochs
        passes = schedule.forward_epochs(batches, length)
        return int(passes) if passes == int(passes) else passes

    def course(self, column: str, against: str) -> dict[float, float]:
        """Column ``column`` against the batches, or epochs, that have trained the forward weights until then."""
        length = self.batches_per_epoch
        unit = length if against == "epochs" else 1
        return {self.schedule.forward_batches(row["step"], length) / unit: value for row, value in self.column(column)}

    @property
    def images_per_batch(self) -> int:
        """The batch size, or all training images where there are fewer."""
        size = self.options.get("batch_size", 0)
        return min(size, self.summary.get("train_images", size))

    @cached_property
    def ends(self) -> pandas.DataFrame:
        """The metrics at each end of an epoch, of any kind, and what the run had come to by then.

        Further columns: forward (whether the epoch trained the forward weights), number (how many passes over the
        training set have trained these by then: 1, 2, ..., or less where a warm-up took batches of the first), seconds
        (of all training batches up to there, without validation, angles and checkpoints).
        """
        ends = pandas.DataFrame([row for row, _ in self.column(RATE)], dtype=float)
        ends = ends.reindex(columns=list(dict.fromkeys([*ends.columns, "epoch", "step", RATE])))
        epochs = [int(epoch) for epoch in ends["epoch"]]
        images = ends["step"].diff().fillna(ends["step"]) * self.images_per_batch
        forward = [self.schedule.trains_forward(epoch, self.batches_per_epoch) for epoch in epochs]
        return ends.assign(
            forward=pandas.Series(forward, dtype=bool),
            number=[self._passes_in(step) for step in ends["step"]],
            seconds=(images / ends[RATE]).where(ends[RATE] > 0, 0.0).cumsum(),
        )

    @property
    def training_seconds(self) -> float:
        """Seconds of the training batches, without validation, angles and checkpoints."""
        return float(self.ends["seconds"].iloc[-1]) if len(self.ends) else 0.0

    @property
    def images_per_second(self) -> float | None:
        """Of the training batches, each image as often as it was seen."""
        seconds = self.training_seconds
        return float(self.ends["step"].iloc[-1]) * self.images_per_batch / seconds if seconds > 0 else None

    @property
    def feedback_share(self) -> float | None:
        """Of the feedback phase in the whole run; batches that were captured whole have none that could be timed."""
        wall = None if self.summary.get("captured") else self.summary.get("wall_seconds")
        return self.summary.get("feedback_seconds", 0.0) / wall if wall else None

    @property
    def costs(self) -> dict[str, float]:
        """Seconds of a batch, of an epoch that trains the forward weights with what belongs to it, and of the run.

        The first two are 0 where the metrics do not say the rates of all batches, as in a file that was cut off.
        """
        seconds = self.training_seconds if len(self.ends) and self.ends["step"].iloc[-1] >= self.steps else 0.0
        return {
            "batch": seconds / max(self.steps, 1),
            "epoch": seconds / (self.passes or 1),
            "wall": self.summary.get("wall_seconds", 0.0),
        }

    # --- what it was made with ---

    @property
    def machine(self) -> dict[str, Any]:
        """What it must share with the backprop runs that it is compared with for times to mean something, in words."""
        names = {"device": "device", "threads": "threads", "number of devices": "world_size"}
        return {words: self.summary.get(name) for words, name in names.items()}

    @property
    def about(self) -> dict[str, str]:
        """Versions and machine, by name; empty where it does not say so."""
        versions = self.summary.get("versions", {})
        found = {name: versions.get(name) or None for name in ("commit", "dtp", "python", "torch", "lightning")}
        return {name: "" if value is None else str(value) for name, value in {**found, **self.machine}.items()}


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """All runs in ``folders`` and below, each once, in the order of their names.

    One with a damaged file is told on stderr, and has the state damaged.

    Raises:
        UserError: not a folder, or one without runs; the files of all runs are damaged.
    """
    records: dict[Path, RunRecord] = {}
    damaged: list[UserError] = []
    for asked in folders:
        if not asked.is_dir():
            what = "is a file" if asked.exists() else "no such folder"
            raise UserError(f"{asked}: {what}; expected a run folder, or one that holds run folders.")
        found = _run_folders(asked)
        if not found:
            what = f"no runs found, which are folders with {CONFIG_FILE} or {FAILURE_FILE}"
            raise UserError(f"{asked}: {what}; give the folder of a run, a sweep or a search.")
        for folder in found:
            if folder.resolve() not in records:
                name = folder.relative_to(asked).as_posix()
                name = folder.name if name == "." else name
                try:
                    record = read_run(folder, name)
                except UserError as error:
                    damaged.append(error)
                    # Pages name no folder of this machine.
                    why = str(error).replace(f"{folder}{os.sep}", "")
                    record = RunRecord(folder, name, "damaged", {}, (), (), {}, why)
                records[folder.resolve()] = record
    if damaged and len(damaged) == len(records):
        raise damaged[0]
    for error in damaged:
        print(f"warning: {error} The run is left out.", file=sys.stderr)
    return sorted(records.values(), key=lambda record: (_natural(record.name), str(record.folder)))


def _run_folders(folder: Path) -> list[Path]:
    """Run folders in ``folder``, itself included, and behind links; nothing is looked for within a run."""
    found, seen, places = [], set(), [folder]
    # Links last: a run that lies here is called by its own place. One may lead back to where it stands.
    for place in places:
        for path, below, files in os.walk(place):
            if (real := os.path.realpath(path)) in seen:
                below.clear()
                continue
            seen.add(real)
            # A run has ended with both, whatever has become of its configuration.
            has_ended = METRICS_FILE in files and SUMMARY_FILE in files
            is_run = has_ended or CONFIG_FILE in files and {METRICS_FILE, SUMMARY_FILE, CHECKPOINTS} & {*files, *below}
            if is_run or FAILURE_FILE in files:
                found.append(Path(path))
                below.clear()
            below.sort()
            places += [link for name in below if (link := Path(path) / name).is_symlink()]
    return found


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts seed10 after seed9."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split("([0-9]+)", name) if part]


def read_run(folder: Path, name: str | None = None, finished: bool | None = None) -> RunRecord:
    """The run in ``folder``.

    Args:
        finished: whether it has, and then has a configuration; None: as that says.

    Raises:
        UserError: one of its files cannot be read, or is damaged.
    """
    config = folder / CONFIG_FILE
    if (finished or (folder / SUMMARY_FILE).is_file()) and not config.is_file():
        raise UserError(f"{config}: is missing, and nothing else says what was run; put it back, or move the run away.")
    options = read_yaml(config) if config.is_file() else {}
    text = _text(config) if config.is_file() else ""
    commands, images = tuple(map(portable, recorded_commands(text))), recorded_images(text)
    for flag in ("algo", "model", "data", "seed") if config.is_file() else ():
        if flag not in options:
            raise UserError(f"{config}: expected the configuration of a run, found none of its {flag!r}; move it away.")
    for option in COUNTED:
        least = -1 if option == "max_steps" else 0
        found = options.get(option, least)
        if not (isinstance(found, int) and found >= least):
            what = f"{option}: expected a whole number of at least {least}, found {found!r}"
            raise UserError(f"{config}: {what}; move it away.")
    summary = read_summary(folder / SUMMARY_FILE, ("epochs", "steps"))
    failure_file = folder / FAILURE_FILE
    failure = " ".join(_text(failure_file).split()) if failure_file.is_file() else ""
    # A run that was made longer has the summary of when it was shorter.
    if summary and (finished or has_finished(summary, options.get("max_epochs", 0), options.get("max_steps", -1))):
        state: State = "finished"
    else:
        summary, state = {}, "failed" if failure else "unfinished"
    rows = read_rows(folder / METRICS_FILE)
    for row in rows:
        if RATE in row and "epoch" not in row:
            where = f"{folder / METRICS_FILE}: expected the epoch of step {row['step']:g}"
            raise UserError(f"{where}, found none; fix or remove that line.")
    options = with_defaults(options) if options else {}
    return RunRecord(folder, name or folder.name, state, options, commands, tuple(rows), summary, failure, images)


def with_defaults(options: dict[str, Any]) -> dict[str, Any]:
    """``options`` as a version with all of today's options would have saved them.

    So runs made before an option existed stay together with those made after, and without options that have gone.
    """
    entries = [registry.entries.get(str(options[registry.flag])) for registry in (ALGORITHMS, MODELS, DATA)]
    if None in entries:
        # A rule, network or dataset of the user's, which is a program, and nothing that is read here is run: as saved.
        return dict(options)
    known = {
        option.name: default_of(option)
        for cls in (RunOptions, *(entry.load_options() for entry in entries if entry))
        for option in dataclasses.fields(cls)
        if said_of(cls, option.name, "varies") != "start"
    }
    # None is what an option was whose kind has changed since.
    gone = {name: (None,) if name in known else (None, 0, "", []) for name in options}
    return {**known, **{name: value for name, value in options.items() if value not in gone[name]}}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}).") from error
