"""Runs that differ only in their seeds, and their results: accuracies, angles, time relative to backprop."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

import pandas

from dtp.algorithms import ALGORITHMS
from dtp.algorithms.options import FAMILIES
from dtp.cli.config import said_of_options
from dtp.experiments.over_seeds import Statistic, distinct, mean_curve, statistic
from dtp.experiments.report.reading import RATE, RunRecord
from dtp.experiments.report.words import (
    dataset,
    describe_data,
    describe_network,
    folder_of_images,
    model_options,
    value_words,
)
from dtp.models import MODELS

# Options that say how much was trained on; named once where all groups of a section have the same.
BUDGET = ("batch_size", "limit_train_batches", "limit_val_batches", "max_steps", "precision", "val_size")
# What is not part of a configuration whose runs are averaged: the seed, where data lie, how a run is watched.
NOT_COMPARED = {name for name, varies in said_of_options("varies").items() if varies == "process"}
NOT_COMPARED |= {"seed", *said_of_options("watching")}

OTHER = "Other rules"
# What is compared with backprop, in the order of the columns.
COSTS = ("batch", "epoch", "wall")
NO_BASELINE = "finished `bp` run on these images"


@dataclass(frozen=True)
class Measure:
    """What the runs of a task are judged by.

    Attributes:
        name: in the summary after ``test_``, in the columns of the metrics after ``val/``.
        title: in words.
        unit: of the numbers shown; shares are shown in %.
        digits: after the point.
        higher: whether more is better.
    """

    name: str
    title: str
    unit: str
    digits: int
    higher: bool = False

    @property
    def test(self) -> str:
        """Its name in summaries, of the test images."""
        return f"test_{self.name}"

    @property
    def scale(self) -> float:
        """What saved numbers are multiplied by to be shown: 100 for per cent."""
        return 100.0 if self.unit == "%" else 1.0

    def named(self, split: str) -> str:
        """With its unit, for heads and axes: test accuracy, %."""
        return ", ".join(filter(None, (f"{split} {self.title}", self.unit)))

    def shown(self, found: Statistic | None) -> str:
        """Mean, deviation and number of seeds, for a table; empty where there is none."""
        return f"{found.text(self.scale, self.digits)} ({found.n})" if found else ""


MEASURES = {
    "classification": Measure("accuracy", "accuracy", "%", 2, higher=True),
    "autoencoder": Measure("mse", "mean square error of a pixel", "", 5),
    "clustering": Measure("purity", "purity of clusters", "%", 2, higher=True),
}
LOSS = Measure("loss", "loss", "", 4)
# Further results, by the head of their column: of classifiers, and of others, where the loss is not beside an accuracy.
TOP5 = {"top 5, %": Measure("top5", "top 5", "%", 2, higher=True)}
FURTHER = {"normalised mutual information": Measure("nmi", "mutual information", "", 3, higher=True), "test loss": LOSS}


@dataclass(eq=False)
class Group:
    """Runs of one configuration, in the order of their seeds.

    Attributes:
        label: what sets it apart from the other groups of its section, in a few words; filled in by :func:`sections`.
        costs: what :func:`compare_costs` found: batch, epoch and wall, each relative to backprop.
        notes: what a reader must know to judge the row; filled in by those who know.
    """

    runs: list[RunRecord]
    label: str = ""
    costs: dict[str, Statistic] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def options(self) -> dict[str, Any]:
        """The configuration of the first."""
        return self.runs[0].options

    @property
    def rule(self) -> str:
        """What ``--algo`` was: the name of one of ours, or ``module:Class``."""
        return str(self.options["algo"])

    @property
    def family(self) -> str:
        """The title of the rules that it is drawn with; a rule that no family has is among the others."""
        return next((family for family, rules in FAMILIES.items() if self.rule in rules), OTHER)

    @property
    def finished(self) -> list[RunRecord]:
        """Those that were trained as long as they should be, and tested."""
        return [run for run in self.runs if run.state == "finished"]

    @property
    def counted(self) -> list[RunRecord]:
        """The finished ones, of each seed the newest, for another is no further sample; all where none has finished."""
        test = self.measure.test
        # One without a result takes no other's place.
        dated = [(run.summary.get(test) is not None, _moment(run), run) for run in self.finished]
        newest = {run.seed: run for *_, run in sorted(dated, key=lambda each: each[:2])}
        return [run for run in self.finished if run is newest[run.seed]] or self.runs

    @cached_property
    def task(self) -> str:
        """What the runs were for, as they say; where none has finished, as options and rule do."""
        return _task(self.options, self.runs)

    @cached_property
    def measure(self) -> Measure:
        """What the runs are judged by: that of their task; the loss where a finished run has no such result."""
        measure = MEASURES.get(self.task, LOSS)
        lacking = self.finished and all(run.summary.get(measure.test) is None for run in self.finished)
        return LOSS if lacking else measure

    @property
    def network(self) -> str:
        """In words: mlp 256-256 tanh."""
        return describe_network(self.options)

    @cached_property
    def dataset(self) -> tuple[str, str]:
        """Which known dataset its images are, and what must be said of them; as :func:`words.dataset`."""
        return dataset(self.options, self.counted[0].summary)

    @cached_property
    def compared(self) -> dict[str, Any]:
        """The options of which another value makes another group."""
        kept = {name: value for name, value in self.options.items() if name not in NOT_COMPARED}
        # Options do not say how many there were: one is auto, and a launcher starts others than they name.
        devices = str(kept.get("devices", "1"))
        asked = int(devices) * kept.get("num_nodes", 1) if devices.isdigit() else devices
        kept |= {"devices": self.runs[0].summary.get("world_size", asked), "num_nodes": 1}
        # Another folder of images is another dataset; where it lies says nothing.
        return kept | {"task": _task(self.options)} | folder_of_images(self.options)

    @cached_property
    def work(self) -> dict[str, Any]:
        """What it must share with the backprop runs that it is compared with for times to mean something, in words."""
        same = said_of_options("same_work")
        sizes = {name: value for name, value in model_options(self.options).items() if name not in same}
        return {
            "network": {"model": self.options["model"], **sizes},
            "data": describe_data(self.options),
            "image size": self.options.get("image_size"),
            "principal components": self.options.get("pca"),
            "task": self.task,
            **{name.replace("_", " "): self.options.get(name) for name in ("batch_size", "precision", "tf32")},
        }

    def needs(self, run: RunRecord) -> dict[str, Any]:
        """All of a run that must be the same: the work, and the machine."""
        network = self.work["network"]
        if network["model"] not in MODELS.entries:
            # Which options are the sizes of a network of the user's is not known.
            network = {**network, "parameters": run.summary.get("parameters")}
        return {**self.work, "network": network, **run.machine}

    @property
    def tested(self) -> list[str]:
        """How the weights that were tested had been chosen."""
        tested = [str(run.summary.get("tested_weights", "")) for run in self.finished]
        return distinct("best on validation" if "validation" in said else said or "unknown" for said in tested)

    # --- over the seeds ---

    def over_seeds(self, name: str) -> Statistic | None:
        """Of an attribute of the runs, or an entry of their summaries."""
        return statistic(getattr(run, name, run.summary.get(name)) for run in self.counted)

    @cached_property
    def test(self) -> Statistic | None:
        """The measure on the test images, as it is saved. None where no run has been tested."""
        return self.over_seeds(self.measure.test)

    @property
    def passes(self) -> list[float]:
        """Epochs that trained the forward weights, of each run."""
        return [run.passes for run in self.counted]

    def angles(self, kind: str) -> dict[int, Statistic]:
        """The last ``update_angle`` or ``feedback_angle`` in degrees, by layer, over the runs that have ended."""
        table = pandas.DataFrame([run.last_layers(kind) for run in self.counted])
        return {layer: angle for layer in sorted(table) if (angle := statistic(table[layer]))}

    @cached_property
    def curve(self) -> pandas.DataFrame:
        """Mean and deviation of the validation measure, as shown, by epoch of the forward weights.

        It ends where the shortest of the runs does.
        """
        name, scale = f"val/{self.measure.name}", self.measure.scale
        tables = [run.ends.loc[run.ends["forward"]].reindex(columns=["number", name]).dropna() for run in self.counted]
        return mean_curve([dict(zip(t["number"], scale * t[name], strict=True)) for t in tables if len(t)])


@dataclass(eq=False)
class Section:
    """Groups on one dataset with one task: what belongs into one table and one set of figures.

    Attributes:
        figures: file name, as Markdown has it in links, and caption of those beside its page.
    """

    data: str
    task: str
    groups: list[Group] = field(default_factory=list)
    figures: list[tuple[str, str]] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The dataset, and the task where that is not classification."""
        task = "" if self.task == "classification" else f", {self.task}"
        return f"{self.data}{task}"

    @property
    def measure(self) -> Measure:
        """What most of its groups are judged by."""
        return statistics.mode(group.measure for group in self.groups)

    @property
    def shared(self) -> dict[str, Any]:
        """The options that say how much was trained, where all groups have the same."""
        values = {name: distinct(group.options.get(name) for group in self.groups) for name in BUDGET}
        return {name: found[0] for name, found in values.items() if len(found) == 1}

    @property
    def tested(self) -> list[str]:
        """How the weights that were tested had been chosen."""
        return distinct(said for group in self.groups for said in group.tested)

    @property
    def further(self) -> dict[str, Measure]:
        """Further results that summaries have, by the head of their column."""
        found = {}
        for head, measure in (TOP5 if self.task == "classification" else FURTHER).items():
            means = [value.mean for group in self.groups if (value := group.over_seeds(measure.test))]
            # Of few classes the top five say nothing.
            if means and measure != self.measure and (measure.name != "top5" or min(means) < 0.97):
                found[head] = measure
        return found


