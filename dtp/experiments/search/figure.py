"""How the results of searches are distributed over configurations, as in figure 5 of Bartunov et al. 2018."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dtp.errors import UserError
from dtp.experiments.search.study import Trial, best_trial, described_trials, read_study, result_of
from dtp.plots.style import color, finish, new_figure, save_figure
from dtp.run.provenance import portable
from dtp.run.reading import is_share
from dtp.system.files import write_atomically

# An error of none, in per cent, so that it has a logarithm.
LEAST = 1e-3


@dataclass(frozen=True)
class Drawn:
    """A study as it is drawn."""

    name: str
    folder: Path
    content: dict[str, Any]
    trials: list[Trial]

    @property
    def objective(self) -> str:
        """Name of the metric that its trials were compared by."""
        return self.content["settings"]["objective"]

    @property
    def values(self) -> list[float]:
        """What is drawn of each finished trial, the best first: the error in per cent in place of an accuracy."""
        values = [trial.value for trial in self.trials if trial.value is not None]
        return sorted(max(100 * (1 - value), LEAST) if is_share(self.objective) else value for value in values)

    @property
    def lost(self) -> int:
        """Trials that diverged or failed."""
        return sum(trial.state in ("diverged", "failed") for trial in self.trials)


def draw_studies(paths: Sequence[Path], figure: Path) -> str:
    """Draw studies side by side, write their numbers beside the figure, as JSON, and return a short table.

    Left: the share of all configurations, lost ones included, that reach an error. Right: every configuration, with
    the median and quartiles of those that finished.

    Args:
        paths: folders of studies, or their files.
        figure: the PNG; replaced if it shows the same studies.

    Raises:
        UserError: no such study, none with a finished trial, studies of different objectives, or another's figure.
    """
    studies = _read(paths)
    numbers = figure.with_suffix(".json")
    _require_own(figure, numbers, studies)
    drawing, (shares, points) = new_figure(1, 2, panel=(5.6, 1.9 + 0.42 * max(3, len(studies))))
    low, high = _range([value for study in studies for value in study.values])
    for i, study in enumerate(studies):
        _draw_share(shares, study, high, color(i))
        _draw_points(points, study, i, color(i))
    what = _what(studies[0].objective)
    for axes in (shares, points):
        axes.set_xlabel(what)
        axes.set_xlim(low, high)
        if low > 0:
            _logarithmic(axes, low, high)
        finish(axes)
    shares.set_title("Configurations that reach an error", loc="left")
    shares.set_ylabel("% of configurations")
    shares.set_ylim(-2, 102)
    points.set_title("Each configuration, with quartiles", loc="left")
    points.set_yticks(range(len(studies)), [_label(study) for study in studies])
    for i, label in enumerate(points.get_yticklabels()):
        # Their names for the left panel too.
        label.set_color(color(i))
    points.set_ylim(len(studies) - 0.5, -0.5)
    try:
        figure.parent.mkdir(parents=True, exist_ok=True)
        # The numbers first: they say whose the figure is.
        write_atomically(numbers, json.dumps({"studies": [_numbers(study) for study in studies]}, indent=1) + "\n")
        save_figure(drawing, figure)
    except OSError as error:
        raise UserError(f"{figure}: cannot be written ({error.strerror}).") from error
    return "\n".join([*(_row(study) for study in studies), f"Figure in {figure}, numbers in {numbers}"])


def _read(paths: Sequence[Path]) -> list[Drawn]:
    studies = []
    for path in paths:
        content = read_study(path)
        folder = path if path.is_dir() else path.parent
        studies.append(Drawn(folder.resolve().name, folder, content, described_trials(content)))
    for study in studies:
        if not study.values:
            raise UserError(f"{study.folder}: none of its {len(study.trials)} trials has finished; nothing to draw.")
        if study.objective != studies[0].objective:
            raise UserError(
                f"{study.folder}: searched by {study.objective}, and {studies[0].folder} by {studies[0].objective}; "
                "draw those of one objective."
            )
    names = [study.name for study in studies]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"--draw: two of the studies are called {twice!r}; each is drawn once, by its folder's name.")
    return studies


def _require_own(figure: Path, numbers: Path, studies: list[Drawn]) -> None:
    """Raise UserError for a file that is there and is not the figure, or the numbers, of these studies."""
    if figure.suffix.lower() != ".png":
        raise UserError(f"--output {figure}: expected a name that ends in .png.")
    if not figure.exists() and not numbers.exists():
        return
    try:
        before = {study["id"] for study in json.loads(numbers.read_text(encoding="utf-8"))["studies"]}
    except (OSError, ValueError, TypeError, KeyError):
        before = set()
    if not before & {study.content["id"] for study in studies}:
        found = figure if figure.exists() else numbers
        raise UserError(f"--output {found}: exists, and shows none of these studies; give another name.")


def _what(objective: str) -> str:
    name = {"val/accuracy": "error", "val/purity": "impurity"}.get(objective, objective.removeprefix("val/"))
    return f"best validation {name} over epochs" + (" (%)" if is_share(objective) else "")


def _label(study: Drawn) -> str:
    return f"{study.name}\n{len(study.values)} finished" + (f", {study.lost} lost" if study.lost else "")


def _draw_share(axes, study: Drawn, end: float, shade) -> None:
    values = study.values
    total = len(values) + study.lost
    heights = [100 * (i + 1) / total for i in range(len(values))]
    axes.step([values[0], *values, end], [0, *heights, heights[-1]], where="post", color=shade, linewidth=1.5)


def _draw_points(axes, study: Drawn, row: int, shade) -> None:
    values = study.values
    axes.boxplot(
        [values],
        positions=[row],
        orientation="horizontal",
        widths=0.5,
        whis=(0, 100),
        showfliers=False,
        manage_ticks=False,
        **{f"{part}props": {"color": shade} for part in ("box", "whisker", "cap")},
        medianprops={"color": shade, "linewidth": 2},
    )
    # Beside each other rather than on top, the same in every drawing.
    shifts = [0.16 * ((7 * i) % 5 - 2) / 2 for i in range(len(values))]
    axes.plot(values, [row + shift for shift in shifts], "o", color=shade, markersize=3.5, alpha=0.6)


def _range(values: list[float]) -> tuple[float, float]:
    """Ends of an axis for these values, with room beside them; above 0 if all values are."""
    low, high = min(values), max(values)
    if low > 0:
        return low / 1.1, max(high * 1.1, 1.5 * low)
    room = 0.05 * (high - low) or 1.0
    return low - room, high + room


def _logarithmic(axes, low: float, high: float) -> None:
    """A logarithmic axis with a few plain numbers."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_xscale("log")
    places: list[float] = []
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), [1 + i / 2 for i in range(18)]):
        if len(places) < 4:
            places = [place for power in powers for step in steps if low <= (place := step * 10.0**power) <= high]
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())


