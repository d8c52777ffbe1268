"""Run folders made up for tests, of the files and columns that real ones have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dtp.algorithms.feedback_schedule import FeedbackSchedule
from dtp.cli.config import as_arguments
from dtp.experiments.report.groups import Section, compare_costs, sections
from dtp.experiments.report.reading import read_runs, with_defaults


def only_section(folder: Path) -> Section:
    """The section that all runs in a folder belong to, with its costs."""
    (section,) = sections(read_runs([folder]))
    compare_costs(section)
    return section


def make_run(
    folder: Path,
    algo: str = "bp",
    seed: int = 0,
    accuracy: float = 0.95,
    epochs: int = 4,
    finished: bool = True,
    trained: int | None = None,
    seconds: float = 1.0,
    angles: Sequence[float] = (),
    feedback: Sequence[float] = (),
    summary: dict[str, Any] | None = None,
    rows: Sequence[dict[str, Any]] | None = None,
    batches: int = 550,
    **options: Any,
) -> Path:
    """A run that ended at ``accuracy`` on the test set.

    Args:
        epochs: that its configuration asks for.
        trained: that it has trained; all by default.
        seconds: of the training batches of each epoch.
        angles: of updates at the end, by layer from 1 on.
        feedback: of feedback weights at the end, by layer from 2 on.
        summary: entries that replace those of the summary.
        rows: in place of the metrics.
        batches: of each epoch.
        options: of the configuration.
    """
    chosen = {"algo": algo, "model": "mlp", "data": "mnist", "max_epochs": epochs, "seed": seed, **options}
    config = with_defaults({"task": "classification", "batch_size": 100, **chosen})
    trained = epochs if trained is None else trained
    found: list[dict[str, Any]] = []
    start = {f"update_angle/layer{n}": 90.0 for n in range(1, len(angles) + 1)}
    if start:
        found.append({"epoch": 0, "step": 0, **start})
    schedule = FeedbackSchedule.of(config)
    passes, best = sum(schedule.trains_forward(e, batches) for e in range(trained)), 0.1
    done = 0
    for epoch in range(trained):
        done += schedule.trains_forward(epoch, batches)
        if done:
            best = accuracy - (accuracy - 0.1) * 0.3**done if done < passes else accuracy
        found.append(
            {
                "epoch": epoch,
                "step": batches * (epoch + 1),
                **{f"update_angle/layer{n}": angle for n, angle in enumerate(angles, 1)},
                **{f"feedback_angle/layer{n}": angle for n, angle in enumerate(feedback, 2)},
                "val/loss": 1 - best,
                "val/accuracy": best,
                "train/images_per_second": 100 * batches / seconds,
            }
        )
    if finished and found:
        found[-1]["test/accuracy"] = accuracy
    folder.mkdir(parents=True)
    words = " ".join(as_arguments(chosen))
    (folder / "config.yaml").write_text(
        f"# command: python main.py {words} --data-dir /somewhere/else --run-dir {folder}\n"
        + yaml.safe_dump(config, sort_keys=False)
    )
    write_metrics(folder / "metrics.csv", found if rows is None else rows)
    if finished:
        content = {
            "algo": algo,
            "seed": seed,
            "task": config["task"],
            "epochs": trained,
            "steps": batches * trained,
            "wall_seconds": 1.1 * seconds * trained,
            "feedback_seconds": 0.0 if algo == "bp" else 0.55 * seconds * trained,
            "val_accuracy": accuracy,
            "test_accuracy": accuracy,
            "test_loss": 1 - accuracy,
            "tested_weights": f"epoch {trained}, best on validation",
            "train_images": 55000,
            "val_images": 5000,
            "test_images": 10000,
            "parameters": 1000,
            "device": "Abacus, 2 cores",
            "world_size": 1,
            "threads": 1,
            "versions": {"dtp": "0.1.0", "commit": "abc", "python": "3.11", "torch": "2.9", "lightning": "2.6"},
            "finished": f"2026-01-01T00:00:0{seed % 10}+0000",
            **(summary or {}),
        }
        (folder / "summary.json").write_text(json.dumps(content))
    return folder


def write_metrics(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(["epoch", "step", *(name for row in rows for name in row)]))
    lines = [",".join(columns), *(",".join(str(row.get(name, "")) for name in columns) for row in rows)]
    path.write_text("".join(line + "\n" for line in lines))
