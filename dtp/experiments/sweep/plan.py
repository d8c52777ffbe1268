"""A sweep as a YAML file, and the runs that it describes. Imports no torch.

The file::

    # Where the experiment comes from, and what it is to show.
    title: Optimizers of forward and feedback weights
    base:                         # options of every run, as dtp train has them
      algo: vanilla-dtp
      data: mnist
      max_epochs: 10
    variants:                     # names, each with further options; left out: one variant
      adam forward: {optimizer: adam}
      rmsprop forward: {optimizer: rmsprop}
    grid:                         # options with several values, in every combination with each variant
      feedback_optimizer: [adam, rmsprop]
    seeds: [0, 1, 2]
    figure:                       # panels; a list of such mappings where one kind is not enough, see Part
      kind: curves
      metric: [train/accuracy, train/loss]

Later parts override earlier ones: preset, base, variant, grid, seed, and last the command line. A value of ``grid`` may
itself be a list, for options that take several values.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dtp.cli.config import RunOptions, comment_of, load_yaml, meaning, with_underscores, with_yes_and_no
from dtp.errors import UserError, did_you_mean, ended, user_path
from dtp.experiments.jobs import Job
from dtp.fields import said_of

SWEEPS = Path(__file__).parent / "named"
KEYS = ("title", "base", "variants", "grid", "seeds", "figure")
KINDS = ("curves", "values", "final")
# What a sweep writes beside the folders of its settings: its own file, and what draws it; and the figure, NAME.png.
PLAN, NUMBERS, TABLE = WRITTEN = ("sweep.yaml", "results.json", "results.md")
# Settings of a sweep; more would not end.
MOST = 10_000
# Of the name of a folder, in bytes, as file systems have it.
MOST_LETTERS = 255
AGAINST = ("epochs", "batches")
# From which likeness on an unknown metric of training is a known one misspelt; train/feedback_loss_1 is a column.
CLOSE = 0.9
# What runs measure besides the loss: in training, and in validation and test, by task.
SCORES = {
    "classification": (("accuracy",), ("accuracy", "top5")),
    "autoencoder": (("mse",), ("mse",)),
    "clustering": ((), ("purity", "nmi")),
}


@dataclass(frozen=True)
class Point:
    """One setting of a sweep, run once for each seed.

    Attributes:
        variant: the name among ``variants``; empty where there are none.
        values: what ``grid`` has set, by option.
        options: all options but the seed.
    """

    variant: str
    values: dict[str, Any]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """In words, for legends and tables."""
        values = [f"{option.replace('_', ' ')} {value_label(value)}" for option, value in self.values.items()]
        return ", ".join([*([self.variant] if self.variant else []), *values]) or "all"

    @property
    def folder(self) -> str:
        """Its folder below that of the sweep."""
        values = [f"{option}={value_label(value, '+')}" for option, value in self.values.items()]
        return re.sub(r",? +|[^\w.=,+-]+", "-", ",".join([*([self.variant] if self.variant else []), *values])) or "all"


@dataclass(frozen=True)
class Part:
    """Panels of a sweep's figure, one for each metric and each value of ``panels``.

    Attributes:
        kind: ``curves`` (a metric during training), ``values`` (its last value against a swept number) or ``final``
            (its last value, one row for each setting).
        metric: columns of metrics.csv, one or several.
        panels: what has a panel for each of its values, ``variant`` or an option of ``grid``; empty for one panel.
        x: of ``values``, the option of ``grid`` whose numbers are the horizontal axis, or of lists their length:
            ``depth`` is the length of ``widths``, ``width`` their first entry.
        against: of ``curves``, the horizontal axis: ``epochs`` or ``batches``, of those that train the forward weights.
        range: ends of the axis of the metric, in the metric's units (accuracies from 0 to 1); empty for as it comes.
    """

    kind: str = "curves"
    metric: tuple[str, ...] = ("val/accuracy",)
    panels: str = ""
    x: str = ""
    against: str = "epochs"
    range: tuple[float, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """What a sweep's file says.

    Attributes:
        name: of the file, without its ending.
        origin: the comment at its head.
    """

    name: str
    title: str
    origin: str
    points: list[Point]
    seeds: list[int]
    figure: tuple[Part, ...] = (Part(),)

    def jobs(self, folder: Path, extra: dict[str, Any] | None = None) -> dict[tuple[str, int], Job]:
        """Its runs by (name of the point, seed), each in ``folder``/POINT/seedS; seed by seed.

        Args:
            extra: options of the command line, which beat those of the file.

        Raises:
            UserError: two settings become the same by these; or the file alone names a class from outside the package.
        """
        seen: dict[tuple, str] = {}
        for point in self.points:
            self._require_named_classes(point, extra or {})
            given = {**point.options, **(extra or {})}
            options = tuple((name, meaning(name, given[name])) for name in sorted(given))
            if options in seen:
                raise UserError(
                    f"{self.name}: expected different settings, found {seen[options]!r} and {point.name!r} the same; "
                    "leave options out of the command that the sweep goes over."
                )
            seen[options] = point.name
        return {
            (point.name, seed): Job(
                folder / point.folder / f"seed{seed}", {**point.options, **(extra or {}), "seed": seed}
            )
            for seed in self.seeds
            for point in self.points
        }

    def _require_named_classes(self, point: Point, extra: dict[str, Any]) -> None:
        for flag in ("algo", "model", "data"):
            found = str(point.options.get(flag, ""))
            if ":" in found and not {flag, "trust"} & set(extra):
                raise UserError(
                    f"{self.name}: names the class {found}, a program that the command line does not name; look at it, "
                    "then give --trust to import and run what the sweep names."
                )


def require_seeds(where: str, seeds: Any) -> None:
    """Raise UserError unless ``seeds``, of the file or the option ``where``, are seeds of runs, each once."""
    limits = said_of(RunOptions, "seed", "range")
    if not isinstance(seeds, list) or not seeds or not all(type(s) is int and limits.holds(s) for s in seeds):
        raise UserError(
            f"{where}: expected a list of whole numbers from {limits.least} to {limits.most}, found {seeds!r}."
        )
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{where}: expected each number once, found {seeds}.")


def sweep_path(name: str) -> Path:
    """The file that ``name`` means: a path, or the name of one of ours.

    Raises:
        UserError: neither exists, or there is no name.
    """
    for found in (user_path(name), SWEEPS / f"{name.removesuffix('.yaml')}.yaml") if name else ():
        if found.is_file():
            return found
    names = sorted(file.stem for file in SWEEPS.glob("*.yaml"))
    wrong = f"{name}: no such sweep{did_you_mean(name, names)}" if name else "A sweep is missing"
    raise UserError(f"{wrong}; expected a YAML file, or one of {', '.join(names)}.")


def read_sweep(path: Path) -> Sweep:
    """The sweep in a file.

    Raises:
        UserError: it cannot be read, or is not a valid sweep.
    """
    text, content = load_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping with some of {', '.join(KEYS)}, found {_kind(content)}.")
    for key in content:
        if key not in KEYS:
            raise UserError(f"{path}: unknown part {key!r}{did_you_mean(str(key), KEYS)}; expected {', '.join(KEYS)}.")
    base = _options(path, "base", content.get("base"))
    variants = _mapping(path, "variants", content.get("variants")) or {"": {}}
    grid = _options(path, "grid", content.get("grid"))
    for option, values in grid.items():
        if not isinstance(values, list) or not values or None in values:
            raise UserError(f"{path}: grid, {option}: expected a list of values, found {values!r}.")
        if len({meaning(option, value) for value in values}) < len(values):
            raise UserError(f"{path}: grid, {option}: expected different values, found {values!r}; take one out.")
    settings = math.prod([len(variants), *map(len, grid.values())])
    if settings > MOST:
        raise UserError(
            f"{path}: grid: expected at most {MOST} settings, found {settings}; give its options fewer values."
        )
    points = []
    for variant, options in variants.items():
        options = _options(path, f"variants, {variant}", options)
        for values in itertools.product(*grid.values()):
            chosen = dict(zip(grid, values, strict=True))
            points.append(Point(str(variant), chosen, {**base, **options, **chosen}))
    folders = [point.folder for point in points]
    for folder in folders:
        if not folder.strip(".") or len(folder.encode()) > MOST_LETTERS:
            raise UserError(
                f"{path}: expected variants and values that make the name of a folder, found {folder[:100]!r}; give "
                f"names of letters, and short ones ({MOST_LETTERS} bytes at most)."
            )
        if folder in (*WRITTEN, f"{path.stem}.png"):
            raise UserError(
                f"{path}: expected variants called otherwise than the files beside the runs, found {folder!r}; "
                "give it another name."
            )
    if len(set(folders)) < len(folders):
        twice = next(folder for folder in folders if folders.count(folder) > 1)
        raise UserError(f"{path}: two settings would share the folder {twice!r}; give their variants other names.")
    seeds = content.get("seeds", [0])
    require_seeds(f"{path}: seeds", seeds)
    title = content.get("title", path.stem)
    figure = _figure(path, content.get("figure"), [str(variant) for variant in variants], grid)
    return Sweep(path.stem, str(title), comment_of(text), points, seeds, figure)


def _figure(path: Path, content: Any, variants: list[str], grid: Mapping[str, list[Any]]) -> tuple[Part, ...]:
    parts = []
    for figure in content if isinstance(content, list) and content else [content]:
        given: dict[str, Any] = {name: _listed(value) for name, value in _mapping(path, "figure", figure).items()}
        known = [field.name for field in fields(Part)]
        for name in given:
            if name not in known:
                raise UserError(
                    f"{path}: figure: unknown {name!r}{did_you_mean(name, known)}; expected {', '.join(known)}."
                )
        for name in ("kind", "panels", "x", "against"):
            if name in given:
                given[name] = str(given[name][0]).replace("-", "_") if len(given[name]) == 1 else str(given[name])
        part = Part(**given)
        swept = [*grid, *(["variant"] if len(variants) > 1 else [])]
        numbers = [*grid, *(["depth", "width"] if "widths" in grid else [])]
        for name, allowed in (
            ("kind", KINDS),
            ("against", AGAINST),
            ("panels", ["", *swept]),
            ("x", numbers if part.kind == "values" else [""]),
        ):
            value = getattr(part, name)
            if value not in allowed:
                names = ", ".join(filter(None, allowed)) or f"none for kind {part.kind}"
                raise UserError(f"{path}: figure, {name}: expected {names}; found {value or 'none'!r}.")
        placed: dict[float, Any] = {}
        for value in grid[swept_by(part.x)] if part.x else ():
            try:
                other = placed.setdefault(place_on_axis(part.x, value), value)
            except (TypeError, ValueError, IndexError) as error:
                kind = "lists" if part.x == "depth" else "numbers"
                raise UserError(
                    f"{path}: figure, x: expected {kind} for {part.x}, found {value!r}; give another option of grid."
                ) from error
            if other is not value and part.panels != swept_by(part.x):
                raise UserError(
                    f"{path}: figure, x: expected values of {swept_by(part.x)} that differ in {part.x}, found "
                    f"{other!r} and {value!r}, of which one would hide the other; give another option of grid."
                )
        if not part.metric or not all(isinstance(name, str) and "/" in name for name in part.metric):
            raise UserError(
                f"{path}: figure, metric: expected columns of metrics.csv, such as val/accuracy, found "
                f"{list(part.metric)}."
            )
        ends = part.range
        if ends and not (len(ends) == 2 and all(type(e) in (int, float) for e in ends) and ends[0] < ends[1]):
            raise UserError(f"{path}: figure, range: expected two numbers, the smaller first, found {list(ends)}.")
        parts.append(part)
    return tuple(parts)


def swept_by(x: str) -> str:
    """The option of the grid that the horizontal axis ``x`` stands for."""
    return "widths" if x in ("depth", "width") else x


def place_on_axis(x: str, value: Any) -> float:
    """Where a value of the option of ``x`` lies on that axis.

    Raises:
        TypeError, ValueError, IndexError: it is no number, or no list of some.
    """
    if x == "depth":
        return float(len(value))
    return float(value[0] if isinstance(value, list) else value)


def require_metrics(path: Path, figure: Sequence[Part], tasks: Collection[str]) -> None:
    """Raise UserError where runs of rules of ours, of these tasks, have no column that the sweep's figure is to show.

    Rules measure more in training than is known here: only what is close to a known name is taken for a mistake there.
    """
    trained, tested = ({name for task in tasks for name in SCORES[task][i]} | {"loss"} for i in (0, 1))
    known = [f"train/{name}{ending}" for name in sorted(trained) for ending in ("", "_epoch")]
    known += [f"{split}/{name}" for split in ("val", "test") for name in sorted(tested)]
    known += ["train/lr", "train/images_per_second", "train/feedback_share"]
    known += [f"{what}_{kind}/layer1" for what in ("feedback", "update") for kind in ("angle", "distance")]
    for metric in (metric for part in figure for metric in part.metric):
        name = re.sub(r"/layer\d+$", "/layer1", metric)
        is_open = metric.startswith("train/") and not difflib.get_close_matches(name, known, 1, CLOSE)
        if name not in known and not is_open:
            said = f"{path}: figure, metric: expected columns of metrics.csv of its runs, found {metric}"
            raise UserError(ended(said + did_you_mean(name, known)))


def _listed(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list) else (value,)


def _options(path: Path, part: str, content: Any) -> dict[str, Any]:
    try:
        options = with_underscores(_mapping(path, part, content))
    except UserError as error:
        raise UserError(f"{path}: {part}, {error}") from error
    for name in ("seed", "run_dir", "resume", "trust"):
        if name in options:
            usual = "it belongs on the command line" if name == "trust" else "the sweep itself sets it"
            why = "give seeds as a list, seeds: [0, 1]" if name == "seed" else usual
            raise UserError(f"{path}: {part}: expected no {name!r}; {why}.")
    for name, value in options.items():
        if value is None:
            raise UserError(f"{path}: {part}, {name}: expected a value, found none (null); give one, or take it out.")
        if "" in (value if isinstance(value, list) else [value]):
            # The command line of a run has no word for it, and it would have what a preset or --config says.
            raise UserError(f"{path}: {part}, {name}: expected a value, found an empty text; give one, or take it out.")
    return with_yes_and_no(options)


def _mapping(path: Path, part: str, content: Any) -> dict[str, Any]:
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: {part}: expected lines of the form 'name: value', found {_kind(content)}.")
    for name in content:
        if isinstance(name, bool | None):
            raise UserError(
                f"{path}: {part}: expected names, found {name!r}, which YAML reads in on and yes, off and no, null "
                "and ~; put the name in quotes."
            )
    return {str(name): value for name, value in content.items()}


def _kind(content: Any) -> str:
    return {"NoneType": "nothing", "list": "a list", "str": "a text"}.get(type(content).__name__, repr(content))


def value_label(value: Any, between: str = " ") -> str:
    """A value of an option in words."""
    if not isinstance(value, list):
        return str(value)
    if between == " " and len(value) > 1 and len(set(map(str, value))) == 1:
        return f"{len(value)} x {value[0]}"
    return between.join(map(str, value))
