"""The common frame of all commands: how they are called, and from arguments to an exit status. Imports no torch."""

from __future__ import annotations

import argparse
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from dtp.distributed.launcher import require_sense
from dtp.errors import UserError, told_by_a_library, told_by_the_system
from dtp.fields import flag, wrong_choice, wrong_type
from dtp.system.signals import Interrupted, Stopped


def command_words(name: str) -> list[str]:
    """How the user starts the command ``name`` (train, sweep, ...), for messages and records: ``dtp NAME``.

    From a checkout that is not installed, main.py trains.
    """
    ours = Path(__file__).parents[2] / "main.py"
    started = name == "train" and sys.argv and Path(sys.argv[0]).resolve() == ours.resolve()
    return ["python", "main.py"] if started else ["dtp", name]


def command_line(name: str) -> str:
    """:func:`command_words` as text."""
    return " ".join(command_words(name))


class CommandParser(argparse.ArgumentParser):
    """argparse's, whose mistakes are one sentence and an exception; names of options are not to be shortened."""

    def __init__(self, **settings: Any):
        super().__init__(**{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{one_sentence(message).rstrip('.')} ({self.prog} --help).")


def one_sentence(message: str) -> str:
    """argparse's message in our form: what was expected, what was found."""
    match = re.match(r"argument ([^:\s]+):", message)
    names = match.group(1).split("/") if match else [""]
    # Of several names the first long one: the last may be its opposite.
    word = next((name for name in names if name.startswith("--")), names[-1])
    where = flag(word.lstrip("-")) if word.startswith("-") else word
    if choice := re.search(r"invalid choice: '?([^' ]*)'? \(choose from (.*)\)", message):
        choices = [word.strip(" '") for word in choice.group(2).split(",")]
        return str(wrong_choice(where, choice.group(1), choices))
    if boolean := re.search(r"[Bb]oolean value expected.*'(.*)'", message):
        return str(wrong_type(where or "An option", "bool", repr(boolean.group(1))))
    if value := re.search(r"invalid (\S+) value: (.*)", message):
        said = wrong_type(where, value.group(1).strip("'").removeprefix("_parse_"), value.group(2))
        more = "; several are separated by spaces, decimals by a point." if "," in value.group(2) else "."
        return f"{str(said).removesuffix('.')}{more}"
    if where:
        what = message.partition(": ")[2]
        found = ", found none" if re.fullmatch(r"expected (at least )?one argument", what) else ""
        return f"{where}: {what.rstrip('.')}{found}."
    return message[0].upper() + message[1:] + "."


def require_words(argv: Sequence[str]) -> None:
    """Raise UserError for an empty word, which an unset variable of the shell gives, or one that no line of text holds.

    The words of a command are kept in files, a line for each command.
    """
    option = "An argument"
    for word in argv:
        name, equals, value = word.partition("=")
        if word.startswith("--") and len(word) > 2:
            option = name
        if not word or (equals and not value and word.startswith("--")):
            raise UserError(f"{_printable(option)}: expected a value, found an empty text; give one, or leave it out.")
        if not _is_one_line(word):
            raise UserError(
                f"{_printable(option)}: expected text of one line, found {_printable(word)}; leave out line breaks and "
                "control characters, and where there are other letters than English ones, set LC_ALL=C.UTF-8."
            )


def _is_one_line(word: str) -> bool:
    # Control characters, surrogates (what is left of bytes that are no text), separators of lines and paragraphs.
    return not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in word)


def _printable(word: str) -> str:
    return word if _is_one_line(word) else ascii(word)


def look_for_modules_here() -> None:
    """Find a user's own classes where the command is typed; after all that is installed, and not in a run folder.

    There may be files of others, which must not take the place of a library that a command imports.

    Raises:
        UserError: the current folder has been removed.
    """
    from dtp.run.layout import lies_in_run_folder

    try:
        here = os.getcwd()
    except OSError as error:
        raise UserError("The current folder is no longer there; go to one that is, and start again.") from error
    if here not in sys.path and not lies_in_run_folder(Path(here)):
        sys.path.append(here)


def run_command(command: Callable[[Sequence[str]], int], argv: Sequence[str] | None) -> int:
    """What ``command`` returns for ``argv`` (None: the process's); 2 after a mistake of the user, told in a sentence.

    75 where a signal stopped it, 130 for Ctrl-C. Unexpected errors pass.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        look_for_modules_here()
        require_sense()
        require_words(argv)
        return command(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.status
    except (Interrupted, KeyboardInterrupt):
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError) as error:
        why = told_by_the_system(error) if isinstance(error, OSError) else told_by_a_library(error)
        if not why:
            raise
        print(f"error: {why}", file=sys.stderr)
        return 2
