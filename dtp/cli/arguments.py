"""From the command line to a configuration: parsing, merging, help and error messages. Imports no torch."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

from simple_parsing import ArgumentGenerationMode, ArgumentParser, ConflictResolution
from simple_parsing.conflicts import ConflictResolutionError
from simple_parsing.docstring import get_attribute_docstring
from simple_parsing.wrappers.field_wrapper import DashVariant

from dtp.algorithms import ALGORITHMS
from dtp.cli.commands import command_line, one_sentence, require_words
from dtp.cli.config import (
    Config,
    Preset,
    RunOptions,
    as_arguments,
    check_run_options,
    config_values,
    options_among,
    preset_choices,
    preset_names,
    preset_of,
    read_configuration,
    said_by,
    written_alike,
)
from dtp.data import DATA
from dtp.errors import UserError, did_you_mean, user_path
from dtp.fields import checked, default_of, flag, require_declared, said_of
from dtp.models import MODELS
from dtp.registry import Entry
from dtp.run.folder import IMAGES, is_recorded, plain, saved_config_of
from dtp.run.provenance import masked

REGISTRIES = (ALGORITHMS, MODELS, DATA)


# Values, not options, as argparse would have those with an exponent.
_NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$|-inf(inity)?$|-nan$", re.IGNORECASE)


# What other programs call our options.
_ELSEWHERE = {
    "learning-rate": "lr",
    "gamma": "lr-gamma",
    "wd": "weight-decay",
    "epochs": "max-epochs",
    "steps": "max-steps",
    "batch": "batch-size",
    "hidden-size": "widths",
    "hidden-sizes": "widths",
    "sigma": "noise",
    "rule": "algo",
    "network": "model",
    "arch": "model",
    "dataset": "data",
    "workers": "num-workers",
    "gpu": "accelerator",
    "cuda": "accelerator",
    "device": "accelerator",
    "gpus": "devices",
    "nodes": "num-nodes",
    "amp": "precision",
    "fp16": "precision",
    "bf16": "precision",
    "output": "run-dir",
    "output-dir": "run-dir",
    "save-dir": "run-dir",
}


class _Parser(ArgumentParser):
    """simple-parsing's parser, whose mistakes are one sentence and an exception instead of an exit."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self._negative_number_matcher = _NEGATIVE

    def error(self, message: str) -> NoReturn:
        raise UserError(one_sentence(message))


class _PlainParser(argparse.ArgumentParser):
    error = _Parser.error


class UnknownOption(UserError):
    """An option that no part of a run has, though one of the ``known`` options may be meant."""

    def __init__(self, given: str, known: set[str], lists_all: str):
        meant = flag(_ELSEWHERE.get(given[2:].replace("_", "-").lower(), ""))
        hint = did_you_mean(meant if meant in known else given, sorted(known))
        super().__init__(f"Unknown option {given}{hint} ({lists_all} all).")
        self.given, self.known = given, known


