"""The page: Markdown of tables and figures, and the numbers as JSON. Deterministic: no date, no path of a machine.

What a page says, and its tables, are in the templates ``*.md.jinja`` beside this.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jinja2

from dtp.experiments.report import WRITER
from dtp.experiments.report.groups import ANGLES, BUDGET, COSTS, Group, Study, unsteadiness
from dtp.experiments.report.published import Figure, is_whole, matches, nearest
from dtp.experiments.report.reading import STATES, RunRecord
from dtp.experiments.report.words import value_words
from dtp.run.provenance import portable

MARK = f"<!-- Written by {WRITER}, which replaces this page and its figures. -->"
# Nearest published figures named for each group.
MOST_NEAREST = 3
# The longest over the shortest epoch of a setting from which times are said to be rough.
UNSTEADY = 1.3


@dataclass(eq=False)
class Report:
    """What a page is made of.

    Attributes:
        command: that made it.
        timed, timed_runs: what times are of, where it is not the runs themselves.
        figures: file name and caption of those of each study.
    """

    title: str
    command: str
    runs: Sequence[RunRecord]
    studies: Sequence[Study]
    timed: Sequence[Study] = ()
    timed_runs: Sequence[RunRecord] = ()
    figures: dict[Study, list[tuple[str, str]]] = field(default_factory=dict)

    @property
    def groups(self) -> list[Group]:
        """All groups, study by study."""
        return [group for study in self.studies for group in study.groups]

    @property
    def finished(self) -> list[RunRecord]:
        """The runs with a summary, those that were only timed among them."""
        return [run for run in (*self.runs, *self.timed_runs) if run.summary]

    @cached_property
    def usual(self) -> dict[str, str]:
        """What most of the finished runs were made with."""
        abouts = [run.about for run in self.finished]
        return {name: statistics.mode(about[name] for about in abouts) for name in abouts[0]}


def write_page(report: Report) -> str:
    """The whole page."""
    return rendered("page.md.jinja", MARK=MARK, report=report)


def notes_of(study: Study, group: Group) -> list[str]:
    """All that a reader must know to judge the row of ``group``, in words."""
    return list(filter(None, rendered("notes.md.jinja", study=study, group=group).splitlines()))


def rendered(template: str, **content: Any) -> str:
    """A Markdown template of this folder, without more than one empty line at once."""
    return re.sub(r"\n{3,}", "\n\n", _environment().get_template(template).render(content)).strip() + "\n"


@cache
def _environment() -> jinja2.Environment:
    """The filters and words of the templates, unescaped: names are in code, where an entity is shown as it is written.

    What would break a line or a table is taken out by the filters ``plain``, ``row`` and ``head``.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        extensions=["jinja2.ext.do"],
        trim_blocks=True,
        lstrip_blocks=True,
    )
    functions = (machine_differences, matches, nearest, portable, value_words)
    environment.filters |= {function.__name__: function for function in functions}
    environment.filters |= {"plain": _plain, "row": _row, "head": _head}
    environment.filters["number"] = lambda value: "" if value is None else f"{value:g}"
    environment.globals |= {"is_whole": is_whole, "notes_of": notes_of, "unsteadiness": unsteadiness}
    environment.globals |= {"ANGLES": ANGLES, "BUDGET": BUDGET, "COSTS": COSTS, "STATES": STATES}
    environment.globals |= {"MOST_NEAREST": MOST_NEAREST, "UNSTEADY": UNSTEADY}
    return environment


def _plain(text: str) -> str:
    return " ".join(text.split())


def _row(text: str) -> str:
    cells = text.removesuffix("\n").split("\n")
    return "| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in cells) + " |\n"


def _head(text: str) -> str:
    return _row(text) + "|" + "---|" * text.count("\n") + "\n"


def machine_differences(runs: Sequence[RunRecord]) -> dict[str, list[str]]:
    """In what runs differ that should have nothing to do with their results, with the values."""
    names = {
        "commit": "commits",
        "device": "devices",
        "threads": "threads",
        "number of devices": "numbers of devices",
        "torch": "versions of torch",
    }
    found = {words: sorted({run.about[name] or "unknown" for run in runs}) for name, words in names.items()}
    return {words: values for words, values in found.items() if len(values) > 1}


# --- JSON -------------------------------------------------------------------------------------------------------------


def numbers(report: Report) -> dict[str, Any]:
    """All that the page says, for programs; what it holds of :class:`Statistic` is for ``json.dumps`` to take apart."""
    return {
        "made_by": WRITER,
        "title": report.title,
        "command": report.command,
        "studies": [
            {"data": study.data, "task": study.task, "groups": [_of_group(study, group) for group in study.groups]}
            for study in report.studies
        ],
        "without_configuration": [
            {"run": run.name, **_named(run, "state", "failure")} for run in report.runs if not run.options
        ],
        "times_of": [
            {"run": run.name, "training_seconds": round(run.training_seconds, 3), "about": run.about}
            for run in report.timed_runs
            if run.summary
        ],
        "differing": machine_differences(report.finished),
    }


def _of_group(study: Study, group: Group) -> dict[str, Any]:
    return {
        **_named(group, "label", "rule", "family", "network"),
        "measure": group.measure.test,
        "test": group.test,
        "forward_epochs": group.passes,
        "relative_to_bp": group.costs,
        **{name: group.over_seeds(name) for name in ("images_per_second", "feedback_share")},
        "angles": {kind: group.angles(kind) for kind in ANGLES},
        "published": [
            {
                **_of_figure(match.figure, top=match.figure.top, difference=round(match.difference, 4)),
                "notes": match.notes,
            }
            for match in matches(group)
        ],
        "nearest": [_of_figure(figure, network=figure.described + figure.variant) for figure in nearest(group)],
        "notes": notes_of(study, group),
        "runs": [
            {
                "run": run.name,
                **_named(run, "state", "seed", "epochs", "steps"),
                "test": run.summary.get(group.measure.test),
                **{name: run.summary.get(name) for name in ("val_accuracy", "wall_seconds")},
                "training_seconds": round(run.training_seconds, 3),
                "failure": run.failure,
                "commands": list(map(portable, run.commands)),
                "about": run.about if run.summary else {},
            }
            for run in group.runs
        ],
    }


def _of_figure(figure: Figure, **more: Any) -> dict[str, Any]:
    return {"source": figure.source, "accuracy_percent": figure.accuracy, **more, "budget": figure.budget}


def _named(thing: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(thing, name) for name in names}
