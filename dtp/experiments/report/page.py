"""The page: Markdown of tables and figures, and the numbers as JSON. Deterministic: no date, no path of a machine.

Its text is in ``page.md.jinja``; here is what the cells and the notes say.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dtp.experiments.over_seeds import Statistic, distinct
from dtp.experiments.report import WRITER
from dtp.experiments.report.groups import ANGLES, COSTS, FURTHER, Group, Measure, Study, unsteadiness
from dtp.experiments.report.published import Figure, is_whole, matches, nearest
from dtp.experiments.report.reading import RunRecord
from dtp.experiments.report.words import value_words
from dtp.run.provenance import portable

MARK = f"<!-- Written by {WRITER}, which replaces this page and its figures. -->"
# Nearest published figures named for each group.
MOST_NEAREST = 3
# The longest over the shortest epoch of a setting from which times are said to be rough.
UNSTEADY = 1.3
# Options that say how much was trained on; named once where all groups of a study have the same.
BUDGET = ("batch_size", "limit_train_batches", "limit_val_batches", "max_steps", "precision", "val_size")


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


def write_page(report: Report) -> str:
    """The whole page."""
    said = (states, facts, results, angles, nearest_rows, unended, provenance, machine_differences, command_words)
    content = {"mark": MARK, "report": report} | {function.__name__: function for function in said}
    return rendered("page.md.jinja", content)


def rendered(template: str, content: dict[str, Any], **filters: Callable[..., Any]) -> str:
    """A Markdown template of this folder, without more than one empty line at once.

    Markdown is not HTML, which autoescape is for: names are in code, where an entity would be shown as it is written.
    What would break a line or a table is taken out by the filters ``plain`` and ``cell``.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": _plain, "cell": lambda text: _plain(text).replace("|", "\\|")} | filters
    text = environment.get_template(template).render(content)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _plain(text: str) -> str:
    return " ".join(text.split())


def states(runs: Sequence[RunRecord]) -> list[str]:
    """How many of the runs are in each state that any is in."""
    counts = Counter(run.state for run in runs)
    return [f"{counts[state]} {state}" for state in ("finished", "unfinished", "failed") if counts[state]]


# --- results ----------------------------------------------------------------------------------------------------------


def common(study: Study) -> dict[str, Any]:
    """Options that say how much was trained, by name, where all groups have the same."""
    return {
        name: values[0]
        for name in BUDGET
        if len(values := distinct(group.options.get(name) for group in study.groups)) == 1
    }


def _budget_words(options: dict[str, Any], names: Sequence[str]) -> list[str]:
    """What options of the budget mean, in words; nothing for what is usual."""
    words = []
    for name, value in ((name, options.get(name)) for name in names):
        if name == "batch_size" and value:
            words.append(f"batches of {value}")
        elif name.startswith("limit_") and not is_whole(value):
            what = "validation" if name == "limit_val_batches" else "epochs"
            words.append(f"{what} cut to " + (f"a part of {value}" if "." in str(value) else f"{value} batches"))
        elif name == "max_steps" and (value or -1) > 0:
            words.append(f"stopped after {value} batches")
        elif name == "precision" and str(value or "32") not in ("32", "32-true"):
            words.append(f"precision {value}")
        elif name == "val_size" and value is not None:
            words.append(f"validation size {value_words(value)}")
    return words


def facts(study: Study, timed: Sequence[Study]) -> str:
    """What is said of all runs of a study."""
    shared, tested = common(study), _selections(study.groups)
    words = _budget_words(shared, list(shared))
    if tested:
        words.append("tested weights " + (tested[0] if len(tested) == 1 else "as the notes say"))
    text = f"All: {', '.join(words)}. " if words else ""
    spreads = [found for other in timed or [study] if (found := unsteadiness(other)) is not None]
    worst, factor = max(spreads, key=lambda found: found[1], default=(None, 0.0))
    if worst and factor > UNSTEADY:
        text += (
            f"**Times are rough**: epochs of one setting, `{worst.label}`, took up to {factor:.1f} times as long as "
            "others, as on a machine with other work."
        )
    return text.strip()


def _selections(groups: Sequence[Group]) -> list[str]:
    """How the weights that were tested had been chosen."""
    tested = [str(run.summary.get("tested_weights", "")) for group in groups for run in group.finished]
    return distinct("best on validation" if "validation" in said else said or "unknown" for said in tested)


