"""The best configuration of a study as a preset: a YAML file for ``--config``. Imports no torch."""

from __future__ import annotations

import textwrap
from pathlib import Path

import yaml

from dtp.cli.arguments import parse
from dtp.cli.config import as_arguments, config_values, preset_of, said_of_options
from dtp.errors import UserError
from dtp.experiments.search.study import Settings, Study, Trial
from dtp.run.folder import saved_options

# How and where a run of ours is watched is no part of what a search finds. What an option of a user's own is to a
# result, nobody knows.
WATCHED = {name for name, varies in said_of_options("varies").items() if varies != "start"}


def write_preset(path: Path, study: Study, best: Trial) -> None:
    """Write the options of ``best``, those of the preset and of the file that it builds on included.

    The length of the trials is left out: they may have been short to be many. It is said in the comment.

    Raises:
        UserError: the file exists, or cannot be written.
    """
    settings, space = study.settings, study.space
    # How long and from what seed the trials were trained is no part of what they found.
    given = {name: value for name, value in study.given.items() if name not in said_of_options("budget")}
    own = {**space.options({}), **best.options, **given}
    config = parse(as_arguments(own))
    run = config.run
    names = ["algo", "model", "data"]
    preset = preset_of(run.algo, run.model, run.data, str(given.get("task", "")))
    preset = preset or preset_of(run.algo, run.model, run.data)
    if preset is not None:
        names += preset.values
    if run.config:
        names += config_values(run.config)[0]
    values = {name: value for name, value in saved_options(config).items() if name not in WATCHED}
    names = [name for name in dict.fromkeys([*names, *own]) if name in values]
    text = yaml.safe_dump({name: values[name] for name in names}, sort_keys=False, default_flow_style=None, width=110)
    comment = textwrap.fill(
        _origin(settings, study, best), 120, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(f"{comment}\n{text}")
    except FileExistsError as error:
        raise UserError(f"--write-preset {path}: exists already, and nothing is overwritten; give another.") from error
    except OSError as error:
        raise UserError(f"--write-preset {path}: cannot be written ({error.strerror}); give another.") from error


def _origin(settings: Settings, study: Study, best: Trial) -> str:
    trials = study.trials()
    options = settings.options
    length = f"{options['max_epochs']} epoch{'s' if options['max_epochs'] > 1 else ''}"
    if str(options.get("limit_train_batches", "1.0")) != "1.0":
        length += f" of {options['limit_train_batches']} batches (a count, or a fraction with a point)"
    if options.get("max_steps", -1) > 0:
        length += f", {options['max_steps']} batches at most"
    return (
        f"Ours: best of {len(trials)} trials of a {settings.sampler} search (seed {settings.sampler_seed}), by "
        f"{settings.objective}, {best.value:.4f}, in runs of {length} with seed {options['seed']}: {best.folder} of "
        f"{study.folder.name}. Searched: {', '.join(study.space.parameters)}. Domain: {study.space.origin}"
    )
