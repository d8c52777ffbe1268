"""What values an option accepts: its type, choices and range, written once, on its dataclass field.

The command line and the constructors of rules and networks both use this. Imports no torch, so that ``--help`` is
quick.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import numbers
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePath
from types import MemberDescriptorType, UnionType
from typing import Any, Literal

from dtp.errors import UserError, did_you_mean, ended

# Of fractions: what is larger overflows in the floating-point numbers that networks are made of.
MOST = 1e30
# Of whole numbers that say how often something is done, or how much of it is made: more never ends, or has no room.
MOST_OFTEN = 10**6


if typing.TYPE_CHECKING:
    Iterations = int | float
else:

    class Iterations:
        """How many iterations: a whole number or ``inf``, a float. Made of the word for it."""

        def __new__(cls, word: str) -> int | float:
            return math.inf if str(word) in ("inf", ".inf") else int(word)


@dataclass(frozen=True)
class Range:
    """Bounds of a number, or of each number of a list: ``least <= number <= most``, ``above < number < below``."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    unit: str = ""

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies within all the bounds that there are; NaN lies within none."""
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def words(self, many: bool = False) -> str:
        """What is expected, in words; ``many`` for a list of values."""
        numbers, open_above = "values" if many else "a number", self.most is None and self.below is None
        if self.above is None and open_above:
            low = f"{self.least:.10g} or more" if self.least == 0 else f"at least {self.least:.10g}"
            text = f"values of at least {self.least:.10g}" if many else low
        else:
            low = f"above {self.above:.10g}" if self.above is not None else f"from {self.least:.10g}"
            joined = "and up to" if self.above is not None else "to"
            high = f" {joined} {self.most:.10g}" if self.most is not None else ""
            if self.below is not None:
                high = f" {'and' if self.above is not None else 'to'} below {self.below:.10g}"
            text = f"{numbers} {low}{high}"
        return f"{text} ({self.unit})" if self.unit else text


def option(
    default: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    unit: str = "",
    **more: Any,
) -> Any:
    """A dataclass field that says more of an option than its type: its range, and what else is true of it.

    A subclass that gives the option another default and says nothing keeps what is said here.

    Args:
        more: the rest of the field's metadata, asked for by :func:`said_of`:

            - ``search``: what a search of the rule is to make of the option, as the file of a domain says it:
              ``{kind: values}``, or the one value of all trials.
            - ``varies``: how far its value may differ within one run: ``"resumed"`` when the run is resumed,
              ``"process"`` in each of its processes too, ``"start"`` as it belongs to one start and is not saved.
            - ``before``: the value that stands for what versions did that had no such option.
            - ``only_with``: values of other options, by name; where a file or the command line gives another, what a
              preset, or a file before it, says of this option is left out.
            - ``budget=True``, of options of ours: it says how long and from which seed is trained, no part of what a
              search finds.
            - ``untimed=True``, of options of ours: a batch takes as long with any value.
            - ``watching=True``, of options of ours: it says where a run computes, or how often it is measured and
              saved; reports average over runs that differ in it.
            - ``same_work=True``, of options of a network: a batch takes nearly as long with any value.
            - ``same_network=True``, of options of a network: two that differ in it are the same one to a reader.
            - ``written``, of options of ours whose texts can be written in several ways: a function that gives the one
              that stands for all.
            - ``unlimited=True``, of options of ours: a large number stands for never, for no limit, or for any other.

    Raises:
        ValueError: another word for ``varies``.
    """
    if more.get("varies", "start") not in ("resumed", "process", "start"):
        raise ValueError(f'varies: expected "resumed", "process" or "start", found {more["varies"]!r}')
    limits = Range(least, above, most, below, unit)
    metadata = more if limits == Range() else {"range": limits, **more}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def flag(name: str) -> str:
    """An option as it is on the command line."""
    return f"--{name.replace('_', '-')}"


def wrong_choice(where: str, found: Any, choices: Iterable[Any]) -> UserError:
    """The mistake that a value is none of the choices."""
    choices = [str(choice) for choice in choices]
    hint = did_you_mean(str(found), choices)
    return UserError(ended(f"{where}: expected one of {', '.join(choices)}; found {found!r}{hint}"))


def wrong_type(where: str, kind: str, found: str) -> UserError:
    """The mistake that a value is of another type; ``kind`` is the name of the right one."""
    expected = {
        "int": "a whole number",
        "Iterations": "a whole number or inf",
        "float": "a number",
        "bool": "true or false",
        "str": "a word",
    }.get(kind, "a number")
    return UserError(f"{where}: expected {expected}, found {found}.")


def made(cls: type, options: Any, values: Mapping[str, Any], owner: str) -> Any:
    """Checked options of the dataclass ``cls``.

    Args:
        options: an instance, values by name, or None for the defaults.
        values: by name, in place of those of ``options``.
        owner: who has these options, for messages.

    Raises:
        UserError: a name that no option has, a value that is out of range, or ``options`` of another type.
    """
    require_declared(cls, owner)
    if options is not None and not isinstance(options, Mapping):
        require_options(cls, options, owner)
        return checked(dataclasses.replace(options, **_known(type(options), values, owner)) if values else options)
    return checked(cls(**_known(cls, {**(options or {}), **values}, owner)))


def require_options(cls: type, options: Any, owner: str) -> None:
    """Raise UserError for options that lack some of those of the dataclass ``cls``, such as a bare number or its class.

    A class that a notebook has defined anew has the same options, and is not the same class.
    """
    names = {field.name for field in dataclasses.fields(cls)}
    is_made = dataclasses.is_dataclass(options) and not isinstance(options, type)
    if not is_made or not names <= {field.name for field in dataclasses.fields(options)}:
        found = type(options).__qualname__ if is_made else repr(options)[:80]
        raise UserError(f"{owner}: expected its options, {owner}.Options(...), found {found}.")


def _known(cls: type, values: Mapping[str, Any], owner: str) -> Mapping[str, Any]:
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    for name in values:
        if name not in names:
            hint = did_you_mean(name, names) or f"; it has {', '.join(names)}"
            if any(name in inspect.get_annotations(base) for base in cls.__mro__):
                hint = f"; decorate its class {cls.__qualname__} with @dataclass"
            raise UserError(ended(f"{owner} has no option {name!r}{hint}"))
    return values


def default_of(field: dataclasses.Field) -> Any:
    """The default of a field that has one, made anew where it is made."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def checked(options: Any) -> Any:
    """A copy of ``options``, a dataclass, with numbers as Python's own, and lists where one value was given for a list.

    Whoever gave the options may change theirs, and lists in them, for the next.

    Raises:
        UserError: a value of the wrong type, none of the choices, or out of range.
    """
    cls, options = type(options), own(options)
    hints = _hints(cls)
    for field in dataclasses.fields(cls):
        value = getattr(options, field.name)
        # A default is right by definition: a class of the user's own may have None for a number.
        found = value if value is field.default else _typed(flag(field.name), hints.get(field.name, Any), value)
        if found is not value:
            setattr(options, field.name, found)
        require_usual(cls, field, found)
        require_range(cls, field.name, found)
    return options