# --- grouping ---------------------------------------------------------------------------------------------------------


def sections(runs: Sequence[RunRecord]) -> list[Section]:
    """Runs that have a configuration, grouped and sorted: sections by name, groups by family, rule and label."""
    groups: dict[tuple[str, str], Group] = {}
    for data, run in _with_data([run for run in runs if run.options]):
        groups.setdefault((data, _key(Group([run]).compared)), Group([])).runs.append(run)
    found: dict[tuple[str, str], Section] = {}
    for (data, _), group in groups.items():
        # Sorting keeps the order of names among runs of one seed.
        group.runs.sort(key=lambda run: run.seed or 0)
        found.setdefault((data, group.task), Section(data, group.task)).groups.append(group)
    for section in found.values():
        _label(section.groups)
        section.groups.sort(key=lambda group: (place(group.rule), len(group.label), group.label))
    return [found[key] for key in sorted(found)]


def _with_data(runs: Sequence[RunRecord]) -> list[tuple[str, RunRecord]]:
    """Runs with their datasets in words, and with their images where folders of one name held several.

    Earlier versions did not record them.
    """
    found = [(describe_data(run.options), run) for run in runs]
    images: defaultdict[str, set[str]] = defaultdict(set)
    for data, run in found:
        images[data] |= {run.images} - {""}
    return [
        (f"{data}, {run.images or 'images not recorded'}" if len(images[data]) > 1 else data, run)
        for data, run in found
    ]


