"""Names on the command line and their classes.

Each of ``dtp.algorithms``, ``dtp.models`` and ``dtp.data`` holds one :class:`Registry`. What it knows is registered in
the package's ``options``, before the dataclass of its options. An entry names its class as an import path, so that
``--help`` can list and describe everything without importing torch. A name of the form ``package.module:Class`` is a
user's own class in the user's own file.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, TypeVar

from dtp.errors import UserError, did_you_mean
from dtp.fields import require_extended

_Options = TypeVar("_Options", bound=type)


@dataclass(frozen=True)
class Entry:
    """One choice of a command-line flag.

    Attributes:
        name: what the user types.
        target: ``"module:Class"`` that implements it (imports torch).
        options: ``"module:Dataclass"`` with its command-line options (does not import torch).
        summary: one line for ``--help`` and the README table.
        preset, family: as :meth:`Registry.register` takes them.
    """

    name: str
    target: str
    options: str
    summary: str
    preset: Mapping[str, Any] | None = None
    family: str = ""

    def load(self) -> Any:
        """The class itself. Imports torch."""
        return import_object(self.target)

    def load_options(self) -> type:
        """The dataclass of its options."""
        return import_object(self.options)


class Registry:
    """The choices of one flag, in the order in which they were registered.

    Attributes:
        flag: its name without dashes.
        base: import path of the class that a user's own must be a subclass of.
    """

    def __init__(self, flag: str, base: str):
        self.flag = flag
        self.base = base
        self.entries: dict[str, Entry] = {}

    def register(
        self, name: str, target: str, summary: str, preset: Mapping[str, Any] | None = None, family: str = ""
    ) -> Callable[[_Options], _Options]:
        """Register a choice with the dataclass of options that this decorates.

        Args:
            target: ``"module:Class"`` of the package that :attr:`base` is in.
            preset: values of its presets for small runs (digits and MNIST), besides those that all rules share
                (``dtp/presets/shared``), picked by validation accuracy in short runs. Left out where files in
                ``dtp/presets`` say all: for another network, or other values for each of the two.
            family: with which rules reports draw it, in the order in which they are registered; left out: with none.
        """

        def registered(options: _Options) -> _Options:
            package = self.base.partition(":")[0].rpartition(".")[0]
            path = f"{options.__module__}:{options.__name__}"
            self.entries[name] = Entry(name, f"{package}.{target}", path, summary, preset, family)
            return options

        return registered

    def classes(self) -> dict[str, str]:
        """Import paths of the classes of all choices, by the names of the classes."""
        return {entry.target.partition(":")[2]: entry.target for entry in self.entries.values()}

    def names(self) -> list[str]:
        """Of ours, in the order in which they were registered."""
        return list(self.entries)

    def name_of(self, cls: type) -> str:
        """What ``cls`` is called on the command line: by a name of ours, or ``module:Class``."""
        path = f"{cls.__module__}:{cls.__qualname__}"
        return next((entry.name for entry in self.entries.values() if entry.target == path), path)

    def resolve(self, name: str, never_from: Sequence[Path] = ()) -> Entry:
        """Entry for ``name``: one of ours, or ``module:Class`` of the user, whose module is imported: it runs.

        For names that the user's command has given. Who reads what others have written looks into ``entries`` instead.

        Args:
            never_from: folders, besides all run folders, that hold no programs of the user's.

        Raises:
            UserError: unknown name, module or class, a class that is not of this kind, or a module in a run folder.
        """
        if name in self.entries:
            return self.entries[name]
        if ":" not in name:
            raise UserError(
                f"--{self.flag} {name}: no such choice{did_you_mean(name, self.entries)}; "
                f"choose from {', '.join(self.entries)}, or give your own as module:Class."
            )
        folder = _run_folder_of(name.partition(":")[0], never_from)
        if folder is not None:
            raise UserError(
                f"--{self.flag} {name}: lies in the run folder {folder}, from which no program is run; move the file "
                "to the current directory if it is yours."
            )
        return self._user_entry(name)

    def _user_entry(self, path: str) -> Entry:
        try:
            with _here_first():
                found = import_object(path)
        except SystemExit as error:
            raise UserError(
                f"--{self.flag} {path}: its file ended the program as it was imported (sys.exit({error.code!r})); "
                'take that out of it, or put it under if __name__ == "__main__".'
            ) from error
        except Exception as error:
            # Whatever importing a user's file may raise, a syntax error among others.
            raise UserError(
                f"--{self.flag} {path}: could not be imported ({type(error).__name__}: {error}); expected "
                "module:Class, with the name of a module (no path) in the current directory or installed."
            ) from error
        base = import_object(self.base)
        if not (isinstance(found, type) and issubclass(found, base)):
            raise UserError(
                f"--{self.flag} {path}: expected a subclass of {self.base.replace(':', '.')}, found {found!r}."
            )
        _require_signatures(path, found)
        if not isinstance(getattr(found, "Options", None), type):
            raise UserError(f"--{self.flag} {path}: its Options must be a class, found {found.Options!r}; fix it.")
        require_extended(found, f"--{self.flag} {path}")
        summary = (found.__doc__ or "").strip().partition("\n")[0]
        return Entry(path, path, f"{path}.Options", summary)


# Lightning calls these with as many arguments as they take.
_ADAPTED = {"training_step", "validation_step", "test_step"}


def _require_signatures(path: str, cls: type) -> None:
    """Raise UserError unless all methods that a user's class overrides can be called as ours and Lightning's are."""
    ours = [base for base in cls.__mro__ if base.__module__.partition(".")[0] in ("dtp", "lightning")]
    for name in dict.fromkeys(name for base in cls.__mro__ if base not in ours for name in vars(base)):
        own = inspect.getattr_static(cls, name)
        theirs = next((vars(base)[name] for base in ours if name in vars(base)), None)
        if not inspect.isfunction(theirs) or (name.startswith("_") and name != "__init__") or name in _ADAPTED:
            continue
        where = f"{path}: its {name}"
        if not callable(own) and not isinstance(own, staticmethod | classmethod):
            raise UserError(f"{where} must be a method, found {own!r}; define it with def, or rename it.")
        # Of what cannot be called as it is, a classmethod, there is none.
        method: Any = own
        try:
            signature = inspect.signature(method)
        except (TypeError, ValueError):
            continue
        usual = list(inspect.signature(theirs).parameters.values())
        named = [p for p in usual if p.kind is p.POSITIONAL_OR_KEYWORD]
        given = named[1:] if isinstance(own, staticmethod) else named
        try:
            # As we call them: what has a default by its name.
            signature.bind(
                *[p for p in given if p.default is p.empty], **{p.name: p for p in given if p.default is not p.empty}
            )
        except TypeError as error:
            raise UserError(
                f"{where} takes {_names(signature)}, and must take {_names(inspect.signature(theirs))}; fix its "
                "parameters."
            ) from error


def _names(signature: inspect.Signature) -> str:
    """A signature without its types."""
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))


def import_object(path: str) -> Any:
    """The object at ``"package.module:Name"`` or ``"package.module:Name.attribute"``."""
    module_name, _, attributes = path.partition(":")
    found = importlib.import_module(module_name)
    for attribute in attributes.split("."):
        found = getattr(found, attribute)
    return found


@contextmanager
def _here_first() -> Iterator[None]:
    """Have a user's own module in the current folder go before an installed one of its name."""
    here = os.getcwd()
    if here not in sys.path:
        # A run folder, or whoever calls us looks elsewhere.
        yield
        return
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _run_folder_of(module: str, others: Sequence[Path]) -> Path | None:
    """The run folder, or one of ``others``, that ``module`` would be imported from; nothing is imported to find out."""
    from dtp.run.layout import is_run_folder

    others = [folder.resolve() for folder in others]
    path: list[str] | None = [os.getcwd(), *sys.path]
    for part in module.split("."):
        # Each part as if it stood alone: importlib's own search through a dotted name imports all but the last.
        try:
            spec = PathFinder.find_spec(part, path)
        except (ImportError, ValueError):
            return None
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or [])
        places = [Path(place).resolve() for place in ([*path, spec.origin] if spec.has_location else path)]
        for place in places:
            for folder in (place, *place.parents):
                if folder in others or is_run_folder(folder):
                    return folder
    return None


def lazy_attributes(module: str, classes: dict[str, str]) -> Callable[[str], Any]:
    """A module's ``__getattr__`` that imports classes, by name and import path, on first use.

    They need torch, and ``--help``, which imports their packages, must not wait for it.
    """

    def get(name: str) -> Any:
        if name in classes:
            return import_object(classes[name])
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return get
