"""Measure what a paper proves, and plot it: dtp theory NAME [options of the study]."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dtp.cli.commands import CommandParser, command_line, command_words, run_command
from dtp.errors import UserError, did_you_mean, user_path
from dtp.experiments.theory.options import STUDIES, Study, StudyOptions
from dtp.fields import flag
from dtp.system.files import write_json
from dtp.system.memory import importing_torch, keep_freed_memory

MEASURED = Path("runs") / "theory"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(_theory, argv)


def _theory(argv: Sequence[str]) -> int:
    given = _parse(argv)
    study, options = STUDIES[given.study], given.options
    results, figure = (given.output / f"{study.name}.{ending}" for ending in ("json", "png"))
    before = _own_result(study, results, figure)
    if given.draw:
        if before is None:
            raise UserError(f"--draw: expected {results}, found no such file; leave --draw out to measure.")
        record = before
    else:
        _prepare(given.output)
        record = _measure(study, options, argv)
        # Before it is drawn: what took minutes shall not be lost with a figure.
        write_json(results, record)
    study.load("draw")(record["values"], figure)
    print(study.load("table")(record["values"]))
    print(f"Results in {results} and {figure}")
    return 0


def _measure(study: Study, options: StudyOptions, argv: Sequence[str]) -> dict[str, Any]:
    with importing_torch():
        from dtp.run.provenance import commit, hardware, recorded, versions, without_places

        measure = study.load("measure")
    keep_freed_memory()
    # For the record: by the time that it is written the files may have changed.
    commit()
    values = measure(options)
    try:
        json.dumps(values, allow_nan=False)
    except ValueError as error:
        raise UserError(
            f"dtp theory {study.name}: expected finite measurements, found some that are not, as of feedback that "
            "diverges; lower its learning rates."
        ) from error
    settings = dataclasses.asdict(options)
    if "data_dir" in settings:
        settings["data_dir"] = "DIR"
    return {
        "study": study.name,
        "command": recorded([*command_words("theory"), *without_places(argv)]),
        "seeds": options.seeds,
        "settings": settings,
        "values": values,
        **hardware(),
        "versions": versions(),
    }


# --- files ------------------------------------------------------------------------------------------------------------


def _own_result(study: Study, results: Path, figure: Path) -> dict[str, Any] | None:
    """An earlier result of the same study, which may be replaced; None where there is none.

    Raises:
        UserError: there is something else under its name.
    """
    if not results.exists():
        if figure.exists():
            raise UserError(f"{figure} exists without {results}, which it would show; give another --output.")
        return None
    try:
        found = json.loads(results.read_text(encoding="utf-8"))
        if found["study"] == study.name and isinstance(found["values"], dict):
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{results} exists and is no result of this study; give another --output, or move it away.")


def _prepare(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be made ({error.strerror}); give another folder.") from error


# --- the command line -------------------------------------------------------------------------------------------------


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """What the words mean: ``study``, its ``options``, ``output`` and ``draw``."""
    given, unknown = make_parser().parse_known_args(list(argv))
    fields = [field.name for field in dataclasses.fields(STUDIES[given.study].options)]
    if unknown:
        flags = ["--output", "--draw", *map(flag, fields)]
        raise UserError(
            f"Unknown option {unknown[0]}{did_you_mean(unknown[0], flags)} "
            f"({command_line('theory')} {given.study} --help lists all)."
        )
    # What is not typed is not among them: a study knows what was asked for from what is its default.
    typed = {name: value for name, value in vars(given).items() if name in fields}
    given.options = STUDIES[given.study].options(**typed)
    return given


def make_parser() -> argparse.ArgumentParser:
    """The command's options, for it and for shell completion."""
    parser = CommandParser(
        prog=command_line("theory"),
        description="Measure what a paper proves or shows on small networks, and draw it: NAME.json and NAME.png.",
        epilog="Options of a study: dtp theory NAME --help.",
    )
    studies = parser.add_subparsers(dest="study", metavar="NAME", required=True, parser_class=CommandParser)
    for study in STUDIES.values():
        described = (study.options.__doc__ or "").partition("\n")[0]
        one = studies.add_parser(study.name, help=study.summary, description=described)
        one.add_argument(
            "--output", type=user_path, default=MEASURED, metavar="DIR", help=f"folder (default: {MEASURED})"
        )
        one.add_argument("--draw", action="store_true", help="measure nothing, draw NAME.json in that folder again")
        _add_options(one, study.options)
    return parser


def _add_options(parser: argparse.ArgumentParser, options: type[StudyOptions]) -> None:
    kinds, defaults = get_type_hints(options), options()
    for field in dataclasses.fields(options):
        kind, default = kinds[field.name], getattr(defaults, field.name)
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        settings: dict[str, Any] = {"default": argparse.SUPPRESS, "help": field.metadata["help"].replace("%", "%%")}
        if shown != "":
            settings["help"] += f" (default: {shown})"
        if get_origin(kind) is list:
            settings.update(nargs="+", type=get_args(kind)[0], metavar=_WORDS[get_args(kind)[0]])
        elif get_origin(kind) is Literal:
            settings.update(choices=get_args(kind))
        else:
            settings.update(type=kind, metavar=_WORDS[kind])
        parser.add_argument(flag(field.name), **settings)


_WORDS = {int: "INT", float: "NUMBER", str: "WORD"}
