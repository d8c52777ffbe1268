"""The board: one row for every figure, published or ours, kept in a JSON file and shown as a page. Imports no torch.

Rows come from run folders, and from files of results that were kept where run folders were not: those of sweeps
(results.json), of this command (--json) and summaries of single runs.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dtp.cli.arguments import parse
from dtp.cli.config import meaning, options_among
from dtp.errors import UserError
from dtp.experiments.over_seeds import Statistic, distinct
from dtp.experiments.report import WRITER
from dtp.experiments.report.groups import NOT_COMPARED, Group, Section, add_costs, place, sections
from dtp.experiments.report.published import PublishedFigure, matches, published
from dtp.experiments.report.reading import RunRecord, read_runs
from dtp.experiments.report.words import RECOMPRESSED, is_whole, rendered
from dtp.run.folder import saved_options
from dtp.run.provenance import portable, words_of
from dtp.run.reading import has_kinds

# In the order in which they are saved. Accuracies in %, ``deviation`` over seeds in points, ``epochs`` of the forward
# weights, ``cost`` of such an epoch relative to one of bp, null for what is not known.
_NUMBER = int | float | None
FIELDS = {
    "rule": str,
    "network": str,
    "data": str,
    "source": str,
    "published": _NUMBER,
    "ours": _NUMBER,
    "deviation": _NUMBER,
    "seeds": list,
    "epochs": _NUMBER,
    "published_epochs": _NUMBER,
    "cost": _NUMBER,
    "command": str,
    "commit": str,
    "date": str,
    "note": str,
}
MARK = f"<!-- made by {WRITER} --board -->"
MISSING = "not run yet"
Row = dict[str, Any]


# --- rows -------------------------------------------------------------------------------------------------------------


def read_board(path: Path) -> list[Row]:
    """The rows of a board; none where there is no such file.

    Raises:
        UserError: the file is no board.
    """
    if not path.exists():
        return []
    if not path.is_file():
        raise UserError(f"{path}: expected a board, a JSON file, found something else; give another --json.")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected a board, JSON of a list of rows ({error}); give another --json.") from error
    if not isinstance(rows, list) or not all(map(_is_row, rows)):
        raise UserError(
            f"{path}: expected a list of rows with {', '.join(FIELDS)}, numbers and texts; give another --json."
        )
    return rows


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or set(row) != set(FIELDS):
        return False
    finite = all(math.isfinite(value) for value in row.values() if isinstance(value, float))
    return finite and all(isinstance(row[name], kind) for name, kind in FIELDS.items())


def rows_of(
    paths: Sequence[Path], times: Sequence[Path] = (), images: str = "", date: str = "", note: str = ""
) -> list[Row]:
    """A row for each setting of the finished classification runs in ``paths``, and each published figure it has.

    Args:
        paths: folders that hold runs, or files of results.
        times: of runs that times are taken from, of the same settings.
        images: name of the folder of images, for runs that read one.
        date: of results that do not say theirs.
        note: said of every row.

    Raises:
        UserError: a path holds no results.
    """
    found = sections([_renamed(run, images) for run in _records(paths)])
    timed = sections([_renamed(run, images) for run in _records(times)])
    for group in (group for section in found for group in section.groups):
        _keep_latest_of_each_seed(group)
    add_costs(found, timed)
    rows = [row for section in found for group in section.groups for row in rows_of_group(section, group, date, note)]
    for row in rows:
        if not _is_row(row):
            raise UserError(
                f"{row['command']}: expected a finite test accuracy, found {row['ours']}; leave this run out."
            )
    return rows


def merged(board: Iterable[Row], rows: Iterable[Row]) -> list[Row]:
    """The board with ``rows``: in place of those of the same setting, and every published figure that has none."""
    kept = {_key(row): row for row in board if row["ours"] is not None}
    kept.update({_key(row): row for row in rows})
    having = {_figure_key(row) for row in kept.values()}
    lacking = (row for row in map(_missing, published()) if _figure_key(row) not in having)
    return sorted([*kept.values(), *{_figure_key(row): row for row in lacking}.values()], key=_order)


def fewer_seeds(board: Iterable[Row], rows: Iterable[Row]) -> list[str]:
    """A sentence for each of ``rows`` that takes the place of one with seeds that it does not have."""
    before = {_key(row): set(row["seeds"]) for row in board if row["ours"] is not None}
    lost = [(row, sorted(before.get(_key(row), set()) - set(row["seeds"]))) for row in rows]
    return [
        f"{row['rule']}, {row['network']}, {row['data']}: the row of these runs, seed {_listed(row['seeds'])}, takes "
        f"the place of one that had seed {_listed(seeds)} too; give all runs of a setting at once to average them."
        for row, seeds in lost
        if seeds
    ]


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _key(row: Row) -> tuple:
    # Commands do not tell which folder of images it was; what is said of it sets other pixels apart.
    recompressed = any(said.removeprefix("ours ").startswith(RECOMPRESSED) for said in row["note"].split("; "))
    return *_figure_key(row), recompressed, _setting(row["command"])


def _setting(command: str) -> tuple:
    """What a command sets, whatever the program was called, in whatever order, without what sets no run apart."""
    options = options_among(words_of(command)[2:])
    return tuple((name, *meaning(name, options[name])) for name in sorted({*options} - {*NOT_COMPARED, "trust"}))


def _figure_key(row: Row) -> tuple:
    network = row["network"] if row["source"] else ""
    return row["rule"], row["data"], row["source"], row["published"], network


def _order(row: Row) -> tuple:
    return (
        row["data"],
        not row["source"],
        row["source"],
        row["network"],
        place(row["rule"]),
        row["published"] or 0,
        -(row["epochs"] or 0),
        row["command"],
    )


def _keep_latest_of_each_seed(group: Group) -> None:
    """Leave out finished runs whose seed has a later one, for the times too."""
    counted = group.counted
    group.runs = [run for run in group.runs if run.state != "finished" or run in counted]


def rows_of_group(section: Section, group: Group, date: str = "", note: str = "") -> list[Row]:
    """The rows of one setting: for each published figure that it has, or one of its own."""
    if section.task != "classification" or not group.finished:
        return []
    found: list[tuple[PublishedFigure | None, Statistic, Sequence[str]]]
    found = [(match.figure, match.ours, match.notes) for match in matches(group)]
    # Where there is none, they are judged by something else.
    if not found and (accuracy := group.over_seeds("test_accuracy")):
        found = [(None, accuracy.scaled(100), ())]
    return [_row(section, group, figure, ours, said, date, note) for figure, ours, said in found]


def _row(
    section: Section,
    group: Group,
    figure: PublishedFigure | None,
    ours: Statistic,
    said: Sequence[str],
    date: str,
    note: str,
) -> Row:
    runs, options = group.finished, group.options
    data, remark = group.dataset
    notes = list(said)
    if figure is None:
        if not is_whole(options.get("limit_train_batches")):
            notes.append(f"limited to --limit-train-batches {options['limit_train_batches']} of an epoch")
        if remark:
            notes.append(remark.partition(",")[0].removeprefix("ours "))
    ended = len(group.runs) - len(runs)
    notes += [f"{ended} of {len(group.runs)} runs unfinished or failed"] if ended else []
    notes += [note] if note else []
    costs = [group.costs["epoch"].mean] if "epoch" in group.costs else []
    costs += [run.summary["cost"] for run in runs if run.summary.get("cost")]
    passes = sorted(set(group.passes))
    theirs = {"network": group.network, "data": data or section.data, "source": ""}
    if figure:
        theirs = _of_figure(figure)
    ours_alone = {
        "rule": group.rule,
        "ours": round(ours.mean, 2),
        "deviation": None if ours.deviation is None else round(ours.deviation, 2),
        "seeds": [run.seed for run in runs],
        "epochs": passes[0] if len(passes) == 1 else None,
        "cost": float(f"{costs[0]:.3g}") if costs else None,
        "command": _command(runs[0]),
        "commit": " ".join(filter(None, distinct(run.summary.get("versions", {}).get("commit", "") for run in runs))),
        "date": max((str(run.summary.get("finished", ""))[:10] for run in runs), default="") or date,
        "note": "; ".join(dict.fromkeys(notes)),
    }
    return {**dict.fromkeys(FIELDS), **theirs, **ours_alone}


def _of_figure(figure: PublishedFigure) -> Row:
    """What a row says of a published figure."""
    return {
        "rule": figure.rule,
        "network": figure.described + figure.variant,
        "data": figure.data,
        "source": figure.source + (f", top {figure.top}" if figure.top != 1 else ""),
        "published": figure.accuracy,
        "published_epochs": figure.budget["epochs"],
    }


def _missing(figure: PublishedFigure) -> Row:
    notes = [MISSING]
    if figure.network is None:
        notes.append("--model cannot make this network")
    if not figure.preset:
        notes.append("their values are not known to us")
    command = f"dtp train --config {figure.preset} --seed SEED" if figure.preset else ""
    none = {**dict.fromkeys(FIELDS), "seeds": [], "command": command, "commit": "", "date": ""}
    return none | _of_figure(figure) | {"note": "; ".join([*notes, *figure.notes])}


def _command(run: RunRecord) -> str:
    """The command of the first start, for any seed."""
    words = shlex.split(next(iter(run.commands), ""))
    if "--seed" in words[:-1]:
        words[words.index("--seed") + 1] = "SEED"
    return shlex.join(words)


# --- results that were kept without their run folders -----------------------------------------------------------------


def _records(paths: Sequence[Path]) -> list[RunRecord]:
    folders = [path for path in paths if not path.is_file()]
    files = [record for path in paths if path.is_file() for record in _kept(path)]
    return [*(read_runs(folders) if folders else []), *files]


def _kept(path: Path) -> list[RunRecord]:
    """The runs that a file of results is about; those whose commands cannot be read here are left out."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected run folders or JSON of results ({error}).") from error
    records = []
    try:
        for command, seed, summary in _entries(content):
            try:
                records.append(_record(path, command, seed, summary))
            except UserError as error:
                print(f"{path}: left out, for its command cannot be read: {command} ({error})", file=sys.stderr)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: expected the results of a sweep, a report or runs, found another file (without {error})."
        ) from error
    return records