def _row(study: Drawn) -> str:
    values = study.values
    return (
        f"{study.name}: {len(values)} finished, {study.lost} lost; {_what(study.objective)}: "
        f"least {values[0]:.4g}, median {np.median(values):.4g}, most {values[-1]:.4g}"
    )


def _numbers(study: Drawn) -> dict[str, Any]:
    """The study for the record: nothing of this machine but its hardware, and of the tests only the best trial's."""
    best = best_trial(study.trials, study.objective)
    assert best is not None, "there are values to draw"
    summary = result_of(study.folder / best.folder)
    kept = ("test_accuracy", "test_loss", "test_mse", "test_purity", "result", "epochs", "steps", "device", "threads")
    return {
        "name": study.name,
        "id": study.content["id"],
        "command": portable(study.content["command"]),
        "settings": _without_paths(study.content["settings"]),
        "domain": study.content.get("domain", ""),
        "drawn": _what(study.objective),
        "least": study.values[0],
        "quartiles": np.quantile(study.values, (0.25, 0.5, 0.75)).tolist(),
        "most": study.values[-1],
        "best": {"trial": best.folder, **{name: summary[name] for name in kept if name in summary}},
        "versions": summary.get("versions", {}),
        "trials": [
            {name: value for name, value in vars(trial).items() if value not in ("", None)} for trial in study.trials
        ],
    }


def _without_paths(settings: dict[str, Any]) -> dict[str, Any]:
    options = {
        name: "FILE" if isinstance(value, str) and "/" in value else value
        for name, value in settings["options"].items()
    }
    return {**settings, "options": options}