def row_notes(study: Study, group: Group) -> list[str]:
    """All that a reader must know to judge the row of ``group``, in words."""
    shared = common(study)
    notes = [
        f"{count} of {len(group.runs)} runs {state}"
        for count, state in map(str.split, states(group.runs))
        if state != "finished"
    ]
    seeds = Counter(run.seed for run in group.finished)
    notes += [f"seed {seed} {count} times" for seed, count in sorted(seeds.items(), key=str) if count > 1]
    notes += _budget_words(group.options, [name for name in BUDGET if name not in shared])
    if len(_selections(study.groups)) > 1 and group.finished:
        notes.append("tested weights " + " or ".join(_selections([group])))
    for flag, values in machine_differences(group.finished).items():
        notes.append(f"runs with differing {flag}: {', '.join(values)}")
    notes += group.notes
    return notes + [
        f"against {match.figure.source}: {'; '.join(match.notes)}" for match in matches(group) if match.notes
    ]


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


def results(study: Study) -> tuple[Sequence[str], list[Iterable[str]], list[str]]:
    """Head and rows of the table of results, and the notes that its last column counts."""
    measure = study.groups[0].measure
    any_published = any(matches(group) for group in study.groups)
    further = _further(study.groups)
    costs = [name for name in COSTS if any(name in group.costs for group in study.groups)]
    rows, notes = [], []
    for group in study.groups:
        found, said = matches(group), row_notes(study, group)
        if said:
            sentences = _plain(". ".join(note[:1].upper() + note[1:] for note in said))
            notes.append(f"`{group.label}`: {sentences}.")
        row = {
            "rule": f"`{group.label}`",
            "network": group.network,
            "epochs (batches)": _epochs(group),
            measure.named("test"): _test(group, measure),
            **{head: more.shown(group.of_summaries(more.test)) for head, more in further.items()},
        }
        if any_published:
            row["published, %"] = "<br>".join(f"{_accuracy(m.figure)}, {m.figure.source}" for m in found)
            row["difference"] = "<br>".join(f"{m.difference:+.2f}" for m in found)
        none = "not comparable" if group.finished else ""
        row |= {f"{name} / bp": f"{group.costs[name].mean:.2f}" if name in group.costs else none for name in costs}
        row["images/s"] = f"{group.images_per_second.mean:,.0f}" if group.images_per_second else ""
        row["feedback"] = f"{group.feedback_share.mean:.0%}" if group.feedback_share else ""
        row["notes"] = str(len(notes)) if said else ""
        rows.append(row)
    return list(rows[0]), [row.values() for row in rows], notes


def _further(groups: Sequence[Group]) -> dict[str, Measure]:
    """Further results that summaries have."""
    found = {head: [group.of_summaries(measure.test) for group in groups] for head, measure in FURTHER.items()}
    # Of few classes the top five say nothing; nor does the loss of a classifier, beside its accuracy.
    classifies = groups[0].task == "classification"
    wanted = {"top 5, %"} if classifies and any(top and top.mean < 0.97 for top in found["top 5, %"]) else set()
    wanted |= set() if classifies else {"normalised mutual information", "test loss"}
    return {
        head: measure
        for head, measure in FURTHER.items()
        if head in wanted and any(found[head]) and measure.test != groups[0].measure.test
    }


def _epochs(group: Group) -> str:
    found = []
    for run in group.counted:
        feedback = f" + {round(run.epochs - run.passes, 3)} of feedback" if run.passes != run.epochs else ""
        found.append(f"{run.passes}{feedback} ({run.steps:,})")
    return " or ".join(distinct(found))


def _test(group: Group, measure: Measure) -> str:
    if group.test is None:
        return "failed" if all(run.state == "failed" for run in group.runs) else "unfinished"
    return group.measure.shown(group.test) + ("" if group.measure is measure else f" ({group.measure.title})")


def _accuracy(figure: Figure) -> str:
    deviation = "" if figure.deviation is None else f" ± {figure.deviation:.2f}"
    top = "" if figure.top == 1 else f" (top {figure.top})"
    return f"{figure.accuracy:.4g}{deviation}{top}"


def angles(study: Study) -> list[list[str]]:
    """The rows of the table of angles. Backprop has none: its angle to itself is zero."""
    found = [(g.label, *map(g.angles, ANGLES)) for g in study.groups if g.rule != "bp"]
    return [[f"`{label}`", *map(_layers, kinds)] for label, *kinds in found if any(kinds)]


def _layers(angles: dict[int, Statistic]) -> str:
    if not angles:
        return ""
    first = next(iter(angles))
    return ("" if first == 1 else f"from layer {first}: ") + ", ".join(angle.text(1, 0) for angle in angles.values())


