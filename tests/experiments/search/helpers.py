"""Studies whose trials are trained in no time."""

import math
from pathlib import Path

from dtp.cli.arguments import parse
from dtp.experiments.jobs import FAILURE_FILE, Job
from dtp.experiments.search.space import Parameter, Space
from dtp.experiments.search.study import Settings, Study
from dtp.run.folder import saved_options

SPACE = Space(
    "ours",
    "Ours: for a test.",
    {"lr": Parameter("log-uniform", (1e-4, 1.0)), "widths": Parameter("choice", ([8], [8, 8]))},
    {"optimizer": "adam"},
)
GIVEN = {"algo": "bp", "model": "mlp", "data": "digits", "max_epochs": 2}


def open_study(folder="study", store="", space=SPACE, command="python -m dtp.search", **changes) -> Study:
    """The study in a folder; ``changes`` are settings that differ from the usual ones."""
    options = saved_options(parse(["--algo", "bp", "--max-epochs", "2"]))
    settings = {"objective": "val/accuracy", "sampler": "random", "sampler_seed": 0, "random_first": 4, **changes}
    settings = Settings(options={**options, **settings.pop("options", {})}, space=space.as_dict(), **settings)
    return Study(Path(folder), store, settings, space, GIVEN, command, tell=lambda text: None)


def accuracy(job: Job) -> float:
    """Best near a rate of 0.01, as of a network."""
    return 1 - 0.1 * abs(math.log10(job.options["lr"]) + 2)


def train(study: Study, job: Job, value: float | None = None) -> None:
    """What run_jobs does with a job that finishes: its folder, and the study's being told."""
    write_metrics(job, accuracy(job) if value is None else value)
    study.ended(job, "finished")


def fail(study: Study, job: Job, why: str) -> None:
    """What run_jobs does with a job that fails by its own fault."""
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / FAILURE_FILE).write_text(f"{why}\n")
    study.ended(job, "failed")


def write_metrics(job: Job, value: float) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    rows = ["epoch,step,train/loss,val/accuracy,val/loss", f"0,10,0.5,{value / 2},0.7", "1,20,0.4,,"]
    rows += [f"1,20,,{value},0.5", f"2,30,,{value - 0.01},0.6"]
    (job.folder / "metrics.csv").write_text("\n".join(rows) + "\n")
