"""The readers of what a run has measured: ``metrics.csv`` and ``summary.json``. Imports no torch."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from dtp.errors import UserError

# The value at each batch, in the order of the batches.
Series = dict[int, float]
Row = dict[str, float]
FIRST_COLUMNS = ("epoch", "step")
# Angles, one column for each layer: update_angle/layer1.
ANGLES = ("update_angle", "feedback_angle")


# --- metrics.csv ------------------------------------------------------------------------------------------------------


def read_table(path: Path, otherwise: str = "") -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a metrics file, as text; empty lists for a file that is missing or empty.

    What follows the last newline is left out: a killed writer may have cut it anywhere, within a number too.

    Args:
        otherwise: for the message, what the user may do instead of moving the file away.

    Raises:
        UserError: the file cannot be read, or is no CSV.
    """
    try:
        text = path.read_bytes().decode("utf-8", errors="replace") if path.exists() else ""
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fix its permissions.") from error
    try:
        columns, *rows = list(csv.reader(text.split("\n")[:-1])) or [[]]
    except csv.Error as error:
        raise UserError(f"{path}: is not a metrics file ({error}); move it away{otherwise}.") from error
    return columns, rows


def require_metrics(path: Path, columns: Sequence[str], otherwise: str = "") -> None:
    """Raise UserError where a file does not have the first columns of a metrics file."""
    if tuple(columns[:2]) != FIRST_COLUMNS:
        found = path.read_bytes().decode("utf-8", errors="replace").partition("\n")[0][:40]
        raise UserError(
            f"{path}: expected a file that begins with the columns {','.join(FIRST_COLUMNS)}, found {found!r}; "
            f"move it away{otherwise}."
        )


def read_metrics(path: Path) -> dict[str, Series]:
    """The finite numbers of each column, by step; all other cells are skipped.

    Where a step occurs twice, as after a resume, the later value counts.

    Raises:
        UserError: the file cannot be read, or is no CSV.
    """
    columns, rows = read_table(path)
    found: dict[str, Series] = {}
    for row in rows:
        cells = dict(zip(columns, row, strict=False))
        step = _number(cells.pop("step", ""))
        if step is None or len(row) != len(columns):
            continue
        for name, cell in cells.items():
            value = _number(cell)
            if value is not None:
                found.setdefault(name, {})[int(step)] = value
    return {name: dict(sorted(series.items())) for name, series in found.items()}


def thinned(series: Mapping[Any, float], most: int) -> dict[Any, float]:
    """At most ``most`` values, each the mean of neighbours, at the place of the last of them."""
    where = list(series)
    together = -(-len(where) // most) or 1
    groups = [where[i : i + together] for i in range(0, len(where), together)]
    return {group[-1]: sum(series[x] for x in group) / len(group) for group in groups}


def is_share(metric: str) -> bool:
    """Whether a metric is a share from 0 to 1, which is shown in per cent."""
    return metric.rpartition("/")[2].removesuffix("_epoch") in ("accuracy", "top5", "purity", "feedback_share")


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def read_rows(path: Path) -> list[Row]:
    """The finite numbers of each step, by column; strict, but for a last row that is being written.

    Raises:
        UserError: the file cannot be read, is no metrics file, or has another line than a row of numbers before its
            end.
    """
    columns, rows = read_table(path)
    if columns or rows:
        require_metrics(path, columns)
    found: dict[int, Row] = {}
    for number, cells in enumerate(rows, 2):
        try:
            row = {name: float(cell) for name, cell in zip(columns, cells, strict=True) if cell}
            step = int(row["step"])
        except (ValueError, KeyError, OverflowError) as error:
            if number == len(rows) + 1:
                # A run that is being written: a row that is replaced by a shorter one leaves its end for a moment.
                break
            raise UserError(
                f"{path}, line {number}: expected {len(columns)} numbers or empty cells, found "
                f"{','.join(cells)[:40]!r}; fix or remove that line."
            ) from error
        found.setdefault(step, {}).update({name: value for name, value in row.items() if math.isfinite(value)})
    return [found[step] for step in sorted(found)]


# --- summary.json -----------------------------------------------------------------------------------------------------


def read_summary(path: Path, needed: Collection[str] = ("epochs", "steps", "test_loss")) -> dict[str, Any] | None:
    """What a run wrote at its end; None where there is no such file.

    Raises:
        UserError: the file cannot be read, or is not one of ours, which say all that is ``needed``.
    """
    foreign = f"{path}: is not a summary that this program wrote"
    try:
        if not path.is_file():
            return None
        summary = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fix its permissions.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{foreign}: it is not the JSON of a summary ({error}); move it away.") from error
    if not isinstance(summary, dict) or not set(needed) <= set(summary) or not has_kinds(summary):
        raise UserError(
            f"{foreign}: expected the summary of a run with its {', '.join(needed)}, found something else; move it "
            "away."
        )
    return summary


def has_finished(summary: dict[str, Any] | None, max_epochs: int, max_steps: int) -> bool:
    """Whether a run with this summary, None before its end, has been trained as long as these options say."""
    return summary is not None and (summary["epochs"] >= max_epochs or 0 < max_steps <= summary["steps"])


def has_kinds(summary: dict[str, Any]) -> bool:
    """Whether what a summary says is of the kinds that we write: numbers, texts."""
    kinds = {
        int: ("epochs", "steps", "seed", "train_images", "val_images", "test_images"),
        int | float: ("batches_per_epoch", "wall_seconds", "feedback_seconds"),
        int | float | None: (
            "val_accuracy",
            *(name for name in summary if name.startswith("test_") and name != "test_images"),
        ),
        str: ("algo", "model", "data", "task", "result", "tested_weights", "command", "finished"),
        dict: ("versions",),
    }
    fit = all(isinstance(summary[name], kind) for kind, names in kinds.items() for name in names if name in summary)
    return fit and all(isinstance(version, str) for version in summary.get("versions", {}).values())