def place(rule: str) -> tuple[int, str]:
    """A key that sorts rules by family, and those of none to the end."""
    rules = [rule for rules in FAMILIES.values() for rule in rules]
    return rules.index(rule) if rule in rules else len(rules), rule


def _moment(run: RunRecord) -> float:
    """When a run finished, wherever its machine stands; before all others where it does not say so."""
    try:
        return datetime.fromisoformat(run.summary.get("finished", "")).timestamp()
    except (ValueError, OverflowError, OSError):
        return -math.inf


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _task(options: dict[str, Any], runs: Sequence[RunRecord] = ()) -> str:
    """classification, autoencoder or clustering: as the runs say, else as the options and the rule do."""
    said = next((run.summary["task"] for run in runs if run.summary.get("task")), options.get("task", "auto"))
    if said != "auto":
        return str(said)
    rule = ALGORITHMS.entries.get(str(options["algo"]))
    return getattr(rule.load_options(), "tasks", ("classification",))[0] if rule else "classification"


def _label(groups: Sequence[Group]) -> None:
    """Give each group its rule as label, and what sets it apart where several have the same."""
    seen: Counter[str] = Counter()
    for group in groups:
        same = [other.compared for other in groups if other.rule == group.rule]
        names = sorted(set().union(*same))
        differing = [name for name in names if len({_key(options.get(name)) for options in same}) > 1]
        words = ", ".join(f"{name.replace('_', ' ')} {value_words(group.compared.get(name))}" for name in differing)
        if len(differing) > 3:
            # The folder that its runs share, or that of its only run.
            folder = group.runs[0].folder
            words = folder.parent.name if folder.name.startswith("seed") else folder.name
        group.label = f"{group.rule} ({words})" if words else group.rule
        seen[group.label] += 1
        if seen[group.label] > 1:
            group.label += f" #{seen[group.label]}"


# --- cost relative to backprop ----------------------------------------------------------------------------------------


def add_costs(sections: Sequence[Section], timed: Sequence[Section] = ()) -> None:
    """Fill in the costs of all groups, or say why there are none.

    If there are any ``timed``, runs made to measure times, the costs of a batch and of an epoch are taken from those of
    the same setting; those of whole runs are not, for they are not of one length.
    """
    for section in timed or sections:
        compare_costs(section)
    measured = {_timed_key(group): group for section in timed for group in section.groups if group.finished}
    for group in (group for section in sections for group in section.groups) if timed else ():
        other = measured.get(_timed_key(group))
        if other is None:
            group.notes.append("time not comparable: no run of this setting among those that times are of")
        else:
            group.costs = {name: cost for name, cost in other.costs.items() if name != "wall"}
            group.notes += [note for note in other.notes if note.startswith("time")]