def own(options: Any) -> Any:
    """A copy of ``options``, a dataclass, whose lists, dictionaries and sets are its own; other values are shared."""
    copied = copy.copy(options)
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if isinstance(value, list | dict | set):
            object.__setattr__(copied, field.name, copy.copy(value))
    return copied


def require_ranges(options: Any) -> None:
    """Raise UserError for numbers that are out of the range of their option, whatever else a user's own class holds."""
    if not dataclasses.is_dataclass(options) or isinstance(options, type):
        return
    for field in dataclasses.fields(options):
        value = getattr(options, field.name, None)
        if all(isinstance(number, int | float) for number in (value if isinstance(value, list) else [value])):
            require_range(type(options), field.name, value)


def require_range(cls: type, name: str, value: Any) -> None:
    """Raise UserError for a number, or one of a list, that is out of the range of an option."""
    limits, many = said_of(cls, name, "range"), isinstance(value, list)
    if limits is None:
        return
    for number in value if many else [value]:
        # No number where a class of the user's declares the option anew with another type.
        if number is not None and not (isinstance(number, int | float) and limits.holds(number)):
            raise UserError(f"{flag(name)}: expected {limits.words(many)}, found {number}.")


def said_of(cls: type, name: str, what: str) -> Any:
    """What the metadata of an option says of ``what``: its own, or that of the nearest class above which says it."""
    for base in cls.__mro__:
        field = vars(base).get("__dataclass_fields__", {}).get(name)
        if field is not None and what in field.metadata:
            return field.metadata[what]
    return None