def nearest_rows(study: Study) -> list[list[str]]:
    """Published figures of other networks, without a difference, for there is nothing that it would say."""
    rows = []
    for group in study.groups:
        found = nearest(group)
        if not found or group.test is None:
            continue
        words = [
            f"{_accuracy(figure)}: {figure.described}{variant(figure)}{_theirs(figure)}, {figure.source}"
            for figure in found[:MOST_NEAREST]
        ]
        more = [f"and {len(found) - MOST_NEAREST} more"] if len(found) > MOST_NEAREST else []
        ours = f"{group.measure.shown(group.test)}: {group.network}, {_epochs(group)}"
        rows.append([f"`{group.label}`", ours, "<br>".join([*words, *more])])
    return rows


def variant(figure: Figure) -> str:
    """What tells a published figure from others of the same rule and network, in words that follow its name."""
    return f", {figure.options['schedule']}" if "schedule" in figure.options else ""


def _theirs(figure: Figure) -> str:
    epochs = figure.budget["epochs"]
    selection = ", best test result of all epochs" if figure.budget["selection"] == "test" else ""
    notes = "".join(f" ({note})" for note in figure.notes)
    return (f", {epochs} epochs" if epochs else "") + selection + notes


# --- runs -------------------------------------------------------------------------------------------------------------


def unended(runs: Sequence[RunRecord]) -> list[list[str]]:
    """A row for each run that has not finished."""
    rows = []
    for run in runs:
        if run.state == "finished":
            continue
        best = max((value for _, value in run.column("val/accuracy")), default=None)
        asked = run.options.get("max_epochs")
        how_far = f"{run.epochs} of {asked} epochs, {run.steps:,} batches" if asked else "not configured"
        rows.append(
            [f"`{run.name}`", run.state, how_far, "" if best is None else f"{best:.2%}", run.failure.replace("`", "'")]
        )
    return rows


def provenance(finished: Sequence[RunRecord], timed: Sequence[RunRecord]) -> tuple[list[str], int, list[list[str]]]:
    """What most runs were made with, how many with changes that are in no commit, and a row for each run."""
    abouts = [run.about for run in finished]
    usual = {name: Counter(about[name] for about in abouts).most_common(1)[0][0] for name in abouts[0]}
    rows = [
        [
            f"`{run.name}`" + (" (times)" if any(run is other for other in timed) else ""),
            str(run.seed),
            f"{run.summary.get('wall_seconds', 0):,.0f}",
            f"{run.training_seconds:,.0f}",
            str(run.summary.get("finished", "")),
            ", ".join(f"{name} {value or 'unknown'}" for name, value in about.items() if value != usual[name]),
        ]
        for run, about in zip(finished, abouts, strict=True)
    ]
    dirty = sum("dirty" in about["commit"] for about in abouts)
    return [f"{name} {value}" for name, value in usual.items() if value], dirty, rows


def command_words(run: RunRecord) -> list[str]:
    """The commands of a run without what belongs to its machine: folders of data and runs, and ``--resume``."""
    return [portable(command) for command in run.commands]


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
        "without_configuration": [_named(run, "state", "failure") for run in report.runs if not run.options],
        "times_of": [
            _named(run) | {"training_seconds": round(run.training_seconds, 3), "about": run.about}
            for run in report.timed_runs
            if run.summary
        ],
        "differing": machine_differences(report.finished),
    }


def _of_group(study: Study, group: Group) -> dict[str, Any]:
    return {
        **{name: getattr(group, name) for name in ("label", "rule", "family", "network")},
        "measure": group.measure.test,
        "test": group.test,
        "forward_epochs": group.passes,
        "relative_to_bp": group.costs,
        "images_per_second": group.images_per_second,
        "feedback_share": group.feedback_share,
        "angles": {kind: group.angles(kind) for kind in ANGLES},
        "published": [
            {
                "source": match.figure.source,
                "accuracy_percent": match.figure.accuracy,
                "top": match.figure.top,
                "difference": round(match.difference, 4),
                "budget": match.figure.budget,
                "notes": match.notes,
            }
            for match in matches(group)
        ],
        "nearest": [
            {
                "source": figure.source,
                "accuracy_percent": figure.accuracy,
                "network": figure.described + variant(figure),
                "budget": figure.budget,
            }
            for figure in nearest(group)
        ],
        "notes": row_notes(study, group),
        "runs": [
            {
                **_named(run, "state", "seed", "epochs", "steps"),
                "test": run.summary.get(group.measure.test),
                **{name: run.summary.get(name) for name in ("val_accuracy", "wall_seconds")},
                "training_seconds": round(run.training_seconds, 3),
                "failure": run.failure,
                "commands": command_words(run),
                "about": run.about if run.summary else {},
            }
            for run in group.runs
        ],
    }


def _named(run: RunRecord, *names: str) -> dict[str, Any]:
    return {"run": run.name, **{name: getattr(run, name) for name in names}}
