"""Run a sweep and draw it: dtp sweep NAME [options of dtp train for all its runs]."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dtp.algorithms import ALGORITHMS
from dtp.cli.arguments import also_options_of, parse
from dtp.cli.commands import CommandParser, command_line, command_words, run_command
from dtp.cli.config import as_arguments, options_among
from dtp.errors import UserError, user_path
from dtp.experiments.jobs import MOST_AT_ONCE, Job, run_jobs
from dtp.experiments.sweep.plan import (
    NUMBERS,
    PLAN,
    SWEEPS,
    TABLE,
    Sweep,
    read_sweep,
    require_metrics,
    require_seeds,
    sweep_path,
)
from dtp.fields import flag
from dtp.run.provenance import recorded, without_places
from dtp.system.files import write_atomically

SWEPT = Path("runs") / "sweeps"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: those of dtp train, and 1 where runs broke off or could not begin."""
    return run_command(_sweep, argv)


def make_parser() -> argparse.ArgumentParser:
    """The command's options, for it and for shell completion."""
    parser = CommandParser(
        prog=command_line("sweep"),
        description="Run a sweep: what has not finished, several runs at once; then draw it. The same command goes on.",
        epilog="Ours: " + ", ".join(sorted(path.stem for path in SWEEPS.glob("*.yaml"))) + ". Other options are those "
        "of dtp train, for all runs, and beat the file: --data-dir DIR --max-epochs 1.",
    )
    parser.add_argument("sweep", nargs="?", default="", help="name of one of ours, or a YAML file")
    parser.add_argument(
        "--output", type=user_path, help="folder of the runs and the figure (default: runs/sweeps/NAME)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds, in place of the file's")
    parser.add_argument("--jobs", type=int, default=0, help="runs at once (default: one for each GPU, or core)")
    parser.add_argument("--again", action="store_true", help="try again what failed in training by its own fault")
    parser.add_argument("--list", action="store_true", help="print the runs, and run none")
    parser.add_argument("--draw", action="store_true", help="draw what there is, and run nothing")
    return parser


def _sweep(argv: Sequence[str]) -> int:
    parser = make_parser()
    if argv and argv[0].startswith("--") and argv[0].partition("=")[0] not in parser._option_string_actions:
        # argparse would take the value of the option for the sweep.
        raise UserError(f"{argv[0]}: expected the name of the sweep first; dtp sweep NAME {argv[0]} ...")
    options, words = parser.parse_known_args(argv)
    if not 0 <= options.jobs <= MOST_AT_ONCE:
        raise UserError(f"--jobs: expected a number from 0 to {MOST_AT_ONCE}, found {options.jobs}.")
    path = sweep_path(options.sweep)
    sweep = read_sweep(path)
    if options.seeds:
        require_seeds("--seeds", options.seeds)
        sweep = replace(sweep, seeds=options.seeds)
    folder = options.output or SWEPT / sweep.name
    jobs = sweep.jobs(folder, extra_options(words))
    # Mistakes before there is a folder.
    if options.list or not options.draw:
        with also_options_of(parser):
            _require_configurations(path, sweep, jobs)
    if options.list:
        for job in jobs.values():
            print(f"{job.folder}: {shlex.join([*command_words('train'), *job.words])}")
        return 0
    broken = False
    if not options.draw:
        keep_plan(folder, path)
        states = run_jobs(list(jobs.values()), options.jobs, options.again)
        for state, text in (
            ("failed", "failed; those that did so in training are tried again with --again"),
            ("elsewhere", "are run elsewhere"),
        ):
            count = sum(found == state for found in states.values())
            if count:
                print(f"{count} of {len(jobs)} runs {text}.")
        # What diverges is a result; what could not even begin is not.
        broken = any(
            states[job.folder] == "broken" or (states[job.folder] == "failed" and not job.has_begun)
            for job in jobs.values()
        )
    # Only now: drawing takes seconds to import.
    from dtp.experiments.sweep.figure import draw_sweep

    figure = draw_sweep(sweep, folder, jobs, _command(options.sweep, options.seeds or [], words))
    if figure is None:
        print("No run has a result: there is nothing to draw.")
    else:
        print(f"Figure {figure}; numbers in {folder / NUMBERS} and {folder / TABLE}")
    return int(broken)


def _require_configurations(path: Path, sweep: Sweep, jobs: Mapping[tuple[str, int], Job]) -> None:
    """Raise UserError if a run's options mean no configuration; for what the file alone says, it names the file.

    Also if no run can have a metric that the figure is to show, as far as it is known.
    """
    options = {point.name: point.options for point in sweep.points}
    runs, validate = [], False
    for (name, _), job in jobs.items():
        try:
            config = job.config()
            runs.append(config.run)
            validate |= config.run.limit_val_batches != "0" and getattr(config.data, "val_size", None) != 0
        except UserError as error:
            if _mistake(options[name]) != str(error):
                raise
            raise UserError(f"{path}{f', {name}' if len(options) > 1 else ''}: {error}") from error
    metrics = [metric for part in sweep.figure for metric in part.metric]
    if not validate and all(metric.startswith("val/") for metric in metrics):
        raise UserError(
            f"{path}: figure, metric: expected one that its runs measure, found {', '.join(metrics)}, and none of them "
            "validates; give another, such as test/accuracy."
        )
    # What a rule of the user's own measures, it alone knows.
    if all(run.algo in ALGORITHMS.entries for run in runs):
        require_metrics(path, sweep.figure, {run.task for run in runs})


def _mistake(options: dict[str, Any]) -> str:
    try:
        parse(as_arguments(options))
    except UserError as error:
        return str(error)
    return ""


def keep_plan(folder: Path, path: Path) -> None:
    """Put a copy of the sweep's file beside its runs.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / PLAN, path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be written ({error.strerror}); give a folder that can.") from error


def _command(sweep: str, seeds: Sequence[int], words: Sequence[str]) -> str:
    """The command for the record, without the folders of this machine."""
    chosen = ["--seeds", *map(str, seeds)] if seeds else []
    return recorded([*command_words("sweep"), Path(sweep).name, *chosen, *without_places(words)])


def extra_options(words: Sequence[str]) -> dict[str, Any]:
    """Options of dtp train among the words of a command line, by name; an empty list for a flag alone.

    Raises:
        UserError: a word that belongs to no option.
    """
    if words and (words[0] == "--" or not words[0].startswith("--")):
        raise UserError(f"Unexpected word {words[0]!r}; options begin with two dashes.")
    options = options_among(words)
    for name in ("seed", "run_dir", "resume"):
        if name in options:
            raise UserError(f"{flag(name)}: is not allowed here, for each run of a sweep has its own; leave it out.")
    return {name: values[0] if len(values) == 1 else values for name, values in options.items()}
