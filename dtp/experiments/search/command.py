"""Search for hyper-parameters: dtp search --algo sdtp --data mnist --trials 60. See --help."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from dtp.cli.arguments import also_options_of, parse
from dtp.cli.commands import CommandParser, command_line, command_words, run_command
from dtp.cli.config import Config, as_arguments, options_among, parse_limit, said_of_options
from dtp.errors import UserError, user_path
from dtp.experiments.jobs import MOST_AT_ONCE, run_jobs
from dtp.experiments.search.preset import WATCHED, write_preset
from dtp.experiments.search.space import Space, domain
from dtp.experiments.search.study import (
    OBJECTIVES,
    SAMPLERS,
    STUDY_FILE,
    Settings,
    Study,
    Trial,
    TrialState,
    best_trial,
    result_of,
    short_arguments,
)
from dtp.fields import MOST_OFTEN, flag
from dtp.run.folder import images_of, saved_options, trust_words
from dtp.run.provenance import recorded

SEARCHES = Path("runs") / "search"
# By task. Clusters are chosen without labels.
USUAL_OBJECTIVE = {"classification": "val/accuracy", "autoencoder": "val/mse", "clustering": "val/loss"}
SHOWN = 5


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0, or 1 where trials broke off, besides those of dtp train."""
    return run_command(_search, argv)


def make_parser() -> argparse.ArgumentParser:
    """The command's options, for it and for shell completion."""
    parser = CommandParser(
        prog=command_line("search"),
        description="Search for hyper-parameters: many short runs with values drawn from the domain of a rule, judged "
        "by the best validation accuracy over their epochs. The same command goes on where it was stopped; started "
        "several times at once, on one machine or several, it divides the trials.",
        epilog="All other options are those of dtp train, are the same in all trials, and beat the domain: --algo sdtp "
        "--model mlp --data mnist --max-epochs 5 --seed 1. A rule's own domain "
        "stands in dtp/experiments/search/spaces, or at its options (search=) in dtp/algorithms/options.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=100),
    )
    parser.add_argument("--trials", type=int, default=60, help="trials in all, over all processes (default: 60)")
    parser.add_argument(
        "--sampler",
        choices=SAMPLERS,
        default="random",
        help="random: each trial on its own; sequential: from what the trials before have found (default: random)",
    )
    parser.add_argument("--sampler-seed", type=int, default=0, help="seed of the values that are drawn (default: 0)")
    parser.add_argument(
        "--random-first", type=int, default=10, help="sequential: trials at first that are random (default: 10)"
    )
    parser.add_argument("--objective", choices=OBJECTIVES, help="default: val/accuracy, or what the task has instead")
    parser.add_argument(
        "--space", default="", metavar="FILE", help="domain, a YAML file or one of our rules (default: the rule's own)"
    )
    parser.add_argument(
        "--study", type=user_path, metavar="DIR", help="folder of the trials (default: runs/search/ALGO_MODEL_DATA)"
    )
    parser.add_argument(
        "--store",
        default="",
        metavar="FILE|URL",
        help="where the processes of a study meet: a file on a disk they share, or a database such as "
        "sqlite:///study.db (default: a file in the folder)",
    )
    parser.add_argument("--jobs", type=int, default=0, help="trials at once (default: one for each GPU, or core)")
    parser.add_argument(
        "--write-preset",
        type=user_path,
        metavar="FILE",
        help="write the best configuration, for dtp train --config FILE",
    )
    parser.add_argument(
        "--wandb-sweep", type=user_path, metavar="FILE", help="write the search as a W&B sweep and run nothing"
    )
    parser.add_argument(
        "--draw", type=user_path, nargs="+", metavar="STUDY", help="draw these studies side by side and run nothing"
    )
    parser.add_argument(
        "--output", type=user_path, metavar="PNG", help="with --draw: the figure; the numbers go beside it, as JSON"
    )
    return parser


def _search(argv: Sequence[str]) -> int:
    parser = make_parser()
    options, words = parser.parse_known_args(argv)
    if options.draw:
        if words:
            raise UserError(f"--draw: expected studies alone, found {words[0]!r}.")
        return _draw(options.draw, options.output)
    if options.output:
        raise UserError("--output: expected --draw with it; the figure of a single study lies in its folder.")
    for name, least, most in (
        ("trials", 1, MOST_OFTEN),
        ("jobs", 0, MOST_AT_ONCE),
        ("sampler_seed", 0, 2**32 - 1),
        ("random_first", 1, MOST_OFTEN),
    ):
        if not least <= (found := getattr(options, name)) <= most:
            expected = f"at least {least}" if found < least else f"at most {most}"
            raise UserError(f"{flag(name)}: expected a whole number of {expected}, found {found}.")
    # Where something must not be overwritten, or has no place, say so before hours are spent.
    for name in ("write_preset", "wandb_sweep"):
        path = getattr(options, name)
        if path is not None and path.exists():
            raise UserError(f"{flag(name)} {path}: exists already, and nothing is overwritten; give another name.")
        if path is not None and not path.parent.is_dir():
            raise UserError(f"{flag(name)} {path}: expected a folder {path.parent}, found none; make it.")
    with also_options_of(parser):
        config, given = _given(words)
    space = _space(options.space, config, given, words)
    objective = options.objective or USUAL_OBJECTIVE.get(config.run.task, "val/accuracy")
    if options.wandb_sweep:
        from dtp.experiments.search.wandb_sweep import write_wandb_sweep

        write_wandb_sweep(options.wandb_sweep, space, given, objective, options.sampler, options.trials)
        print(f"{options.wandb_sweep} written; start it with: wandb sweep {options.wandb_sweep}")
        return 0
    of_all = parse([*as_arguments(space.fixed), *words])
    left_out = {*space.parameters, *WATCHED - said_of_options("budget").keys()}
    settings = Settings(
        options={name: value for name, value in saved_options(of_all).items() if name not in left_out}
        | images_of(of_all),
        space=space.as_dict(),
        objective=objective,
        sampler=options.sampler,
        sampler_seed=options.sampler_seed,
        random_first=options.random_first if options.sampler == "sequential" else 0,
    )
    folder = options.study or SEARCHES / _usual_name(config)
    study = Study(folder, options.store, settings, space, given, recorded([*command_words("search"), *argv]))
    # The study says by itself what becomes of trials, and says nothing of their tests.
    run_jobs(study.jobs(options.trials), options.jobs, tell=lambda text: None, ended=study.ended)
    return _conclude(study, options.write_preset)


