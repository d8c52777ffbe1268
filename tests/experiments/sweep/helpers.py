"""Sweeps and their runs, made up for tests."""

import json
from pathlib import Path

from dtp.experiments.jobs import Job
from dtp.experiments.sweep.plan import Sweep, read_sweep
from dtp.run.folder import Run, write_config

TINY = """
# From nowhere; shows nothing.
title: Tiny
base: {data: digits, model: mlp, max_epochs: 2, lr_schedule: constant}
variants:
  dtp: {algo: vanilla-dtp}
  bp: {algo: bp}
grid:
  widths: [[8], [8, 8]]
seeds: [0, 1]
figure:
  - {kind: curves, metric: val/accuracy, panels: variant, against: batches}
  - {kind: values, metric: test/accuracy, x: depth}
  - {kind: final, metric: test/accuracy}
"""


def sweep_file(folder: Path, text: str = TINY, name: str = "tiny") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text.lstrip())
    return path


def sweep_of(folder: Path, text: str = TINY) -> Sweep:
    return read_sweep(sweep_file(folder, text))


def made_up(job: Job, metrics: dict[str, dict[int, float]], epochs: int = 2, per_epoch: int = 10) -> None:
    """A run of ``job`` that has finished with these metrics, by column and batch."""
    run = Run(job.folder)
    run.checkpoints.mkdir(parents=True)
    write_config(run, job.config(), "made up")
    steps = sorted({step for series in metrics.values() for step in series})
    rows = [",".join(["epoch", "step", *metrics])]
    for step in steps:
        values = [str(series.get(step, "")) for series in metrics.values()]
        rows.append(",".join([str(max(0, step - 1) // per_epoch), str(step), *values]))
    (job.folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    summary = {
        "epochs": epochs,
        "steps": epochs * per_epoch,
        "test_accuracy": 0.5,
        "test_loss": 1.0,
        "wall_seconds": 2.0,
        "device": "abacus",
        "threads": 1,
        "versions": {"dtp": "0"},
    }
    (job.folder / "summary.json").write_text(json.dumps(summary))
