"""Every public method and property of a public class has a docstring: its own, or that of what it overrides."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import dtp


def public_classes() -> Iterator[tuple[str, type]]:
    """Those of dtp, with their names; not of what runs where it is imported."""
    for module in pkgutil.walk_packages(dtp.__path__, "dtp."):
        if module.name.endswith(".__main__"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if inspect.isclass(value) and value.__module__ == module.name and not name.startswith("_"):
                yield f"{module.name}.{name}", value


def function_of(attribute: Any) -> Callable[..., Any] | None:
    """What has the docstring of a method or a property; None for attributes of other kinds."""
    if isinstance(attribute, property):
        return attribute.fget
    if isinstance(attribute, cached_property):
        return attribute.func
    if isinstance(attribute, classmethod | staticmethod):
        return attribute.__func__
    return attribute if inspect.isfunction(attribute) else None


def undocumented(cls: type) -> list[str]:
    """The public methods and properties of the class that no docstring tells of, here or in a class above."""

    def is_told(name: str) -> bool:
        functions = [function_of(vars(base)[name]) for base in cls.__mro__ if name in vars(base)]
        return any(function is not None and function.__doc__ for function in functions)

    own = [name for name, value in vars(cls).items() if not name.startswith("_") and function_of(value) is not None]
    return [name for name in own if not is_told(name)]


def test_what_a_public_class_offers_has_a_docstring():
    classes = dict(public_classes())
    assert {"dtp.algorithms.dtp.DTP", "dtp.feedback.context.ShapeContext", "dtp.fields.Range"} <= classes.keys()
    assert not [f"{where}.{name}" for where, cls in classes.items() for name in undocumented(cls)]


def test_what_counts_as_a_docstring():
    class Base:
        setting = ""

        def told(self):
            """What it does."""

        @property
        def also_told(self):
            """What it is."""

    class Own(Base):
        def told(self): ...

        @cached_property
        def also_told(self): ...

        @property
        def setting(self): ...

        @classmethod
        def made(cls): ...

        @cached_property
        def kept(self): ...

        def _private(self): ...

    assert undocumented(Base) == []
    assert undocumented(Own) == ["setting", "made", "kept"]