def require_usual(cls: type, field: dataclasses.Field, value: Any) -> None:
    """Raise UserError for numbers that 32 bits of a float do not hold, and for whole ones that no run is made for."""
    most = _most(cls, field.name)
    for number in value if isinstance(value, list | tuple) else [value]:
        # Of iterations, and where a class of the user's own has it for a default, inf means something.
        may_be_inf = "Iterations" in str(field.type) or field.default == math.inf
        is_odd = isinstance(number, float) and not abs(number) <= MOST and not (number == math.inf and may_be_inf)
        is_long = isinstance(number, int) and not -(2**63) <= number <= most
        if is_odd or is_long:
            expected = f"a whole number of at most {most}" if is_long else f"a number of at most {MOST:g}"
            if is_odd and not math.isfinite(number):
                expected = "finite values"
            raise UserError(f"{flag(field.name)}: expected {expected}, found {str(number)[:30]}; give a usual number.")


def _most(cls: type, name: str) -> int | float:
    """The highest value of a whole number among options. Whoever defines others says by themselves what is too many."""
    definer = [base for base in cls.__mro__ if name in vars(base).get("__dataclass_fields__", ())][-1]
    if said_of(cls, name, "unlimited") or definer.__module__.partition(".")[0] != "dtp":
        # Seeds are hashed.
        return math.inf if name.endswith("seed") else 2**63 - 1
    return MOST_OFTEN


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except Exception:
        # Names that a class of the user's own has only where it is written: nothing is known of their types.
        return {}


def _typed(where: str, hint: Any, value: Any) -> Any:
    """``value`` in the type of ``hint``, the same object where it is; types that are not ours pass."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise wrong_choice(where, value, typing.get_args(hint))
        return value
    if origin in (typing.Union, UnionType):
        inner = [part for part in typing.get_args(hint) if part is not type(None)]
        return value if value is None or len(inner) != 1 else _typed(where, inner[0], value)
    if origin is list:
        (item,) = typing.get_args(hint) or (Any,)
        if isinstance(value, list):
            typed = [_typed(where, item, part) for part in value]
            return value if all(a is b for a, b in zip(typed, value, strict=True)) else typed
        # As on the command line: one value is a list of one.
        parts = value if isinstance(value, tuple) else value.tolist() if hasattr(value, "tolist") else value
        return [_typed(where, item, part) for part in (parts if isinstance(parts, list | tuple) else [parts])]
    if hint is bool and not isinstance(value, bool):
        raise wrong_type(where, "bool", repr(value))
    if hint is str and not isinstance(value, str):
        raise wrong_type(where, "str", repr(value))
    if hint in (int, float, Iterations):
        return _number(where, hint, value)
    found = as_hinted(hint, value)
    if isinstance(hint, type) and issubclass(hint, Enum) and not isinstance(found, hint):
        raise wrong_choice(where, value, hint.__members__)
    return found


def as_hinted(hint: Any, value: Any) -> Any:
    """``value`` in a type of ``hint`` that files do not have: a member of an Enum for its name, a path, a tuple."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        inner = [part for part in parts if part is not type(None)]
        return value if value is None or len(inner) != 1 else as_hinted(inner[0], value)
    kind = origin or hint
    if kind in (list, tuple) and isinstance(value, list | tuple):
        alike = kind is list or parts[1:] == (...,)
        hints = parts[:1] * len(value) if alike else parts
        known = len(hints) == len(value)
        return kind(as_hinted(part, item) for part, item in zip(hints, value, strict=True)) if known else kind(value)
    if isinstance(hint, type) and issubclass(hint, PurePath) and isinstance(value, str):
        return hint(value)
    if isinstance(hint, type) and issubclass(hint, Enum) and not isinstance(value, hint):
        # By its name, as on the command line, or by its value.
        members = {member.value: member for member in hint if isinstance(member.value, str)} | dict(hint.__members__)
        return members.get(value, value) if isinstance(value, str) else value
    return value


def as_saved(options: Any) -> tuple[dict[str, Any], list[str]]:
    """Options of a dataclass by name, in the types that a checkpoint may have, and the names of those that have none.

    :func:`from_saved` makes the same of them again.
    """
    saved, left_out = {}, []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        try:
            saved[field.name] = _kept(value)
        except TypeError:
            # A default is what the class says.
            left_out += [] if value is field.default else [field.name]
    return saved, left_out


