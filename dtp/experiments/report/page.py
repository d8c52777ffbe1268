"""The page: Markdown of tables and figures, and the numbers as JSON. Deterministic: no date, no path of a machine."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

from dtp.experiments.report.groups import (
    COSTS,
    SAME_MACHINE,
    Group,
    Statistic,
    Study,
    forward_passes,
    shown,
    training_seconds,
    unsteadiness,
)
from dtp.experiments.report.published import Figure, Match, is_whole
from dtp.experiments.report.reading import RunRecord

MARK = "<!-- Written by python -m dtp.report, which replaces this page and its figures. -->"
# Nearest published figures named for each group.
MOST_NEAREST = 3
# The longest over the shortest epoch of a setting from which times are said to be rough.
UNSTEADY = 1.3
# Options that say how much was trained on; named once where all groups of a study have the same.
BUDGET = ("batch_size", "limit_train_batches", "max_steps", "limit_val_batches", "precision", "val_size")


def write_page(
    title: str,
    command: str,
    runs: Sequence[RunRecord],
    studies: Sequence[Study],
    matches: dict[int, list[Match]],
    nearest: dict[int, list[Figure]],
    figures: dict[int, list[tuple[str, str]]],
    timed: Sequence[Study] = (),
    timed_runs: Sequence[RunRecord] = (),
) -> str:
    """The whole page.

    Args:
        command: that made it.
        matches, nearest: published results by ``id`` of the group.
        figures: file name and caption, by ``id`` of the study.
        timed, timed_runs: what times are of, where it is not the runs themselves.
    """
    lines = [
        MARK,
        "",
        f"# {_plain(title)}",
        "",
        _overview(runs),
        "",
        f"    {command}",
        "",
        *_reading(studies, bool(timed)),
    ]
    for study in studies:
        lines += [f"## {_plain(study.title)}", "", *_facts(study, timed), *_results(study, matches)]
        for name, caption in figures[id(study)]:
            # What it shows, for those who do not see it.
            shown = caption.partition(";")[0].partition(". ")[0].rstrip(".")
            lines += [f"![{shown}]({name})", "", caption, ""]
        lines += _angles(study)
        lines += _published(study, matches)
        lines += _nearest(study, nearest)
    lines += _unended(runs)
    lines += _provenance(runs, studies, timed_runs)
    return "\n".join(lines).rstrip() + "\n"


def _plain(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(map(_cell, row)) + " |" for row in rows), ""]


def _overview(runs: Sequence[RunRecord]) -> str:
    counts = Counter(run.state for run in runs)
    states = ", ".join(f"{counts[state]} {state}" for state in ("finished", "unfinished", "failed") if counts[state])
    return f"{len(runs)} run{'s' if len(runs) != 1 else ''}: {states}. Made by"


def _reading(studies: Sequence[Study], timed: bool) -> list[str]:
    """How the tables are to be read."""
    text = "Results are means over seeds ± standard deviation (number of seeds)."
    if any(group.costs for study in studies for group in study.groups):
        text += (
            " Times are relative to `bp` with a network of the same sizes and the same batch size on the same device: "
            "of a batch; of an epoch that trains the forward weights, with the feedback epochs that belong to it"
        )
        text += (
            ". They are those of other runs of the same settings, made to measure them (--times)."
            if timed
            else "; of the whole run, with validation and measurements."
        )
    text += (
        " Images per second are those of the training batches of the runs themselves; feedback is that phase's share "
        "of the whole run."
    )
    return [text, ""]


# --- results ----------------------------------------------------------------------------------------------------------


def common(study: Study) -> dict[str, Any]:
    """Options that say how much was trained, by name, where all groups have the same."""
    return {
        name: values[0]
        for name in BUDGET
        if len(values := list(_distinct(group.options.get(name) for group in study.groups))) == 1
    }


def _distinct(values) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def _budget_words(options: dict[str, Any], names: Sequence[str]) -> list[str]:
    """What an option of the budget means, in words; nothing for what is usual."""
    words = []
    if "batch_size" in names and options.get("batch_size"):
        words.append(f"batches of {options['batch_size']}")
    for name, what in (("limit_train_batches", "epochs"), ("limit_val_batches", "validation")):
        if name in names and not is_whole(options.get(name)):
            limit = str(options[name])
            words.append(f"{what} cut to {f'a part of {limit}' if '.' in limit else f'{limit} batches'}")
    if "max_steps" in names and (options.get("max_steps") or -1) > 0:
        words.append(f"stopped after {options['max_steps']} batches")
    if "precision" in names and str(options.get("precision", "32")) not in ("32", "32-true"):
        words.append(f"precision {options['precision']}")
    if "val_size" in names and options.get("val_size") is not None:
        words.append(f"validation size {shown(options['val_size'])}")
    return words


def _facts(study: Study, timed: Sequence[Study]) -> list[str]:
    shared = common(study)
    words = _budget_words(shared, list(shared))
    tested = _distinct(_selection(run) for group in study.groups for run in group.finished)
    if tested:
        words.append("tested weights " + (tested[0] if len(tested) == 1 else "as the notes say"))
    text = f"All: {', '.join(words)}. " if words else ""
    spreads = [found for other in timed or [study] if (found := unsteadiness(other)) is not None]
    worst = max(spreads, key=lambda found: found[1], default=None)
    if worst is not None and worst[1] > UNSTEADY:
        text += (
            f"**Times are rough**: epochs of one setting, `{worst[0].label}`, took up to {worst[1]:.1f} times as long "
            "as others, as on a machine with other work."
        )
    return [text.strip(), ""] if text else []


def _selection(run: RunRecord) -> str:
    tested = str(run.summary.get("tested_weights", ""))
    return "best on validation" if "validation" in tested else tested or "unknown"


def row_notes(study: Study, group: Group, matches: Sequence[Match]) -> list[str]:
    """All that a reader must know to judge the row of ``group``, in words."""
    shared = common(study)
    notes = []
    counts = Counter(run.state for run in group.runs)
    for state in ("unfinished", "failed"):
        if counts[state]:
            notes.append(f"{counts[state]} of {len(group.runs)} runs {state}")
    seeds = Counter(run.seed for run in group.finished)
    notes += [f"seed {seed} {count} times" for seed, count in sorted(seeds.items(), key=str) if count > 1]
    notes += _budget_words(group.options, [name for name in BUDGET if name not in shared])
    tested = _distinct(_selection(run) for other in study.groups for run in other.finished)
    if len(tested) > 1:
        notes.append("tested weights " + " or ".join(_distinct(_selection(run) for run in group.finished)))
    for flag, values in machine_differences(group.finished).items():
        notes.append(f"runs with differing {flag}: {', '.join(values)}")
    notes += group.notes
    for match in matches:
        if match.notes:
            notes.append(f"against {match.figure.source}: " + "; ".join(match.notes))
    return notes


def machine_differences(runs: Sequence[RunRecord]) -> dict[str, list[str]]:
    """In what runs differ that should have nothing to do with their results, with the values."""
    found = {
        "commits": _distinct(str(run.summary.get("versions", {}).get("commit") or "unknown") for run in runs),
        "devices": _distinct(str(run.summary.get("device")) for run in runs),
        "threads": _distinct(str(run.summary.get("threads")) for run in runs),
        "numbers of devices": _distinct(str(run.summary.get("world_size")) for run in runs),
        "versions of torch": _distinct(str(run.summary.get("versions", {}).get("torch")) for run in runs),
    }
    return {name: sorted(values) for name, values in found.items() if len(values) > 1}


def _results(study: Study, matches: dict[int, list[Match]]) -> list[str]:
    groups = study.groups
    measure = groups[0].measure
    unit = f", {measure.unit}" if measure.unit else ""
    any_published = any(matches[id(group)] for group in groups)
    more = _more_measures(groups)
    head = ["rule", "network", "epochs (batches)", f"test {measure.title}{unit}", *more]
    head += ["published, %", "difference"] if any_published else []
    costs = [name for name in COSTS if any(name in group.costs for group in groups)]
    head += [f"{name} / bp" for name in costs]
    head += ["images/s", "feedback", "notes"]
    rows, notes = [], []
    for group in groups:
        row = [f"`{group.label}`", group.network, _epochs(group), _test(group, measure)]
        row += [_scaled(group.of_summaries(name), scale, digits) for name, scale, digits in more.values()]
        if any_published:
            found = matches[id(group)]
            row.append("<br>".join(f"{_accuracy(m.figure)}, {m.figure.source}" for m in found))
            row.append("<br>".join(f"{m.difference:+.2f}" for m in found))
        none = "not comparable" if group.finished else ""
        row += [f"{group.costs[name].mean:.2f}" if name in group.costs else none for name in costs]
        row.append(f"{group.images_per_second.mean:,.0f}" if group.images_per_second else "")
        row.append(f"{group.feedback_share.mean:.0%}" if group.feedback_share else "")
        said = row_notes(study, group, matches[id(group)])
        if said:
            notes.append(f"{len(notes) + 1}. `{group.label}`: {_plain('. '.join(map(_capital, said)))}.")
        row.append(str(len(notes)) if said else "")
        rows.append(row)
    return [*_table(head, rows), *(["Notes:", "", *notes, ""] if notes else [])]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _more_measures(groups: Sequence[Group]) -> dict[str, tuple[str, float, int]]:
    """Further results that summaries have: title, name, scale, digits."""
    known = {
        "top 5, %": ("test_top5", 100.0, 2),
        "normalised mutual information": ("test_nmi", 1.0, 3),
        "test loss": ("test_loss", 1.0, 4),
    }
    if groups[0].task == "classification":
        # Of ten classes the top five say nothing.
        wanted = ["top 5, %"] if any(_is_informative(group) for group in groups) else []
    else:
        wanted = ["normalised mutual information", "test loss"]
    first = groups[0].measure.test
    return {
        title: known[title]
        for title in wanted
        if known[title][0] != first and any(group.of_summaries(known[title][0]) for group in groups)
    }


def _is_informative(group: Group) -> bool:
    top = group.of_summaries("test_top5")
    return top is not None and top.mean < 0.97


def _epochs(group: Group) -> str:
    found = []
    for run in group.finished or group.runs:
        passes, epochs = forward_passes(group.options, run), run.epochs
        counted = str(passes) if passes == epochs else f"{passes} + {round(epochs - passes, 3)} of feedback"
        found.append(f"{counted} ({run.steps:,})")
    return " or ".join(_distinct(found))


def _test(group: Group, measure) -> str:
    if group.test is None:
        return "failed" if all(run.state == "failed" for run in group.runs) else "unfinished"
    own = group.measure
    text = _scaled(group.test, own.scale, own.digits)
    return text if own is measure else f"{text} ({own.title})"


def _scaled(found: Statistic | None, scale: float, digits: int) -> str:
    if found is None:
        return ""
    deviation = "" if found.deviation is None else f" ± {scale * found.deviation:.{digits}f}"
    return f"{scale * found.mean:.{digits}f}{deviation} ({found.n})"


def _accuracy(figure: Figure) -> str:
    deviation = "" if figure.deviation is None else f" ± {figure.deviation:.2f}"
    top = "" if figure.top == 1 else f" (top {figure.top})"
    return f"{figure.accuracy:.4g}{deviation}{top}"


# --- angles -----------------------------------------------------------------------------------------------------------


def _angles(study: Study) -> list[str]:
    rows = []
    for group in study.groups:
        if group.rule == "bp":
            # Zero, by what they are.
            continue
        kinds = [group.angles(kind) for kind in ("update_angle", "feedback_angle")]
        if any(kinds):
            rows.append([f"`{group.label}`", *map(_layers, kinds)])
    if not rows:
        return []
    text = "Angles in degrees at the last measurement, by layer: mean ± standard deviation over seeds."
    return [text, "", *_table(["rule", "update to backprop's", "feedback to transposed forward weights"], rows)]


def _layers(angles: dict[int, Statistic]) -> str:
    if not angles:
        return ""
    words = [
        f"{angle.mean:.0f}" + ("" if angle.deviation is None else f" ± {angle.deviation:.0f}")
        for angle in angles.values()
    ]
    first = next(iter(angles))
    return ("" if first == 1 else f"from layer {first}: ") + ", ".join(words)


# --- published --------------------------------------------------------------------------------------------------------


def _published(study: Study, matches: dict[int, list[Match]]) -> list[str]:
    if study.task != "classification" or any(matches[id(group)] for group in study.groups):
        return []
    return ["No published figure known to us has one of these rules with this network on these images.", ""]


def _nearest(study: Study, nearest: dict[int, list[Figure]]) -> list[str]:
    """Published figures of other networks, without a difference, for there is nothing that it would say."""
    rows = []
    for group in study.groups:
        found = nearest[id(group)]
        if not found or group.test is None:
            continue
        ours = _scaled(group.test, 100.0, 2)
        words = [
            f"{_accuracy(figure)}: {figure.described}{variant(figure)}{_theirs(figure)}, {figure.source}"
            for figure in found[:MOST_NEAREST]
        ]
        more = [f"and {len(found) - MOST_NEAREST} more"] if len(found) > MOST_NEAREST else []
        rows.append([f"`{group.label}`", f"{ours}: {group.network}, {_epochs(group)}", "<br>".join([*words, *more])])
    if not rows:
        return []
    text = (
        "For orientation, published accuracies in % of the same rules on the same images with other networks, other "
        "numbers of epochs and other values; their differences to ours say nothing about either."
    )
    return [text, "", *_table(["rule", "ours", "published"], rows)]


def variant(figure: Figure) -> str:
    return f", {figure.options['schedule']}" if "schedule" in figure.options else ""


def _theirs(figure: Figure) -> str:
    epochs = figure.budget["epochs"]
    selection = ", best test result of all epochs" if figure.budget["selection"] == "test" else ""
    notes = "".join(f" ({note})" for note in figure.notes)
    return (f", {epochs} epochs" if epochs else "") + selection + notes


# --- runs -------------------------------------------------------------------------------------------------------------


def _unended(runs: Sequence[RunRecord]) -> list[str]:
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
    if not rows:
        return []
    head = ["run", "state", "trained", "best validation accuracy", "why"]
    return ["## Runs without a result", "", *_table(head, rows)]


def _provenance(runs: Sequence[RunRecord], studies: Sequence[Study], timed_runs: Sequence[RunRecord]) -> list[str]:
    finished = [run for run in (*runs, *timed_runs) if run.summary]
    if not finished:
        return []
    lines = ["## Provenance", ""]
    differing = machine_differences(finished)
    for name, values in differing.items():
        lines.append(f"- **Runs differ in {name}**: {', '.join(values)}.")
    dirty = sum("dirty" in str(run.summary.get("versions", {}).get("commit")) for run in finished)
    if dirty:
        lines.append(f"- {dirty} of {len(finished)} runs were made with changes that are in no commit (-dirty).")
    usual = {name: Counter(_about(run)[name] for run in finished).most_common(1)[0][0] for name in _about(finished[0])}
    lines += [f"- Most runs: {', '.join(f'{name} {value}' for name, value in usual.items() if value)}.", ""]
    lines += ["<details><summary>Every run</summary>", ""]
    rows = []
    for run in finished:
        about = _about(run)
        other = [f"{name} {value or 'unknown'}" for name, value in about.items() if value != usual[name]]
        rows.append(
            [
                f"`{run.name}`" + (" (times)" if any(run is other for other in timed_runs) else ""),
                str(run.seed),
                f"{run.summary.get('wall_seconds', 0):,.0f}",
                f"{training_seconds(run):,.0f}",
                str(run.summary.get("finished", "")),
                ", ".join(other),
            ]
        )
    head = ["run", "seed", "wall, s", "of it training batches, s", "finished", "other than most"]
    lines += [*_table(head, rows), "</details>", "", "<details><summary>Commands</summary>", ""]
    for study in studies:
        for group in study.groups:
            seeds = ", ".join(str(run.seed) for run in group.runs)
            where = f"{_plain(study.title)}, " if len(studies) > 1 else ""
            lines += [f"{where}`{group.label}`, seed {seeds}:", ""]
            lines += [f"    {command}" for command in _distinct(command_words(group.runs[0]))] + [""]
    return [*lines, "</details>", ""]


def _about(run: RunRecord) -> dict[str, str]:
    versions = run.summary.get("versions", {})
    about = {name: str(versions.get(name) or "") for name in ("commit", "dtp", "python", "torch", "lightning")}
    return {**about, **{words: str(run.summary.get(name, "")) for name, words in SAME_MACHINE.items()}}


def command_words(run: RunRecord) -> list[str]:
    """The commands of a run without what is of its machine: the folders of data and run, and going on."""
    return [_without_places(command) for command in run.commands]


def _without_places(command: str) -> str:
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    kept: list[str] = []
    skip = 0
    for i, word in enumerate(words):
        flag, equals, _ = word.partition("=")
        if skip:
            skip -= 1
        elif re.fullmatch(r"--(run[-_]dir|resume)", flag):
            skip = 0 if equals else 1
        elif re.fullmatch(r"--(data[-_]dir|init[-_]weights)", flag):
            kept += [flag, "DIR"]
            skip = 0 if equals else 1
        elif i == 1 and word.endswith("main.py"):
            kept.append("main.py")
        else:
            kept.append(word)
    return shlex.join(kept)


# --- JSON -------------------------------------------------------------------------------------------------------------


def numbers(
    title: str,
    command: str,
    runs: Sequence[RunRecord],
    studies: Sequence[Study],
    matches: dict[int, list[Match]],
    nearest: dict[int, list[Figure]],
    timed_runs: Sequence[RunRecord] = (),
) -> dict[str, Any]:
    """All that the page says, for programs."""
    return {
        "made_by": "python -m dtp.report",
        "title": title,
        "command": command,
        "studies": [
            {
                "data": study.data,
                "task": study.task,
                "groups": [
                    _group_numbers(study, group, matches[id(group)], nearest[id(group)]) for group in study.groups
                ],
            }
            for study in studies
        ],
        "without_configuration": [
            {"run": run.name, "state": run.state, "failure": run.failure} for run in runs if not run.options
        ],
        "times_of": [
            {"run": run.name, "training_seconds": round(training_seconds(run), 3), "about": _about(run)}
            for run in timed_runs
            if run.summary
        ],
        "differing": machine_differences([run for run in (*runs, *timed_runs) if run.summary]),
    }


def _group_numbers(study: Study, group: Group, matches: Sequence[Match], nearest: Sequence[Figure]) -> dict[str, Any]:
    return {
        "label": group.label,
        "rule": group.rule,
        "family": group.family,
        "network": group.network,
        "measure": group.measure.test,
        "test": _as_json(group.test),
        "forward_epochs": group.passes,
        "relative_to_bp": {name: _as_json(found) for name, found in group.costs.items()},
        "images_per_second": _as_json(group.images_per_second),
        "feedback_share": _as_json(group.feedback_share),
        "angles": {
            kind: {str(layer): _as_json(angle) for layer, angle in group.angles(kind).items()}
            for kind in ("update_angle", "feedback_angle")
        },
        "published": [
            {
                "source": match.figure.source,
                "accuracy_percent": match.figure.accuracy,
                "top": match.figure.top,
                "difference": round(match.difference, 4),
                "budget": match.figure.budget,
                "notes": list(match.notes),
            }
            for match in matches
        ],
        "nearest": [
            {
                "source": figure.source,
                "accuracy_percent": figure.accuracy,
                "network": figure.described + variant(figure),
                "budget": figure.budget,
            }
            for figure in nearest
        ],
        "notes": row_notes(study, group, matches),
        "runs": [
            {
                "run": run.name,
                "state": run.state,
                "seed": run.seed,
                "epochs": run.epochs,
                "steps": run.steps,
                "test": run.summary.get(group.measure.test),
                "val_accuracy": run.summary.get("val_accuracy"),
                "wall_seconds": run.summary.get("wall_seconds"),
                "training_seconds": round(training_seconds(run), 3),
                "failure": run.failure,
                "commands": command_words(run),
                "about": _about(run) if run.summary else {},
            }
            for run in group.runs
        ],
    }


def _as_json(found: Statistic | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {"mean": found.mean, "deviation": found.deviation, "values": list(found.values)}
