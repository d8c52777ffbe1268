"""The results of a sweep as numbers: over seeds, in JSON and as a table. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtp.cli.commands import command_words
from dtp.cli.config import as_arguments
from dtp.experiments.jobs import Job
from dtp.experiments.over_seeds import distinct, mean_curve, statistic
from dtp.experiments.report.reading import RunRecord, read_run
from dtp.experiments.sweep.plan import NUMBERS, TABLE, Point, Sweep
from dtp.run.folder import checkpoint_step, newest_checkpoint
from dtp.run.layout import METRICS_FILE
from dtp.run.provenance import recorded
from dtp.run.reading import ANGLES, is_share, thinned
from dtp.system.files import write_atomically, write_json

# Points of a curve that are kept.
CURVE_POINTS = 40


@dataclass(frozen=True)
class Measured:
    """A setting of the sweep, and what its runs have given.

    Attributes:
        runs: those that have finished, by seed.
        missing: why each other seed has no result, in words.
        options: what dtp train is given, without the seed.
    """

    point: Point
    runs: dict[int, RunRecord]
    missing: dict[int, str]
    options: dict[str, Any]

    def last(self, metric: str) -> list[float]:
        """The last value of a metric of each run that has it, by seed."""
        found = (run.column(metric) for run in self.runs.values())
        return [column[-1][1] for column in found if column]

    def curve(self, metric: str, against: str) -> tuple[list[float], list[float], list[float]]:
        """The mean over seeds of a metric during training, where all runs that have it have a value.

        Against the batches, or epochs, that have trained the forward weights until then. Where these stand still, as in
        epochs that train the feedback weights alone, the last value counts.

        Returns:
            Where on the horizontal axis, means, and standard deviations (0 for a single run).
        """
        courses = [course for run in self.runs.values() if (course := run.course(metric, against))]
        shared = set(courses[0]).intersection(*courses[1:]) if courses else set()
        # Neighbours are put together among these alone, so that they are the same of each run.
        curves = [{where: value for where, value in course.items() if where in shared} for course in courses]
        mean = mean_curve([thinned(curve, CURVE_POINTS) for curve in curves])
        return mean.index.tolist(), mean["mean"].tolist(), mean["deviation"].tolist()

    def angles(self, kind: str) -> dict[int, list[float]]:
        """The last ``update_angle`` or ``feedback_angle`` of each run that has it, in degrees, by layer and by seed."""
        found = [run.last_layers(kind) for run in self.runs.values()]
        return {n: [of_run[n] for of_run in found if n in of_run] for n in sorted(set().union(*found))}

    @property
    def command(self) -> str:
        """The command of one of its runs; folders of data are DIR."""
        options = {name: "DIR" if name == "data_dir" else value for name, value in self.options.items()}
        return recorded([*command_words("train"), *as_arguments(options)]) + " --seed SEED"


def collect(sweep: Sweep, jobs: Mapping[tuple[str, int], Job]) -> list[Measured]:
    """What there is of each setting of a sweep, in the order of its file.

    Raises:
        UserError: a folder holds a run of another configuration.
    """
    measured = []
    for point in sweep.points:
        runs, missing, options = {}, {}, {}
        for seed in sweep.seeds:
            job = jobs[point.name, seed]
            options = {name: value for name, value in job.options.items() if name != "seed"}
            if not job.is_finished(job.config()):
                missing[seed] = _why_missing(job)
                continue
            run = read_run(job.folder, finished=True)
            measured_until = max((row["step"] for row in run.rows), default=0)
            if measured_until < run.steps:
                # Its last values are in none of the rows that are left.
                missing[seed] = (
                    f"finished, but its {METRICS_FILE} ends after {measured_until:g} of {run.steps} batches; move "
                    "its folder away to have it trained again"
                )
            else:
                runs[seed] = run
        measured.append(Measured(point, runs, missing, options))
    return measured


def _why_missing(job: Job) -> str:
    if job.failure:
        return f"failed: {job.failure}"
    if not job.has_begun:
        return "not begun"
    checkpoint = newest_checkpoint(job.folder)
    return f"not finished, {checkpoint_step(checkpoint) if checkpoint else 0} batches so far"


def all_metrics(sweep: Sweep) -> list[str]:
    """What the figure shows, and the accuracies of validation and test."""
    return list(dict.fromkeys([*(m for part in sweep.figure for m in part.metric), "val/accuracy", "test/accuracy"]))


# --- files ------------------------------------------------------------------------------------------------------------


def write_results(sweep: Sweep, measured: Sequence[Measured], folder: Path, command: str) -> None:
    """Write ``results.json``, all numbers, and ``results.md``, a table, into ``folder``."""
    write_json(folder / NUMBERS, as_json(sweep, measured, command))
    write_atomically(folder / TABLE, as_table(sweep, measured, command))


def as_json(sweep: Sweep, measured: Sequence[Measured], command: str) -> dict[str, Any]:
    """All numbers, with what they were made with."""
    summaries = [run.summary for m in measured for run in m.runs.values()]
    return {
        "sweep": sweep.name,
        "title": sweep.title,
        "origin": sweep.origin,
        "command": command,
        "seeds": sweep.seeds,
        "runs": {"finished": len(summaries), "missing": sum(len(m.missing) for m in measured)},
        "settings": [_setting(sweep, m) for m in measured],
        # Of all runs; more than one where they were made at several times or places.
        **{
            key: _distinct(summary.get(key) for summary in summaries)
            for key in ("device", "threads", "precision", "versions")
        },
    }


def _setting(sweep: Sweep, m: Measured) -> dict[str, Any]:
    # Without diagnostics there are no angles.
    layers = {f"{kind}/layer{n}": values for kind in ANGLES for n, values in m.angles(kind).items()}
    found = {metric: statistic(m.last(metric)) for metric in all_metrics(sweep)}
    found |= {metric: statistic(values) for metric, values in layers.items()}
    numbers = {
        metric: {"values": _rounded([*s.values]), "mean": _rounded(s.mean), "deviation": _rounded(s.deviation)}
        for metric, s in found.items()
        if s
    }
    curves = {
        metric: {part.against: _rounded(where), "mean": _rounded(means), "deviation": _rounded(deviations)}
        for part in sweep.figure
        for metric in (part.metric if part.kind == "curves" else ())
        for where, means, deviations in [m.curve(metric, part.against)]
        if where
    }
    return {
        "name": m.point.name,
        **({"variant": m.point.variant} if m.point.variant else {}),
        **({"swept": m.point.values} if m.point.values else {}),
        "seeds": list(m.runs),
        **({"missing": {str(seed): why for seed, why in m.missing.items()}} if m.missing else {}),
        "last": numbers,
        **({"curves": curves} if curves else {}),
        "epochs": _distinct(run.summary["epochs"] for run in m.runs.values()),
        "epochs_of_forward_weights": _distinct(float(run.passes) for run in m.runs.values()),
        "batches": _distinct(run.summary["steps"] for run in m.runs.values()),
        "batches_per_epoch": _distinct(run.batches_per_epoch for run in m.runs.values()),
        "wall_seconds": [run.summary.get("wall_seconds") for run in m.runs.values()],
        "command": m.command,
    }


def as_table(sweep: Sweep, measured: Sequence[Measured], command: str) -> str:
    """Last values, mean and deviation over seeds, as Markdown."""
    metrics = [metric for metric in all_metrics(sweep) if any(m.last(metric) for m in measured)]
    names = [metric_name(metric) for metric in metrics]
    lines = [f"# {sweep.title}", "", f"`{command}`", ""]
    if sweep.origin:
        lines += [sweep.origin, ""]
    lines += [
        "Last values, mean ± deviation over seeds.",
        "",
        "| " + " | ".join(["setting", "seeds", "epochs of the forward weights", *names]) + " |",
        "|---" * (3 + len(names)) + "|",
    ]
    for m in measured:
        epochs = _distinct(float(run.passes) for run in m.runs.values())
        cells = [_mean_and_deviation(metric, m.last(metric)) for metric in metrics]
        first = [m.point.name.replace("|", r"\|"), ", ".join(map(str, m.runs)) or "none", _words(epochs)]
        lines.append("| " + " | ".join([*first, *cells]) + " |")
    absent = [f"- {m.point.name}, seed {seed}: {why}" for m in measured for seed, why in m.missing.items()]
    if absent:
        lines += ["", "Without result:", "", *absent]
    return "\n".join(lines) + "\n"


def metric_name(metric: str) -> str:
    """A metric in words, with its unit."""
    split, _, rest = metric.partition("/")
    split = {"train": "training", "val": "validation"}.get(split, split)
    rest = rest.removesuffix("_epoch")
    layer = f", layer {rest.removeprefix('layer')}" if rest.startswith("layer") else ""
    if layer:
        return f"{split.replace('_', ' ')}{layer}{' (degrees)' if split.endswith('angle') else ''}"
    unit = " (%)" if is_share(metric) else ""
    return f"{split} {rest.replace('_', ' ')}{unit}"


def _mean_and_deviation(metric: str, values: list[float]) -> str:
    found = statistic(values)
    return found.text(*((100, 2) if is_share(metric) else (1, 4))) if found else ""


def _words(value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values if v is not None)


def _distinct(values: Any) -> Any:
    """The one value that all have; a list of the different ones if there are several, None if there is none."""
    found = distinct(values)
    return found[0] if len(found) == 1 else found or None


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