@contextmanager
def also_options_of(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Within it an unknown option may also be meant as one of ``parser``, of a command that trains runs."""
    try:
        yield
    except UnknownOption as error:
        known = error.known | {option for option in parser._option_string_actions if option.startswith("--")}
        helps = f"{parser.prog} --help and {command_line('train')} --help list"
        raise UnknownOption(error.given, known, helps) from error


class _File(NamedTuple):
    """What a file says of the options.

    Attributes:
        name: in messages.
        run_folder: that it lies in, if it is the configuration of a run.
        recorded: whether a run has written it, and so says all that it was trained with.
        preset: that it is, if it is a shipped one.
    """

    name: str
    values: dict[str, Any]
    run_folder: Path | None
    recorded: bool
    preset: Preset | None = None


class _Source(NamedTuple):
    """Words that a part of the configuration comes from.

    Attributes:
        name: in messages.
        origin: what a run keeps of it; empty for what goes without saying.
    """

    name: str
    words: list[str]
    origin: str = ""


def parse(argv: Sequence[str], own_classes: bool = True) -> Config:
    """The configuration that a command line means: preset, then file, then the words themselves.

    Args:
        own_classes: whether module:Class may be imported, which runs it: not where others have written the words.

    Raises:
        UserError: an unknown option or choice, no value or one of the wrong type, an unreadable or wrong file.
        SystemExit: ``--help``, after printing it.
    """
    require_words(argv)
    first, wants_help, trusts = _first_look(argv)
    files = _files(first)
    chosen = _chosen(first, files)
    if not trusts:
        _require_named_classes(first, files)
    if not own_classes:
        _require_ours(chosen)
    run_folders = [file.run_folder for file in files if file.run_folder is not None]
    entries = {registry.flag: registry.resolve(chosen[registry.flag], run_folders) for registry in REGISTRIES}
    parser = _parser_of(tuple((part, entry.name, entry.load_options()) for part, entry in entries.items()))
    task = _task(first, files, entries["algo"])
    sources = [
        *_usual_loss(task, entries["algo"]),
        *_of_preset(chosen, task, entries["algo"], [file.preset for file in files if file.preset]),
        *(_of_file(file, entries) for file in files),
    ]
    if wants_help:
        defaults = _parse_checked(parser, _words(sources), entries)
        # Whoever reads only the beginning (head, less) has read enough.
        with suppress(BrokenPipeError):
            print(_manual(entries, defaults), flush=True)
        raise SystemExit(0)
    parsed = _parse_sources(parser, sources, list(argv), entries)
    run = _run_options(parsed.run, chosen, task, entries["algo"])
    for options in (parsed.algo, parsed.model, parsed.data):
        _leave_out(options, [*(source.words for source in sources), argv])
        checked(options)
    _require_lasting(parser, {part: getattr(parsed, part) for part in entries}, entries)
    origins = [source.origin for source in sources if source.origin]
    if argv:
        origins.append("command line: " + " ".join(map(masked, argv)))
    return Config(run, parsed.algo, parsed.model, parsed.data, tuple(origins))


# --- what comes from where --------------------------------------------------------------------------------------------


def _first_look(argv: Sequence[str]) -> tuple[dict[str, str | None], bool, bool]:
    """The options that decide which others exist, whether help is wanted, and whether classes in files are trusted."""
    look = _PlainParser(add_help=False, allow_abbrev=False)
    for part in ("algo", "model", "data", "task", "config", "resume"):
        look.add_argument(f"--{part}")
    look.add_argument("-h", "--help", action="store_true")
    look.add_argument("--trust", nargs="?", const="true", default="false")
    known, _ = look.parse_known_args(list(argv))
    values = vars(known)
    return values, values.pop("help"), values.pop("trust").lower() in ("true", "yes", "t", "y", "1")


def _files(first: dict[str, str | None]) -> list[_File]:
    """The configuration of a run that is resumed by its path, then the file the user names."""
    files = []
    resume, config = first["resume"], first["config"]
    if resume is not None and resume != "auto":
        path = user_path(resume)
        saved = saved_config_of(str(path))
        if saved is not None:
            files.append(_File(str(saved), read_configuration(saved), saved.parent, True))
        elif path.is_file():
            files.append(_File(str(path), _of_checkpoint(path), None, True))
        for file in files:
            _require_same_names(first, file)
    if config:
        values, found = config_values(config)
        preset, run_folder = (found, None) if isinstance(found, Preset) else (None, found)
        recorded = run_folder is not None or is_recorded(user_path(config))
        files.append(_File(f"--config {config}", values, run_folder, recorded, preset))
    return files


def _of_checkpoint(path: Path) -> dict[str, Any]:
    """The options in a checkpoint that lies in no run folder; none in one that is not of a run. Imports torch."""
    from dtp.run.checkpoints import read_checkpoint

    found = read_checkpoint(path, mmap=True).get("config")
    if not isinstance(found, dict):
        return {}
    return written_alike({name: value for name, value in found.items() if name != IMAGES})


def _of_files(files: Sequence[_File], name: str) -> Any:
    """What the files say of an option, the last one that names it; None where none does."""
    return next((file.values[name] for file in reversed(files) if name in file.values), None)


def _chosen(first: dict[str, str | None], files: Sequence[_File]) -> dict[str, str]:
    """The names of rule, network and dataset, by flag."""
    implied = preset_choices(first["config"] or "")
    chosen = {}
    for part in (registry.flag for registry in REGISTRIES):
        default = RunOptions.__dataclass_fields__[part].default
        chosen[part] = str(first[part] or _of_files(files, part) or implied.get(part) or default)
    return chosen


def _task(first: dict[str, str | None], files: Sequence[_File], rule: Entry) -> str:
    """What ``--task`` means: auto is the usual one of the rule."""
    task = str(first["task"] or _of_files(files, "task") or "auto")
    return _tasks(rule)[0] if task == "auto" else task


def _tasks(rule: Entry) -> tuple[str, ...]:
    """What a rule can be used for; the first is the usual one."""
    return getattr(rule.load_options(), "tasks", ("classification", "autoencoder"))


def _usual_loss(task: str, rule: Entry) -> list[_Source]:
    """The default of ``--loss`` for auto-encoders; presets, files and the command line beat it."""
    loss = next((field for field in dataclasses.fields(rule.load_options()) if field.name == "loss"), None)
    fits = loss is not None and "squared" in str(loss.type)
    return [_Source("--task autoencoder", ["--loss", "squared"])] if task == "autoencoder" and fits else []


def _of_preset(chosen: dict[str, str], task: str, rule: Entry, named: Sequence[Preset]) -> list[_Source]:
    """The preset of rule, network, dataset and task, where there is one, told in short where the user names others."""
    preset = preset_of(**chosen, task="" if task == _tasks(rule)[0] else task)
    if preset is None:
        return []
    name = f"preset {preset.name}"
    origin = "" if preset in named else name if named else str(preset)
    return [_Source(name, as_arguments(preset.values, empty=True), origin)]


def _of_file(file: _File, entries: dict[str, Entry]) -> _Source:
    """A file, once it has been found to hold what a file may."""
    for key in ("config", "resume", "trust"):
        if file.values.get(key):
            raise UserError(
                f"{file.name}: --{key} belongs on the command line, not into a file; take {key!r} out of it."
            )
    _require_values(file, entries)
    # A run of an earlier version had nothing of what a preset of today says of newer options.
    values = {**(said_by("before", _option_classes(entries).values()) if file.recorded else {}), **file.values}
    origin = str(file.preset or f"file {file.name.removeprefix('--config ')}")
    return _Source(file.name, as_arguments(values, empty=True), origin)


def _words(sources: Sequence[_Source]) -> list[str]:
    return [word for source in sources for word in source.words]


def _parse_sources(
    parser: _Parser, sources: Sequence[_Source], argv: list[str], entries: dict[str, Entry]
) -> argparse.Namespace:
    """What all sources and then the command line give; each is parsed alone first, to name the one at fault."""
    for source in sources:
        try:
            _parse_checked(parser, source.words, entries)
        except UserError as error:
            raise UserError(f"{source.name}: {error}") from error
    # Alone first: a stray word at its beginning would become a value of the last option of the file.
    _parse_checked(parser, argv, entries)
    return _parse_checked(parser, [*_words(sources), *argv], entries)


def _leave_out(options: Any, sources: Sequence[Sequence[str]]) -> None:
    """Give options their defaults that one of the sources sets beside others, which a later one has replaced."""
    given = [options_among(words) for words in sources]
    for field in dataclasses.fields(options):
        beside = said_of(type(options), field.name, "only_with") or {}
        last = max((place for place, names in enumerate(given) if field.name in names), default=len(given))
        later = set().union(*given[last + 1 :])
        if any(name in later and getattr(options, name) != value for name, value in beside.items()):
            setattr(options, field.name, default_of(field))


def _run_options(run: RunOptions, chosen: dict[str, str], task: str, rule: Entry) -> RunOptions:
    """The options of the run with its names and its task, and with ``~`` in its paths filled in; all fit each other."""
    home = {name: str(user_path(value)) for name in ("run_dir", "resume") if (value := getattr(run, name))}
    run = dataclasses.replace(run, **chosen, **home, task=task)
    if task != "clustering" and run.clusters != RunOptions().clusters:
        raise UserError(f"--clusters: expected --task clustering, found {task}; leave it out.")
    tasks = _tasks(rule)
    if task not in tasks:
        known = " or ".join(tasks)
        raise UserError(f"--task {task}: --algo {chosen['algo']} is for {known}; choose another rule or task.")
    check_run_options(run)
    return dataclasses.replace(run, **written_alike(vars(run)))


# --- mistakes ---------------------------------------------------------------------------------------------------------


def _require_values(file: _File, entries: dict[str, Entry]) -> None:
    """Raise UserError for an option that a file gives no value (null), unless none is what it has by default."""
    may_be_none = {
        field.name
        for cls in _option_classes(entries).values()
        for field in dataclasses.fields(cls)
        if field.default is None
    }
    for option, value in file.values.items():
        if value is None and option not in may_be_none:
            raise UserError(
                f"{file.name}: {option}: expected a value, found none (null); give one, or take the line out."
            )


def _require_same_names(first: dict[str, str | None], saved: _File) -> None:
    for part in ("algo", "model", "data"):
        found = saved.values.get(part)
        if first[part] and first[part] != found:
            raise UserError(
                f"--resume: {saved.name} was made with --{part} {found}, not {first[part]}; leave --{part} out, "
                "or start a new run."
            )


def _require_named_classes(first: dict[str, str | None], files: Sequence[_File]) -> None:
    """Raise UserError if a file alone names a class from outside the package, for importing one runs it."""
    for part in (registry.flag for registry in REGISTRIES if not first[registry.flag]):
        named = [(file.name, str(file.values[part])) for file in files if file.values.get(part)]
        for name, found in named[-1:]:
            if ":" in found:
                raise UserError(
                    f"{name}: names the class {found}, a program that the command line does not name; look at it, then "
                    f"give --{part} {found} to run it, or --trust for all that the file names."
                )


def _require_lasting(parser: _Parser, options: dict[str, Any], entries: dict[str, Entry]) -> None:
    """Raise UserError for options of a user's own class that a run could not read from its configuration again."""
    for part, values in options.items():
        if ":" not in entries[part].name:
            continue
        saved = {
            field.name: plain(getattr(values, field.name))
            for field in dataclasses.fields(values)
            if said_of(type(values), field.name, "varies") != "start"
        }
        try:
            again = getattr(_parse_checked(parser, as_arguments(saved, empty=True), entries), part)
        except UserError:
            again = None
        for name, value in saved.items():
            if again is None and _can_be_said(parser, name, value, entries):
                continue
            if again is None or plain(getattr(again, name)) != value:
                found = "" if again is None else f", but {str(getattr(again, name))[:60]!r}"
                raise UserError(
                    f"--{part} {entries[part].name}: a run with its option {name}, {str(value)[:60]!r}, could not be "
                    f"resumed, for read from a configuration that is not the same{found}; have it be a number, a word "
                    "or a list of such that nothing changes (__post_init__), or keep it out of Options."
                )


def _can_be_said(parser: _Parser, name: str, value: Any, entries: dict[str, Entry]) -> bool:
    try:
        _parse_checked(parser, as_arguments({name: value}, empty=True), entries)
    except UserError:
        return False
    return True


def _require_ours(chosen: dict[str, str]) -> None:
    for part, name in chosen.items():
        if ":" in name:
            raise UserError(f"--{part} {name}: names a class from outside the package, a program, and none is run here")


# --- parsing ----------------------------------------------------------------------------------------------------------


def _option_classes(entries: dict[str, Entry]) -> dict[str, type]:
    return {"run": RunOptions, **{flag: entry.load_options() for flag, entry in entries.items()}}


# Making it takes most of the time of parsing, and a sweep parses four times for each of its runs.
@functools.lru_cache(maxsize=64)
def _parser_of(chosen: tuple[tuple[str, str, type], ...]) -> _Parser:
    """The parser of a rule, a network and a dataset, each as flag, name and class of options."""
    classes = {"run": RunOptions, **{flag: cls for flag, _, cls in chosen}}
    names = {flag: name for flag, name, _ in chosen}
    owners: dict[str, str] = {}
    for part, cls in classes.items():
        undecorated = inspect.get_annotations(cls) and "__dataclass_fields__" not in vars(cls)
        if undecorated or not hasattr(cls, "__dataclass_fields__"):
            raise UserError(f"--{part} {names[part]}: its class Options must be decorated with @dataclass.")
        if part != "run":
            require_declared(cls, f"--{part} {names[part]}")
        for field in dataclasses.fields(cast(Any, cls)):
            if owners.setdefault(field.name, part) != part:
                raise UserError(
                    f"The options of --{part} {names[part]} and of the {owners[field.name]} both define "
                    f"{field.name!r}; rename the field in the class of your own."
                )
    parser = _Parser(
        prog=command_line("train"),
        add_help=False,
        allow_abbrev=False,
        add_option_string_dash_variants=DashVariant.UNDERSCORE_AND_DASH,
        conflict_resolution=ConflictResolution.NONE,
        argument_generation_mode=ArgumentGenerationMode.FLAT,
    )
    for part, cls in classes.items():
        parser.add_arguments(cls, part)
    # Else it would be made ready when it first parses: by several threads at once, or half, and kept so after an error.
    try:
        parser._preprocessing()
    except ConflictResolutionError as error:
        called = re.search(r"'-*([\w-]+)'", str(error))
        fields = " and ".join(re.findall(r"field '([\w.]+)'", str(error)))
        raise UserError(
            f"Two options are called {flag(called[1]) if called else '--'} ({fields}): a dataclass within the "
            "options of a class of your own has a name that is taken; rename that field."
        ) from error
    for action in parser._actions:
        if action.choices and not {"yes", "no"}.isdisjoint(action.choices):
            action.type = _yes_or_no
    return parser


def _yes_or_no(word: str) -> str:
    """A word as it was written: to YAML a bare yes is true, and no false."""
    return {"true": "yes", "false": "no"}.get(word.lower(), word)


def _count_anew(parser: _Parser) -> None:
    """For options that are tuples simple_parsing counts the values that it has read, in all parses together."""
    for action in parser._actions:
        names = getattr(getattr(action.type, "__code__", None), "co_freevars", ())
        if "calls_count" in names:
            cast(Any, action.type).__closure__[names.index("calls_count")].cell_contents = 0


def _parse_checked(parser: _Parser, words: list[str], entries: dict[str, Entry]) -> argparse.Namespace:
    # The parser, which is used again, would put its own lists where nothing is given.
    defaults = {action.dest: action.default for action in parser._actions if action.default is not argparse.SUPPRESS}
    given = argparse.Namespace(**copy.deepcopy(defaults))
    _count_anew(parser)
    parsed, unknown = parser.parse_known_args(words, given)
    if unknown:
        raise _unknown_option(unknown, words, parser, entries)
    return parsed


def _unknown_option(
    unknown: list[str], words: list[str], parser: argparse.ArgumentParser, entries: dict[str, Entry]
) -> UserError:
    flags, called = [word for word in unknown if word.startswith("--")], command_line("train")
    if not flags:
        before = [word for word in words[: words.index(unknown[0])] if word.startswith("--")]
        is_value = before and not unknown[0].startswith("-")
        after = f" after {before[-1].partition('=')[0]}, which takes one value" if is_value else ""
        return UserError(
            f"Unexpected word {unknown[0]!r}{after}; options begin with two dashes ({called} --help lists them)."
        )
    given = flags[0].partition("=")[0]
    name = given[2:].replace("-", "_")
    for registry in REGISTRIES:
        having = [e.name for e in registry.entries.values() if name in e.load_options().__dataclass_fields__]
        if having:
            return UserError(
                f"{given} is an option of --{registry.flag} {', '.join(having)}, not of "
                f"--{registry.flag} {entries[registry.flag].name}."
            )
    known = {flag(option.lstrip("-")) for action in parser._actions for option in action.option_strings}
    return UnknownOption(given, known, f"{called} --help lists")


# --- the manual -------------------------------------------------------------------------------------------------------


def _manual(entries: dict[str, Entry], defaults: argparse.Namespace) -> str:
    width = min(shutil.get_terminal_size().columns, 110)
    algo, model, data = (entries[part].name for part in ("algo", "model", "data"))
    called = command_line("train")
    blocks = [
        "Train a deep network by target propagation or a relative of it.",
        f"usage: {called} [--algo NAME] [--model NAME] [--data NAME] [options]",
        _wrap(
            "Values come from the preset of the three names where one exists, then from --config, then from the "
            "command line; each beats the one before. Dashes and underscores in option names mean the same. Lists are "
            "separated by spaces. The options of a rule, network or dataset are shown for the chosen ones: here "
            f"--algo {algo} --model {model} --data {data}, with their defaults; for others add those names to --help.",
            width,
        ),
    ]
    for registry, title in zip(REGISTRIES, ("rules", "networks", "datasets"), strict=True):
        lines = [f"{title} (--{registry.flag}):"]
        names = max(map(len, registry.entries))
        lines += [f"  {name:<{names}}  {entry.summary}" for name, entry in registry.entries.items()]
        blocks.append("\n".join(lines))
    titles = {"run": "run", "algo": f"rule {algo}", "model": f"network {model}", "data": f"dataset {data}"}
    for part, cls in _option_classes(entries).items():
        blocks.append(_describe(titles[part], cls, getattr(defaults, part), width))
    blocks.append("presets:\n" + textwrap.indent(_wrap(", ".join(preset_names()), width - 2), "  "))
    blocks.append(
        "examples:\n"
        f"  {called}                                            digits, under a minute\n"
        f"  {called} --algo bp                                  the same by backprop\n"
        f"  {called} --algo dtp --model vgg --data imagenet32   the published experiment\n"
        f"  {called} --resume auto                              go on where it was stopped"
    )
    return "\n\n".join(blocks)


def _describe(title: str, cls: type, values: Any, width: int) -> str:
    said = cls.__doc__ or ""
    # Where nothing is written, a dataclass has all its fields for that.
    said = "its options" if not said.strip() or said.startswith(f"{cls.__name__}(") else said
    lines = [f"{title}: {said.strip().partition(chr(10))[0]}"]
    for field in dataclasses.fields(cls):
        doc = get_attribute_docstring(cls, field.name)
        text = " ".join((doc.comment_above or doc.docstring_below or doc.comment_inline).split())
        default = as_arguments({field.name: getattr(values, field.name)})[1:]
        if default:
            text += f" (default: {' '.join(default)})"
        lines.append(f"  {flag(field.name)} {_type_words(field.type)}")
        lines.append(textwrap.indent(_wrap(text, width - 6), " " * 6))
    return "\n".join(lines)


def _type_words(annotation: Any) -> str:
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    if "Literal" in text:
        return "{" + ",".join(re.findall(r"'([^']+)'", text)) + "}"
    kind = next((word for key, word in _KINDS.items() if key in text), "WORD")
    return f"{kind} ..." if text.startswith(("list", "typing.List")) else kind


_KINDS = {"bool": "true|false", "int": "INT", "Iterations": "INT|inf", "float": "NUMBER", "str": "WORD"}


def _wrap(text: str, width: int) -> str:
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