def _given(words: Sequence[str]) -> tuple[Config, dict[str, Any]]:
    """The configuration that the words mean, and the options that they name, by name."""
    config = parse(words)
    names = options_among(words)
    for name in ("run_dir", "resume"):
        if name in names:
            raise UserError(f"{flag(name)}: is not allowed here, for each trial has a folder of its own; leave it out.")
    if parse_limit("val", config.run.limit_val_batches) == 0:
        raise UserError("--limit-val-batches: expected at least 1, for trials are judged by their validation, found 0.")
    values = config.as_dict()
    # --noverbose is --verbose false.
    named = [name if name in values else name.removeprefix("no") for name in names]
    # Rule, network and dataset always: a preset of all three sets the rest.
    return config, {name: values[name] for name in dict.fromkeys(["algo", "model", "data", *named])}


def _space(name: str, config: Config, given: dict[str, Any], words: Sequence[str]) -> Space:
    """The domain, without the options that the command line sets, and known to fit the rule."""
    whole = domain(name, config.run.algo)
    for corner in whole.corners():
        try:
            parse([*as_arguments({**whole.fixed, **corner}), *words])
        except UserError as error:
            raise UserError(f"{whole.where}: {error}") from error
    space = whole.without(given)
    if not space.parameters:
        raise UserError(
            f"{whole.where}: nothing is left to be searched: the command line sets {', '.join(whole.parameters)}."
        )
    return space


def _conclude(study: Study, preset: Path | None) -> int:
    """Say what was found, draw it, and write the preset."""
    trials, objective = study.trials(), study.settings.objective
    best = best_trial(trials, objective)
    print(_table(trials, objective))
    running = sum(trial.state == "running" for trial in trials) - len(study.broken)
    if running:
        print(f"{running} of {len(trials)} trials are run elsewhere.")
        if preset is not None:
            print(f"{preset} is not written, for one of these may be the best; the same command writes it after them.")
    if study.broken:
        print(f"{len(study.broken)} broke off; the same command goes on with them: {study.broken[0].log}")
    if best is not None:
        # Looked at for this one alone, after it was chosen.
        print(f"Best: {study.folder / best.folder}, {result_of(study.folder / best.folder).get('result', '')}")
        if preset is not None and not running:
            write_preset(preset, study, best)
            train = shlex.join([*command_words("train"), "--config", str(preset), *trust_words(study.given)])
            print(f"{preset} written; train with: {train}")
        from dtp.experiments.search.figure import draw_studies

        with study.locked():
            draw_studies([study.folder / STUDY_FILE], study.folder / "distribution.png")
        print(f"Results in {study.folder}")
    elif preset is not None and not running:
        raise UserError(f"--write-preset {preset}: none of {len(trials)} trials has finished.")
    return int(bool(study.broken))


def _usual_name(config: Config) -> str:
    run = config.run
    task = [run.task] if run.task != "classification" else []
    return "_".join(re.sub(r"[^\w.-]", "-", name) for name in (run.algo, run.model, run.data, *task))


def _table(trials: list[Trial], objective: str) -> str:
    """How many trials ended how; the best few, with their values; and why others have no value."""
    counts = {state: sum(trial.state == state for trial in trials) for state in get_args(TrialState)}
    lines = [f"{len(trials)} trials: " + ", ".join(f"{count} {state}" for state, count in counts.items() if count)]
    ranked, rest = [], list(trials)
    while len(ranked) < SHOWN and (best := best_trial(rest, objective)) is not None:
        ranked.append(best)
        rest.remove(best)
    for trial in ranked:
        lines.append(f"  {trial.folder}  {objective} {trial.value:.4f}  {short_arguments(trial.options)}")
    lines += [f"  {trial.folder}  {trial.state}: {trial.why}" for trial in trials if trial.why]
    return "\n".join(lines)


def _draw(studies: list[Path], output: Path | None) -> int:
    from dtp.experiments.search.figure import draw_studies

    if output is None:
        if len(studies) > 1:
            raise UserError("--draw: expected --output PNG with it, for several studies have no folder in common.")
        output = (studies[0] if studies[0].is_dir() else studies[0].parent) / "distribution.png"
    print(draw_studies(studies, output))
    return 0