def _entries(content: Any) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Command, seed and summary of each run in a file of results."""
    if isinstance(content, list):
        yield from ((e["command"], e["seed"], {**e, "steps": e["batches"]}) for e in content)
    elif "settings" in content:
        for setting in content["settings"]:
            yield from _of_sweep(content, setting)
    elif "studies" in content:
        for group in (group for section in content["studies"] for group in section["groups"]):
            yield from (_of_report(group, run) for run in group["runs"] if run["test"] is not None)
    else:
        entries = [content] if "command" in content else content.values()
        yield from ((e["command"], e["seed"], {**e, "cost": e.get("times_bp")}) for e in entries)


def _of_sweep(content: dict[str, Any], setting: dict[str, Any]) -> list[tuple[str, int, dict[str, Any]]]:
    if "test/accuracy" not in setting["last"]:
        return []
    values = setting["last"]["test/accuracy"]["values"]
    if len(values) != len(setting["seeds"]):
        raise UserError(
            f"{setting['name']}: expected a test accuracy for each of its {len(setting['seeds'])} seeds, found "
            f"{len(values)}; draw the sweep again (dtp sweep --draw), or give its run folders."
        )
    shared = {name: content[name] for name in ("device", "threads")}
    shared["versions"] = _merged_versions(content["versions"])
    counts = {"epochs": setting["epochs"], "steps": setting["batches"]}
    if "batches_per_epoch" in setting:
        # Files of earlier versions do not say it.
        counts["batches_per_epoch"] = setting["batches_per_epoch"]
    # A list where runs differ, and it is not said which run has which.
    shared |= {name: count for name, count in counts.items() if not isinstance(count, list)}
    return [
        (setting["command"], seed, {**shared, "test_accuracy": value})
        for seed, value in zip(setting["seeds"], values, strict=True)
    ]


def _merged_versions(versions: dict[str, str] | list[dict[str, str]]) -> dict[str, str]:
    """Those of a sweep as of one run: where its runs were made with several, each of the different ones."""
    if not isinstance(versions, list):
        return versions
    names = distinct(name for found in versions for name in found)
    return {name: " ".join(distinct(found[name] for found in versions if found.get(name))) for name in names}


def _of_report(group: dict[str, Any], run: dict[str, Any]) -> tuple[str, int, dict[str, Any]]:
    cost, about = group["relative_to_bp"].get("epoch"), run["about"]
    summary = {
        group["measure"]: run["test"],
        **{name: run[name] for name in ("epochs", "steps", "batches_per_epoch") if name in run},
        "versions": about,
        "device": about["device"],
        "threads": about["threads"],
        "cost": cost["mean"] if cost else None,
        "finished": run.get("finished") or "",
    }
    return next(iter(run["commands"]), ""), run["seed"], summary


def _record(path: Path, command: str, seed: int, summary: dict[str, Any]) -> RunRecord:
    """A run as its folder would have said it; presets stand for the values that they have today."""
    try:
        words = shlex.split(command.replace("SEED", str(seed)))[2:]
    except ValueError as error:
        raise UserError(f"is no line of a shell: {error}") from error
    if not command:
        raise UserError("none is recorded")
    if {"--help", "-h"} & set(words):
        raise UserError("asks for help alone")
    options = saved_options(parse(words, own_classes=False)) | {"seed": seed}
    tested = "last" if options["test_weights"] == "last" else "best on validation"
    usual = {"tested_weights": tested, "epochs": options["max_epochs"], "steps": 0}
    cost = summary.get("cost")
    if not has_kinds({**summary, "seed": seed}) or not isinstance(cost, int | float | None):
        raise TypeError("numbers and texts where they are expected")
    return RunRecord(
        folder=path,
        name=path.stem,
        state="finished",
        options=options,
        commands=(portable(command),),
        rows=(),
        summary=usual | summary,
        failure="",
    )


def _renamed(run: RunRecord, images: str) -> RunRecord:
    """``run`` with the name of its folder of images, where it reads one."""
    if not images or run.options.get("data") != "imagefolder":
        return run
    return replace(run, options={**run.options, "data_dir": images})


# --- the page ---------------------------------------------------------------------------------------------------------


def write_page(rows: Sequence[Row], json_name: str) -> str:
    """The board as Markdown, by dataset."""
    ours = [row for row in rows if row["ours"] is not None]
    three = sum(len(set(row["seeds"])) >= 3 for row in ours)
    return rendered("board.md.jinja", MARK=MARK, rows=rows, ours=ours, three=three, json_name=json_name) + "\n"