def _timed_key(group: Group) -> str:
    """What two runs must share where one was made to measure the times of the other."""
    untimed = said_of_options("untimed")
    return _key({name: value for name, value in group.compared.items() if name not in untimed})


def compare_costs(section: Section) -> None:
    """Fill in the costs of each group, or say why there are none.

    They are relative to the backprop runs of the same work on the same machine, of the setting most like the group's.
    """
    baselines = [(bp, run, bp.needs(run)) for bp in section.groups if bp.rule == "bp" for run in bp.finished]
    for group in (group for group in section.groups if group.finished):
        found, unlike = [], []
        for run in group.finished:
            same = [(bp, _comparable(other)) for bp, other, needs in baselines if needs == group.needs(run)]
            unlike += [[name for name, value in group.needs(run).items() if value != n[name]] for *_, n in baselines]
            if same:
                nearest = max((bp for bp, _ in same), key=lambda bp: (bp is group, _likeness(group, bp)))
                theirs = [costs for bp, costs in same if bp is nearest]
                # Metrics without a rate of training, or cut off, have no time.
                known = {name: [costs[name] for costs in theirs if costs[name] > 0] for name in COSTS}
                means = {name: statistics.fmean(costs) if costs else 0.0 for name, costs in known.items()}
                found.append((nearest, _comparable(run), means))
        if not found:
            why = f"`bp` run of the same {', '.join(min(unlike, key=len))}" if unlike else NO_BASELINE
            group.notes.append(f"time not comparable: no {why}")
            continue
        for name in COSTS if group.passes[0] else ("batch", "wall"):
            pairs = [(own[name], theirs[name]) for _, own, theirs in found]
            ratio = statistic(own / theirs for own, theirs in pairs if own > 0 and theirs > 0)
            group.costs |= {name: ratio} if ratio else {}
        if "batch" not in group.costs:
            group.notes.append("time not comparable: no rate of training in the metrics")
        if (count := len(found)) < (total := len(group.finished)):
            group.notes.append(f"time of {count} of {total} runs; no `bp` on the device of the others")
        if "batch" in group.costs and (timed := group.costs["batch"].n) < count:
            why = "the metrics of the others do not say all rates of training"
            group.notes.append(f"time of a batch of {timed} of {total} runs; {why}")
        group.notes.extend(_differences(group, found[0][0]))


def _comparable(run: RunRecord) -> dict[str, float]:
    """The costs of a run, that of an epoch by its batches: one that is cut short takes less time for that alone."""
    return {**run.costs, "epoch": run.costs["epoch"] / (run.batches_per_epoch or 1)}


def _likeness(group: Group, other: Group) -> int:
    return sum(group.compared.get(name) == value for name, value in other.compared.items())


def _differences(group: Group, baseline: Group) -> list[str]:
    """What must be said of a comparison of times that is made nevertheless."""
    ours, theirs = model_options(group.options), model_options(baseline.options)
    other = [
        f"{name.replace('_', ' ')} {value_words(theirs.get(name))}"
        for name in ("activation", "bias", "standardise")
        if ours.get(name) != theirs.get(name)
    ]
    notes = [f"time against `bp` with {', '.join(other)}"] if other else []
    both = (group, baseline)
    counts = [" or ".join(map(str, sorted(set(g.passes)))) for g in both]
    if counts[0] != counts[1]:
        notes.append(f"wall time of {counts[0]} epochs of forward training against {counts[1]} of `bp`")
    lengths = [" or ".join(f"{n:g}" for n in sorted({run.batches_per_epoch for run in g.counted})) for g in both]
    if lengths[0] != lengths[1]:
        notes.append(f"wall time of epochs of {lengths[0]} batches against {lengths[1]} of `bp`")
    return notes


def unsteadiness(sections: Sequence[Section]) -> tuple[Group | None, float]:
    """The group whose epochs of one kind took the most different times, and the longest over the shortest.

    They are times of one machine. First epochs, which prepare much, do not count. None and 0 where no times are
    compared.
    """
    groups = [group for section in sections for group in section.groups if group.costs]
    found = [
        run.ends.loc[run.ends["forward"].duplicated() & (run.ends[RATE] > 0), ["forward", RATE]].assign(
            group=group, machine=str(run.machine)
        )
        for group in groups
        for run in group.finished
    ]
    if not any(map(len, found)):
        return None, 0.0
    rates: Any = pandas.concat(found).groupby(["group", "forward", "machine"], sort=False)[RATE]
    spreads = rates.max() / rates.min()
    return spreads.idxmax()[0], spreads.max()