def _kept(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, list | tuple):
        return [_kept(item) for item in value]
    if isinstance(value, dict):
        return {_kept(key): _kept(item) for key, item in value.items()}
    if value is None or type(value) in (bool, int, float, complex, str):
        return value
    # Of NumPy, some of which are Python's too.
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"no value of a checkpoint: {type(value).__name__}")


def from_saved(cls: type, saved: Mapping[str, Any]) -> Any:
    """The dataclass ``cls`` of values that :func:`as_saved` gave, or a file; those that it does not name are left out.

    Raises:
        TypeError, ValueError: it cannot be made of them.
    """
    hints = _hints(cls)
    given = {}
    for field in dataclasses.fields(cls):
        if field.init and field.name in saved:
            usual = type(field.default) if isinstance(field.default, Enum) else Any
            given[field.name] = as_hinted(hints.get(field.name, usual), saved[field.name])
    options = cls(**given)
    for name, value in given.items():
        # They are those after a __post_init__, which may have made others of them once more.
        object.__setattr__(options, name, value)
    return options


def require_declared(cls: type, owner: str) -> None:
    """Raise UserError for a class of options that sets one without declaring it: the class above would have its way."""
    # Without ClassVar, which is no option.
    for name in {field.name for base in cls.__mro__ if _is_dataclass(base) for field in dataclasses.fields(base)}:
        for base in cls.__mro__:
            if _is_dataclass(base) and name in inspect.get_annotations(base):
                # It has its way over those that follow.
                break
            # Slots have places for options of the classes above, too, which set nothing.
            if name in vars(base) and not isinstance(vars(base)[name], MemberDescriptorType):
                raise UserError(
                    f"{owner}: its class {base.__qualname__} sets {name} and does not declare it, so that the option "
                    f"would keep its old default; write it with its type ({name}: TYPE = ...) in a class that is "
                    "decorated with @dataclass."
                )


def require_extended(owner: Any, where: str) -> None:
    """Raise UserError where the options of a class lack some of those that our class above it reads."""
    ours: Any = next(above for above in owner.__mro__ if is_ours(above))
    own = {field.name for field in dataclasses.fields(owner.Options)} if dataclasses.is_dataclass(owner.Options) else ()
    lacking = next((field.name for field in dataclasses.fields(ours.Options) if field.name not in own), None)
    if lacking is not None:
        raise UserError(
            f"{where}: its class Options must extend that of {ours.__name__}, found one without {lacking!r}; write "
            f"class Options({ours.__name__}.Options), decorated with @dataclass."
        )


def is_ours(cls: type) -> bool:
    """Whether the package has the class."""
    return cls.__module__.partition(".")[0] == "dtp"


def _is_dataclass(cls: type) -> bool:
    """Whether it is decorated itself, not a class above it alone."""
    return "__dataclass_fields__" in vars(cls)


def _number(where: str, hint: type, value: Any) -> int | float:
    if hint is Iterations and value == "inf":
        return math.inf
    is_infinite = hint is Iterations and isinstance(value, numbers.Real) and value == math.inf
    kind = numbers.Real if hint is float or is_infinite else numbers.Integral
    if isinstance(value, bool) or not isinstance(value, kind):
        raise wrong_type(where, hint.__name__, repr(value))
    # NumPy's, some of which are Python's floats too, which the files of a run would not know.
    return int(value) if isinstance(value, numbers.Integral) else float(value)


PRECISIONS: dict[str, Literal["32-true", "64-true", "bf16-mixed"]] = {
    "32": "32-true",
    "32-true": "32-true",
    "64": "64-true",
    "64-true": "64-true",
    "bf16-mixed": "bf16-mixed",
}


def require_precision(precision: str) -> None:
    """Raise UserError for a precision in which the rules do not hold."""
    if "16" in precision and not precision.startswith("bf16"):
        raise UserError(
            f"--precision {precision}: float16 is refused, for its loss scale changes between the optimizers of "
            "one batch and spoils the feedback weights; use bf16-mixed or 32."
        )
    if precision not in PRECISIONS:
        raise UserError(f"--precision: expected one of 32, 64, bf16-mixed; found {precision!r}.")
