"""Runs that differ only in their seeds, and their results: accuracies, angles, time relative to backprop."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePath
from typing import Any

import pandas

from dtp.algorithms import ALGORITHMS
from dtp.algorithms.feedback_schedule import FeedbackSchedule
from dtp.algorithms.options import FAMILIES
from dtp.cli.config import RunOptions
from dtp.data import DATA
from dtp.experiments.over_seeds import Statistic, mean_curve, statistic
from dtp.experiments.report.reading import RunRecord
from dtp.models import MODELS
from dtp.run.folder import NOT_SAVED

# What is not part of a configuration whose runs are averaged: the seed, where data lie, how a run is watched.
NOT_COMPARED = {
    "seed",
    "data_dir",
    "data_on_device",
    "num_workers",
    "accelerator",
    "logger",
    "log_every",
    "checkpoint_every",
    "diagnostics_every",
    "verbose",
}
# What two runs of one setting may have otherwise where one was made to measure the times of the other.
NOT_TIMED = {
    "max_epochs",
    "max_steps",
    "limit_train_batches",
    "limit_val_batches",
    "test_weights",
    "val_size",
    "split_seed",
    "lr_period",
}
# What of a network does not count among its sizes: nearly the same work with any value.
NOT_A_SIZE = {"activation", "leaky_slope", "init", "bias", "standardise", "batch_statistics_at_test"}
# What a run and the backprop runs that it is compared with must share for times to mean something.
SAME_MACHINE = {"device": "device", "threads": "threads", "world_size": "number of devices"}
SAME_WORK = {
    "data": "data",
    "image_size": "image size",
    "pca": "principal components",
    "task": "task",
    "batch_size": "batch size",
    "precision": "precision",
    "tf32": "tf32",
}

OTHER = "Other rules"


@dataclass(frozen=True)
class Measure:
    """What the runs of a task are judged by.

    Attributes:
        test: name in the summary.
        validation: column of the metrics.
        title: in words.
        unit: of the numbers shown.
        scale: of the numbers shown, relative to those saved.
        higher: whether more is better.
        digits: after the point.
    """

    test: str
    validation: str
    title: str
    unit: str
    scale: float
    higher: bool
    digits: int


MEASURES = {
    "classification": Measure("test_accuracy", "val/accuracy", "accuracy", "%", 100.0, True, 2),
    "autoencoder": Measure("test_mse", "val/mse", "mean square error of a pixel", "", 1.0, False, 5),
    "clustering": Measure("test_purity", "val/purity", "purity of clusters", "%", 100.0, True, 2),
}
LOSS = Measure("test_loss", "val/loss", "loss", "nats", 1.0, False, 4)


@dataclass(eq=False)
class Group:
    """Runs of one configuration, in the order of their seeds.

    Attributes:
        options: the configuration of the first.
        label: what sets it apart from the other groups of its study, in a few words; filled in by :func:`studies`.
        costs: what :func:`compare_costs` found: batch, epoch and wall, each relative to backprop.
        notes: what a reader must know to judge the row; filled in by those who know.
    """

    runs: list[RunRecord]
    options: dict[str, Any]
    label: str = ""
    costs: dict[str, Statistic] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def rule(self) -> str:
        return str(self.options["algo"])

    @property
    def family(self) -> str:
        return next((family for family, rules in FAMILIES.items() if self.rule in rules), OTHER)

    @property
    def finished(self) -> list[RunRecord]:
        return [run for run in self.runs if run.state == "finished"]

    @cached_property
    def task(self) -> str:
        return task_of(self.options, self.runs)

    @cached_property
    def measure(self) -> Measure:
        measure = MEASURES.get(self.task, LOSS)
        lacking = self.finished and all(run.summary.get(measure.test) is None for run in self.finished)
        return LOSS if lacking else measure

    @property
    def network(self) -> str:
        """In words: mlp 256-256 tanh."""
        return describe_network(self.options)

    @cached_property
    def test(self) -> Statistic | None:
        return self.of_summaries(self.measure.test)

    def of_summaries(self, name: str) -> Statistic | None:
        return statistic(run.summary.get(name) for run in self.finished)

    @property
    def passes(self) -> list[float]:
        """Epochs that trained the forward weights, of each run."""
        return [forward_passes(self.options, run) for run in self.finished or self.runs]

    @cached_property
    def images_per_second(self) -> Statistic | None:
        """Of the training batches, each image as often as it was seen."""
        timed = [run for run in self.finished or self.runs if training_seconds(run) > 0]
        return statistic(
            run.at_the_end("step") * run.options.get("batch_size", 0) / training_seconds(run) for run in timed
        )

    @cached_property
    def feedback_share(self) -> Statistic | None:
        found = [run.summary for run in self.finished]
        # Batches that were captured whole have no feedback phase that could be timed.
        timed = [s for s in found if s.get("wall_seconds") and not s.get("captured")]
        return statistic(s.get("feedback_seconds", 0.0) / s["wall_seconds"] for s in timed)

    def angles(self, kind: str) -> dict[int, Statistic]:
        """The last ``update_angle`` or ``feedback_angle`` in degrees, by layer, over the runs that have ended."""
        found = [run.last_layers(kind) for run in self.finished or self.runs]
        layers = sorted({layer for angles in found for layer in angles})
        each = {layer: statistic(angles.get(layer) for angles in found) for layer in layers}
        return {layer: angle for layer, angle in each.items() if angle is not None}

    def course(self, run: RunRecord) -> pandas.DataFrame:
        """What ``run`` had come to at the end of each epoch that trained its forward weights.

        Columns: number (how many passes over the training set have trained these weights by then: 1, 2, ..., or less
        where a warm-up took batches of the first), seconds (of the training batches up to there, those of feedback
        alone among them), validation (the task's measure on the validation set, or not a number).
        """
        ends = run.ends.assign(
            validation=[row.get(self.measure.validation) for row, _ in run.column("train/images_per_second")],
            number=[_passes_until(self.options, run, int(epoch) + 1) for epoch in run.ends["epoch"]],
        )
        return ends.loc[_trains_forward(self.options, run)]

    @cached_property
    def curve(self) -> pandas.DataFrame:
        """Mean and deviation of the validation measure, as shown, by epoch of the forward weights.

        It ends where the shortest of the runs does.
        """
        courses = [self.course(run).dropna(subset="validation") for run in self.finished or self.runs]
        scale = self.measure.scale
        return mean_curve(
            [dict(zip(c["number"], scale * c["validation"].astype(float), strict=True)) for c in courses if len(c)]
        )


@dataclass(eq=False)
class Study:
    """Groups on one dataset with one task: what belongs into one table and one set of figures."""

    data: str
    task: str
    groups: list[Group]

    @property
    def title(self) -> str:
        task = "" if self.task == "classification" else f", {self.task}"
        return f"{self.data}{task}"


# --- grouping ---------------------------------------------------------------------------------------------------------


def studies(runs: Sequence[RunRecord]) -> list[Study]:
    """Runs that have a configuration, grouped and sorted: studies by name, groups by family, rule and label."""
    groups: dict[str, Group] = {}
    for run in runs:
        if run.options:
            options = with_defaults(run.options)
            key = json.dumps(_compared(options), sort_keys=True, default=str)
            groups.setdefault(key, Group([], options)).runs.append(run)
    found: dict[tuple[str, str], Study] = {}
    for group in groups.values():
        # Sorting keeps the order of names among runs of one seed.
        group.runs.sort(key=lambda run: run.seed or 0)
        data = describe_data(group.options)
        found.setdefault((data, group.task), Study(data, group.task, [])).groups.append(group)
    for study in found.values():
        _label(study.groups)
        study.groups.sort(key=lambda group: (place(group.rule), len(group.label), group.label))
    return [found[key] for key in sorted(found)]


def place(rule: str) -> tuple[int, str]:
    """A key that sorts rules by family, and those of none to the end."""
    rules = [rule for rules in FAMILIES.values() for rule in rules]
    return rules.index(rule) if rule in rules else len(rules), rule


def with_defaults(options: dict[str, Any]) -> dict[str, Any]:
    """``options`` as a version with all of today's options would have saved them.

    So runs made before an option existed stay together with those made after, and without options that have gone.
    """
    known: dict[str, Any] = {}
    registries = (ALGORITHMS, MODELS, DATA)
    found = [registry.entries.get(str(options[registry.flag])) for registry in registries]
    entries = [entry for entry in found if entry is not None]
    if len(entries) < len(registries):
        # A rule, network or dataset of the user's, which is a program, and nothing that is read here is run: as saved.
        return dict(options)
    for cls in (RunOptions, *(entry.load_options() for entry in entries)):
        for option in dataclasses.fields(cls):
            if option.default is not dataclasses.MISSING:
                known[option.name] = option.default
            elif option.default_factory is not dataclasses.MISSING:
                known[option.name] = option.default_factory()
    for name in NOT_SAVED:
        known.pop(name, None)
    saved = {
        name: value
        for name, value in options.items()
        # None is what an option was whose kind has changed since.
        if (value is not None if name in known else value not in (None, 0, "", []))
    }
    return {**known, **saved}


def _compared(options: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in options.items() if name not in NOT_COMPARED}
    kept["task"] = task_of(options)
    if _reads_folder(options):
        # Another folder is another dataset; where it lies says nothing.
        kept["data_dir"] = PurePath(str(options.get("data_dir", ""))).name
    return kept


def _reads_folder(options: dict[str, Any]) -> bool:
    return options["data"] == "imagefolder" or ":" in str(options["data"])


def task_of(options: dict[str, Any], runs: Sequence[RunRecord] = ()) -> str:
    """classification, autoencoder or clustering: as the runs say, else as the options and the rule do."""
    said = next((run.summary["task"] for run in runs if run.summary.get("task")), options.get("task", "auto"))
    if said != "auto":
        return str(said)
    rule = ALGORITHMS.entries.get(str(options["algo"]))
    return getattr(rule.load_options(), "tasks", ("classification",))[0] if rule else "classification"


def _label(groups: Sequence[Group]) -> None:
    """Give each group its rule as label, and what sets it apart where several have the same."""
    for rule in sorted({group.rule for group in groups}):
        same = [group for group in groups if group.rule == rule]
        compared = [_compared(group.options) for group in same]
        names = sorted({name for options in compared for name in options})
        differing = [name for name in names if len({json.dumps(o.get(name), default=str) for o in compared}) > 1]
        for group, options in zip(same, compared, strict=True):
            group.label = rule
            if differing and len(differing) <= 3:
                words = ", ".join(f"{name.replace('_', ' ')} {shown(options.get(name))}" for name in differing)
                group.label = f"{rule} ({words})"
            elif differing:
                group.label = f"{rule} ({_folder_name(group)})"
    seen: dict[str, int] = {}
    for group in groups:
        seen[group.label] = seen.get(group.label, 0) + 1
        if seen[group.label] > 1:
            group.label += f" #{seen[group.label]}"


def _folder_name(group: Group) -> str:
    """The folder that the runs of a group share, or that of its only run."""
    run = group.runs[0]
    return run.folder.parent.name if run.folder.name.startswith("seed") else run.folder.name


def shown(value: Any) -> str:
    """A value of an option, as a person would write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        if len(value) > 2 and value.count(value[0]) == len(value):
            return f"{len(value)}x{shown(value[0])}"
        return "-".join(shown(item) for item in value) or "none"
    return f"{value:.4g}" if isinstance(value, float) else "unset" if value in (None, "") else str(value)


# --- in words ---------------------------------------------------------------------------------------------------------


def model_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those of ``options`` that belong to the network; none for a network of the user's, which is not imported."""
    network = MODELS.entries.get(str(options["model"]))
    fields = dataclasses.fields(network.load_options()) if network else ()
    return {option.name: options[option.name] for option in fields if option.name in options}


def describe_network(options: dict[str, Any]) -> str:
    """The network in words: its sizes, its nonlinearity, and what else is not as usual."""
    model = str(options["model"])
    own = model_options(options)
    sizes = [f"{name} {shown(own[name])}" for name in ("kernels", "channels", "strides") if name in own]
    widths = own.get("widths", own.get("hidden"))
    if widths not in (None, []):
        sizes.append(shown(widths))
    elif widths == [] and "widths" in own:
        sizes.append("one layer")
    usual = MODELS.entries[model].load_options() if own else None
    more = []
    if own.get("bias") is False:
        more.append("no biases")
    if own.get("standardise", "none") != "none":
        more.append(f"standardise {own['standardise']}")
    if own.get("batch_norm"):
        more.append("batch normalisation")
    if usual is not None and own.get("outputs") is not None and "outputs" in own:
        more.append("square output" if own["outputs"] == 0 else f"{own['outputs']} outputs")
    return " ".join([model, *sizes, *([str(own["activation"])] if "activation" in own else []), *more])


def dataset(options: dict[str, Any], summary: dict[str, Any] | None = None) -> tuple[str, str]:
    """Which known dataset the images are, and what must be said of them.

    Class folders are taken for CIFAR-10 or ImageNet where their name and, in a summary, their numbers of images say so.
    The name is empty for images that are none, or no whole images.
    """
    name = str(options["data"])
    if options.get("pca"):
        return "", f"ours the first {options['pca']} principal components"
    if name != "imagefolder":
        return name, ""
    folder = PurePath(str(options.get("data_dir", ""))).name.lower().replace("-", "").replace("_", "")
    counts = None
    if summary and "train_images" in summary:
        counts = summary.get("train_images", 0) + summary.get("val_images", 0), summary.get("test_images", 0)
    size = options.get("image_size")
    if "cifar10" in folder.replace("cifar100", "") and size == 32 and counts in (None, (50000, 10000)):
        if "lossless" in folder:
            return "cifar10", ""
        what = (
            "CIFAR-10 recompressed as JPEG" if "jp" in folder else "CIFAR-10 from class folders, perhaps recompressed"
        )
        return "cifar10", f"ours {what}, theirs the original"
    if "imagenet" in folder and size == 224 and (counts is None or counts[0] > 1_200_000):
        return "imagenet", ""
    return "", ""


def describe_data(options: dict[str, Any]) -> str:
    """The dataset in words."""
    name = str(options["data"])
    if _reads_folder(options):
        name = f"{PurePath(str(options.get('data_dir', ''))).name or name} ({name})"
        if options.get("image_size"):
            name += f", {options['image_size']} pixels"
    return f"{name}, {options['pca']} principal components" if options.get("pca") else name


# --- epochs and seconds -----------------------------------------------------------------------------------------------


def forward_passes(options: dict[str, Any], run: RunRecord) -> float:
    """Passes over the training set that trained the forward weights; an epoch that was cut short counts as one."""
    return _passes_until(options, run, run.epochs)


def _passes_until(options: dict[str, Any], run: RunRecord, epoch: int) -> float:
    """Those in the epochs before ``epoch``; an int where they are whole."""
    length = run.batches_per_epoch
    passes = FeedbackSchedule.of(options).forward_epochs(epoch * length, length)
    return int(passes) if passes == int(passes) else passes


def _trains_forward(options: dict[str, Any], run: RunRecord) -> pandas.Series:
    """Whether each epoch that has ended trained the forward weights."""
    schedule, length = FeedbackSchedule.of(options), run.batches_per_epoch
    return pandas.Series([schedule.trains_forward(int(epoch), length) for epoch in run.ends["epoch"]], dtype=bool)


def training_seconds(run: RunRecord) -> float:
    """Seconds of the training batches, without validation, angles and checkpoints."""
    return run.at_the_end("seconds")


# --- cost relative to backprop ----------------------------------------------------------------------------------------

COSTS: dict[str, Callable[[dict[str, Any], RunRecord], float]] = {
    "batch": lambda options, run: training_seconds(run) / max(run.steps, 1),
    "epoch": lambda options, run: training_seconds(run) / (forward_passes(options, run) or 1),
    "wall": lambda options, run: run.summary.get("wall_seconds", 0.0),
}


def add_costs(studies: Sequence[Study], timed: Sequence[Study] = ()) -> None:
    """Fill in the costs of all groups, from the runs themselves or, if there are any, from those of ``timed``."""
    for study in timed or studies:
        compare_costs(study)
    for study in studies if timed else ():
        take_costs(study, timed)


def compare_costs(study: Study) -> None:
    """Fill in the costs of each group, or say why there are none.

    They are relative to the backprop runs of the same work on the same machine.
    """
    baselines = [group for group in study.groups if group.rule == "bp" and group.finished]
    for group in study.groups:
        if not group.finished:
            continue
        ratios: dict[str, list[float]] = {name: [] for name in COSTS}
        used: list[Group] = []
        for run in group.finished:
            same = _baseline(group, run, baselines)
            if same is None:
                continue
            baseline, runs = same
            used.append(baseline)
            for name, cost in COSTS.items():
                theirs = statistics.fmean(cost(baseline.options, other) for other in runs)
                if theirs > 0 and (name != "epoch" or group.passes[0]):
                    ratios[name].append(cost(group.options, run) / theirs)
        costs = {name: statistic(found) for name, found in ratios.items()}
        group.costs = {name: cost for name, cost in costs.items() if cost is not None}
        if not used:
            group.notes.append("time not comparable: " + _why_not(group, baselines))
            continue
        if len(used) < len(group.finished):
            group.notes.append(
                f"time of {len(used)} of {len(group.finished)} runs; no `bp` on the device of the others"
            )
        group.notes.extend(_differences(group, used[0]))


def take_costs(study: Study, timed: Sequence[Study]) -> None:
    """Fill in the costs of each group from those of the same setting in ``timed``, runs made to measure times.

    Of a batch and of an epoch alone: the whole runs are not of one length.
    """
    measured = {_timed_key(group): group for other in timed for group in other.groups if group.finished}
    for group in study.groups:
        other = measured.get(_timed_key(group))
        if other is None:
            group.notes.append("time not comparable: no run of this setting among those that times are of")
            continue
        group.costs = {name: cost for name, cost in other.costs.items() if name != "wall"}
        group.notes += [note for note in other.notes if note.startswith("time")]


def _timed_key(group: Group) -> str:
    kept = {name: value for name, value in _compared(group.options).items() if name not in NOT_TIMED}
    return json.dumps(kept, sort_keys=True, default=str)


def unsteadiness(study: Study) -> tuple[Group, float] | None:
    """The group whose epochs of one kind took the most different times, and the longest over the shortest.

    They are times of one machine. None where no times are compared. First epochs, which prepare much, do not count.
    """
    found = []
    for group in study.groups:
        for run in group.finished if group.costs else ():
            kinds = _trains_forward(group.options, run)
            times = run.ends.assign(kind=kinds, group=group, machine=str(_machine(run)))
            found.append(times.loc[kinds.duplicated() & (times["rate"] > 0)])
    if not any(map(len, found)):
        return None
    rates: Any = pandas.concat(found).groupby(["group", "kind", "machine"], sort=False)["rate"]
    spreads = rates.max() / rates.min()
    return spreads.idxmax()[0], spreads.max()


def _baseline(group: Group, run: RunRecord, baselines: Sequence[Group]) -> tuple[Group, list[RunRecord]] | None:
    """The backprop group most like ``group`` of those of the same work, and its runs on the same machine."""
    found = []
    for baseline in baselines:
        runs = [other for other in baseline.finished if _machine(other) == _machine(run)]
        if runs and _work(baseline) == _work(group):
            own, other = _compared(group.options), _compared(baseline.options)
            alike = sum(own.get(name) == value for name, value in other.items())
            found.append((group is baseline, alike, baseline, runs))
    if not found:
        return None
    *_, baseline, runs = max(found, key=lambda item: item[:2])
    return baseline, runs


def _machine(run: RunRecord) -> dict[str, Any]:
    return {name: run.summary.get(name) for name in SAME_MACHINE}


def _sizes(options: dict[str, Any]) -> dict[str, Any]:
    own = {name: value for name, value in model_options(options).items() if name not in NOT_A_SIZE}
    return {"model": options["model"], **own}


def _work(group: Group) -> dict[str, Any]:
    options = {**group.options, "task": group.task, "data": describe_data(group.options)}
    return {**_sizes(options | {"data": group.options["data"]}), **{name: options.get(name) for name in SAME_WORK}}


def _why_not(group: Group, baselines: Sequence[Group]) -> str:
    """What the nearest backprop group has otherwise."""
    if not baselines:
        return "no finished `bp` run on these images"
    words = []
    for baseline in baselines:
        ours, theirs = _work(group), _work(baseline)
        differing = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        named = list(dict.fromkeys(SAME_WORK.get(name, "network") for name in differing))
        machines = [_machine(run) for run in baseline.finished]
        first = _machine(group.finished[0])
        if first not in machines:
            named += [words for name, words in SAME_MACHINE.items() if machines[0][name] != first[name]]
        words.append(named)
    nearest = min(words, key=len)
    return f"no `bp` run of the same {', '.join(nearest)}"


def _differences(group: Group, baseline: Group) -> list[str]:
    """What must be said of a comparison of times that is made nevertheless."""
    notes = []
    ours, theirs = model_options(group.options), model_options(baseline.options)
    other = [
        f"{name.replace('_', ' ')} {shown(theirs.get(name))}"
        for name in ("activation", "bias", "standardise")
        if ours.get(name) != theirs.get(name)
    ]
    if other:
        notes.append(f"time against `bp` with {', '.join(other)}")
    budgets = [sorted({(n, run.steps) for n, run in zip(g.passes, g.finished, strict=True)}) for g in (group, baseline)]
    passes = [{n for n, _ in budget} for budget in budgets]
    if passes[0] != passes[1]:
        counts = [" or ".join(str(n) for n in sorted(found)) for found in passes]
        notes.append(f"wall time of {counts[0]} epochs of forward training against {counts[1]} of `bp`")
    return notes
