"""The figures of the papers, and how they compare with ours: ``published.yaml``. Imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dtp.algorithms import ALGORITHMS
from dtp.cli.config import find_preset, said_of_options
from dtp.experiments.over_seeds import Statistic
from dtp.experiments.report.groups import Group
from dtp.experiments.report.words import describe_network, lines, model_options, value_words
from dtp.models import MODELS

FILE = Path(__file__).parent / "published.yaml"
# Options of presets that are compared in notes of their own, or not at all.
NOT_A_VALUE = {"max_epochs", "batch_size", "val_size", "image_size"}


@dataclass(frozen=True)
class PublishedFigure:
    """One published result.

    Attributes:
        source: who, and where.
        rule, data, model: as --algo, --data and --model; ``imagenet`` stands for that at 224 pixels.
        options: those of the rule that must agree.
        network: those of the model; None where --model cannot make it.
        described: the network in words.
        top: 1 or 5, of the accuracy.
        accuracy: in %.
        deviation: over their seeds, in points, if they say so.
        budget: epochs (of the forward weights), train_images, batch_size, selection; None for what they do not say.
        pretrained: whether they started from trained weights.
        preset: the name of that with their values, if any.
        notes: what else must be said.
    """

    source: str
    rule: str
    data: str
    model: str
    network: dict[str, Any] | None
    described: str
    top: int
    accuracy: float
    budget: dict[str, Any]
    notes: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    deviation: float | None = None
    pretrained: bool = False
    preset: str = ""

    @property
    def variant(self) -> str:
        """What tells it from others of the same rule and network, in words that follow the network's."""
        return "".join(f", {self.options[name]}" for name in ("schedule", "optimizer") if name in self.options)


@dataclass(frozen=True)
class Match:
    """A published result of the same rule, network and dataset as a group, and all that is not the same."""

    figure: PublishedFigure
    ours: Statistic
    notes: tuple[str, ...]

    @property
    def difference(self) -> float:
        """Ours less theirs, in points."""
        return self.ours.mean - self.figure.accuracy


@cache
def published() -> tuple[PublishedFigure, ...]:
    """All published results, in the order of the file."""
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return tuple(_figure(content["sources"], table, row) for table in content["tables"] for row in table["rows"])


def _figure(sources: dict[str, str], table: dict[str, Any], row: dict[str, Any]) -> PublishedFigure:
    top, _, kind = table["metric"].rpartition(" ")
    model, network = table["model"], table["network"]
    # Options of any value are null.
    sizes = {name: value for name, value in (_usual(model) | (network or {})).items() if value is not None}
    return PublishedFigure(
        source=sources[table["source"]],
        data=table["data"],
        model=model,
        network=network,
        described=table.get("described") or describe_network({"model": model, **sizes}),
        top=5 if top else 1,
        accuracy=row["value"] if kind == "accuracy" else round(100 - row["value"], 4),
        budget=table["budget"],
        notes=tuple(note for note in (table.get("note"), row.get("note")) if note),
        **{name: value for name, value in row.items() if name not in ("value", "note")},
    )


@cache
def _usual(model: str) -> dict[str, Any]:
    """The options of a network as they are where none are given."""
    return dataclasses.asdict(MODELS.entries[model].load_options()()) if model in MODELS.entries else {}


@cache
def matches(group: Group) -> list[Match]:
    """Published results of the very rule, network and dataset of a finished group, with all that differs in words."""
    pretrained = bool(group.options.get("init_weights"))
    return [
        Match(figure, ours.scaled(100), tuple(differences(group, figure)))
        for figure in _of_same_rule(group)
        if is_network(figure, group.options)
        and figure.pretrained == pretrained
        and (ours := group.over_seeds("test_accuracy" if figure.top == 1 else f"test_top{figure.top}"))
    ]


@cache
def nearest(group: Group) -> list[PublishedFigure]:
    """Published results of the same rule on the same dataset with another network of the kind, for orientation."""
    if matches(group):
        return []
    return [figure for figure in _of_same_rule(group) if figure.model == group.options["model"]]


def _of_same_rule(group: Group) -> list[PublishedFigure]:
    if group.task != "classification" or not group.finished:
        return []
    data, _ = group.dataset
    return [
        figure
        for figure in published()
        if figure.rule == group.rule
        and figure.data == data
        and all(group.options.get(name) == value for name, value in figure.options.items())
    ]


def is_network(figure: PublishedFigure, options: dict[str, Any]) -> bool:
    """Whether ``options`` make the network of a published result."""
    if figure.network is None or options["model"] != figure.model:
        return False
    wanted = _usual(figure.model) | figure.network
    own, same = model_options(options), said_of_options("same_network")
    return bool(own) and all(
        value is None or own.get(name) == value for name, value in wanted.items() if name not in same
    )


def differences(group: Group, figure: PublishedFigure) -> list[str]:
    """In words, all in which a group differs from a published result besides the seeds."""
    kinds = sorted({"validation" if said == "best on validation" else "last" for said in group.tested})
    values = _values(group, figure)
    return lines("differences.md.jinja", group=group, figure=figure, kinds=kinds, values=values)


def _values(group: Group, figure: PublishedFigure) -> list[str] | None:
    """Values of the preset that stands for the publication which a group does not have; None where there is none."""
    preset = find_preset(figure.preset)
    if preset is None:
        return None
    usual = {"precision": "32"} | dataclasses.asdict(ALGORITHMS.resolve(figure.rule).load_options()())
    left_out = NOT_A_VALUE | (set(model_options(group.options)) - said_of_options("same_network").keys())
    return [
        f"{name.replace('_', ' ')} {value_words(group.options.get(name))} for {value_words(value)}"
        for name, value in {**usual, **preset.values}.items()
        if name not in left_out and not _same(group.options.get(name), value)
    ]


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, int | float) and isinstance(theirs, int | float):
        return float(ours) == float(theirs)
    if isinstance(ours, list) and isinstance(theirs, list):
        # One value stands for all layers.
        length = max(len(ours), len(theirs))
        ours, theirs = (v * length if len(v) == 1 else v for v in (ours, theirs))
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    return ours == theirs
