"""Shell completion for the command dtp: dtp completion bash|zsh|tcsh, by the library shtab. Imports no torch."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from importlib import import_module

from dtp.cli.commands import run_command
from dtp.cli.program import COMMANDS
from dtp.errors import UserError
from dtp.fields import flag

SHELLS = ("bash", "zsh", "tcsh")
_HELP = """usage: dtp completion bash|zsh|tcsh

Print what the shell needs to complete the commands, their options and choices. For bash:
  dtp completion bash > ~/.local/share/bash-completion/completions/dtp
for zsh, into a folder of $fpath:
  dtp completion zsh > ~/.zsh/completions/_dtp"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(_completion, argv)


def _completion(argv: Sequence[str]) -> int:
    if argv and argv[0] in ("--help", "-h"):
        print(_HELP)
        return 0
    if len(argv) != 1 or argv[0] not in SHELLS:
        raise UserError(f"dtp completion: expected one of {', '.join(SHELLS)}, found {' '.join(argv) or 'none'}.")
    try:
        import shtab  # pyright: ignore[reportMissingImports] (an extra, which need not be there)
    except ImportError as error:
        raise UserError("dtp completion needs shtab: pip install 'targetprop[completion]'.") from error
    print(shtab.complete(whole_parser(), argv[0]))
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """All commands with all their options, of every rule, network and dataset."""
    parser = argparse.ArgumentParser(prog="dtp")
    parser.add_argument("--version", action="store_true", help="the version")
    commands = parser.add_subparsers()
    for name, (module, summary) in COMMANDS.items():
        if name == "train":
            _add_training_options(commands.add_parser(name, help=summary))
        elif name == "completion":
            commands.add_parser(name, help=summary).add_argument("shell", choices=SHELLS)
        else:
            made = import_module(module).make_parser()
            commands.add_parser(name, help=summary, parents=[made], add_help=False)
    return parser


def _add_training_options(parser: argparse.ArgumentParser) -> None:
    from dtp.cli.arguments import REGISTRIES
    from dtp.cli.config import RunOptions

    choices = {registry.flag: registry.names() for registry in REGISTRIES}
    classes = [RunOptions, *(entry.load_options() for registry in REGISTRIES for entry in registry.entries.values())]
    for cls in classes:
        for field in dataclasses.fields(cls):
            # bool, too, has two words to choose from.
            words = ["true", "false"] if "bool" in str(field.type) else re.findall(r"'([^']+)'", str(field.type))
            found = choices.setdefault(field.name, [])
            found += [word for word in words if word not in found]
    for name, words in choices.items():
        parser.add_argument(flag(name), choices=words or None)
