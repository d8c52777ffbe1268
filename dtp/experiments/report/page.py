"""The page: Markdown of tables and figures, and the numbers as JSON. Deterministic: no date, no path of a machine.

What a page says, and its tables, are in the templates ``*.md.jinja`` beside this.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dtp.experiments.report import WRITER
from dtp.experiments.report.groups import BUDGET, COSTS, Group, Section, unsteadiness
from dtp.experiments.report.published import PublishedFigure, matches, nearest
from dtp.experiments.report.reading import RunRecord
from dtp.experiments.report.words import lines, rendered
from dtp.run.reading import ANGLES

MARK = f"<!-- Written by {WRITER}, which replaces this page and its figures. -->"


@dataclass(eq=False)
class Report:
    """What a page is made of.

    Attributes:
        command: that made it.
        timed, timed_runs: what times are of, where it is not the runs themselves.
    """

    title: str
    command: str
    runs: Sequence[RunRecord]
    sections: Sequence[Section]
    timed: Sequence[Section] = ()
    timed_runs: Sequence[RunRecord] = ()

    @property
    def groups(self) -> list[Group]:
        """All groups, section by section."""
        return [group for section in self.sections for group in section.groups]

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
    functions = (machine_differences, matches, nearest, notes_of, unsteadiness)
    names = {"ANGLES": ANGLES, "COSTS": COSTS, "MARK": MARK} | {said.__name__: said for said in functions}
    return rendered("page.md.jinja", report=report, **names) + "\n"


def notes_of(section: Section, group: Group) -> list[str]:
    """All that a reader must know to judge the row of ``group``, in words."""
    differing, found = machine_differences(group.finished), matches(group)
    return lines("notes.md.jinja", section=section, group=group, differing=differing, matches=found, BUDGET=BUDGET)


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
            {
                "data": section.data,
                "task": section.task,
                "groups": [_of_group(section, group) for group in section.groups],
            }
            for section in report.sections
        ],
        "without_configuration": [_of_run(run, "state", "failure") for run in report.runs if not run.options],
        "times_of": [_of_run(run, "training_seconds", "about") for run in report.timed_runs if run.summary],
        "differing": machine_differences(report.finished),
    }


def _of_group(section: Section, group: Group) -> dict[str, Any]:
    return {
        **{name: getattr(group, name) for name in ("label", "rule", "family", "network")},
        "measure": group.measure.test,
        "test": group.test,
        "forward_epochs": group.passes,
        "relative_to_bp": group.costs,
        **{name: group.over_seeds(name) for name in ("images_per_second", "feedback_share")},
        "angles": {kind: group.angles(kind) for kind in ANGLES},
        "published": [
            _of_figure(m.figure, top=m.figure.top, difference=round(m.difference, 4)) | {"notes": m.notes}
            for m in matches(group)
        ],
        "nearest": [_of_figure(figure, network=figure.described + figure.variant) for figure in nearest(group)],
        "notes": notes_of(section, group),
        "runs": [
            {
                **_of_run(run, "state", "seed", "epochs", "steps", "batches_per_epoch"),
                "test": run.summary.get(group.measure.test),
                **{name: run.summary.get(name) for name in ("val_accuracy", "wall_seconds", "finished")},
                **_of_run(run, "training_seconds", "failure", "commands"),
                "about": run.about if run.summary else {},
            }
            for run in group.runs
        ],
    }


def _of_figure(figure: PublishedFigure, **more: Any) -> dict[str, Any]:
    return {"source": figure.source, "accuracy_percent": figure.accuracy, **more, "budget": figure.budget}


def _of_run(run: RunRecord, *names: str) -> dict[str, Any]:
    found = {name: getattr(run, name) for name in names}
    return {
        "run": run.name,
        **{n: round(value, 3) if isinstance(value, float) else value for n, value in found.items()},
    }
