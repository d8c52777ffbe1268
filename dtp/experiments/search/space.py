"""The search space: which options are varied, and over which values. Imports no torch.

It is what the options of the rule say (``search=`` of their fields), or a YAML file::

    # Where the domain comes from.
    lr: {log-uniform: [1.0e-5, 3.0e-4]}        # evenly in the logarithm
    noise: {uniform: [0.01, 0.3]}
    batch_size: {integer: [16, 256]}           # both ends included; log-integer: evenly in the logarithm
    beta2: {choice: [0.99, 0.999]}             # a choice may be a list, for options that take several values
    optimizer: adam                            # the same in all trials

An option on the command line is also the same in all trials, and overrides the file.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtp.algorithms import ALGORITHMS
from dtp.cli.config import comment_of, load_yaml, with_underscores
from dtp.errors import UserError, did_you_mean, ended, user_path
from dtp.fields import flag, said_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

SPACES = Path(__file__).parent / "spaces"
KINDS = ("log-uniform", "uniform", "log-integer", "integer", "choice")
# Each trial has its own, or the study decides.
NOT_SEARCHED = ("algo", "model", "data", "config", "run_dir", "resume", "seed", "split_seed", "task")


@dataclass(frozen=True)
class Parameter:
    """One option that is varied.

    Attributes:
        kind: one of KINDS.
        values: lowest and highest value; for ``choice`` all there are.
    """

    kind: str
    values: tuple[Any, ...]

    def distribution(self) -> BaseDistribution:
        """The same for Optuna."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.kind == "choice":
            return CategoricalDistribution([_label(value) for value in self.values])
        kind = IntDistribution if self.kind.endswith("integer") else FloatDistribution
        return kind(*self.values, log=self.kind.startswith("log-"))

    def value(self, found: Any) -> Any:
        """The value of the option for what Optuna has found: a list again, where that is the choice."""
        if self.kind != "choice":
            return found
        return next((value for value in self.values if _label(value) == found), found)


@dataclass(frozen=True)
class Space:
    """The domain of a search.

    Attributes:
        name: of its file, without the ending, or of the rule whose options say it.
        origin: where it comes from.
        parameters: what is varied, by option.
        fixed: options that are the same in all trials.
        where: the file, or whose options, for messages.
    """

    name: str
    origin: str
    parameters: dict[str, Parameter]
    fixed: dict[str, Any]
    where: str = ""

    def without(self, names: Iterable[str]) -> Space:
        """The same without these options, which the command line sets."""
        names = set(names)
        parameters, fixed = (
            {name: value for name, value in values.items() if name not in names}
            for values in (self.parameters, self.fixed)
        )
        return dataclasses.replace(self, parameters=parameters, fixed=fixed)

    def corners(self) -> list[dict[str, Any]]:
        """As few configurations as have both ends of each range and all values of each choice.

        The first is of all first values, the last of all last ones.
        """
        count = max((len(parameter.values) for parameter in self.parameters.values()), default=1)
        return [
            {name: parameter.values[max(i, -len(parameter.values))] for name, parameter in self.parameters.items()}
            for i in (0, *range(1 - count, 0))
        ]

    def options(self, found: dict[str, Any]) -> dict[str, Any]:
        """All options that a trial with these values of the parameters sets."""
        return {**self.fixed, **{name: self.parameters[name].value(value) for name, value in found.items()}}

    def as_dict(self) -> dict[str, Any]:
        """What the file says, in the types of YAML."""
        parameters = {name: {p.kind: list(p.values)} for name, p in self.parameters.items()}
        return {**self.fixed, **parameters}


def domain(name: str, algo: str) -> Space:
    """The domain ``name``: a file, or that of one of our rules; without a name that of the rule ``algo``.

    A rule's domain is a file of ours, or what its options say (``option(..., search=...)``). Of a rule of the user's
    own that says nothing it is the domain of the rule whose options it extends.

    Raises:
        UserError: there is none, or it cannot be read, or is not a valid domain.
    """
    if not name:
        found = next(filter(None, (_of_rule(rule, options) for rule, options in _lineage(algo))), None)
        if found is None:
            raise UserError(
                f"--algo {algo}: no domain is known for it; describe one in a YAML file, --space FILE, or at its "
                "options, option(..., search=...)."
            )
        return found
    path, rule = user_path(name), name.removesuffix(".yaml")
    if path.is_file():
        return read_space(path)
    if rule in ALGORITHMS.entries:
        return domain("", rule)
    raise UserError(
        f"--space {name}: no such file{did_you_mean(path.stem, ALGORITHMS.entries)}; expected a YAML file, or a rule, "
        "for its own domain."
    )


def _of_rule(rule: str, options: type) -> Space | None:
    """The domain in our file of a rule, or else the one that its options say, in their order; None for neither."""
    path = SPACES / f"{rule}.yaml"
    if path.is_file():
        return read_space(path)
    said = {field.name: said_of(options, field.name, "search") for field in dataclasses.fields(options)}
    content = {name: value for name, value in said.items() if value is not None}
    origin = f"what the options of {rule} say."
    if rule in ALGORITHMS.entries or "search_origin" in vars(options):
        # What a class of a user's own inherits is said of a domain of ours.
        origin = getattr(options, "search_origin", origin)
    space = _space(rule, f"domain of {rule}", origin, content)
    return space if space.parameters else None


def _lineage(algo: str) -> list[tuple[str, type]]:
    """The rule, and those whose options it extends, nearest first, each with its options."""
    own = (algo, ALGORITHMS.resolve(algo).load_options())
    if algo in ALGORITHMS.entries:
        return [own]
    names = {other.load_options(): name for name, other in reversed(ALGORITHMS.entries.items())}
    return [own, *((names[cls], cls) for cls in own[1].__mro__ if cls in names)]


def read_space(path: Path) -> Space:
    """The domain in a file.

    Raises:
        UserError: it cannot be read, or is not a valid domain.
    """
    text, content = load_yaml(path)
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UserError(f"{path}: expected lines of the form 'option: {{uniform: [0, 1]}}' or 'option: value'.")
    return _space(path.stem, str(path), comment_of(text), content)


def _space(name: str, where: str, origin: str, content: dict[str, Any]) -> Space:
    parameters, fixed = {}, {}
    try:
        content = with_underscores(content)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    for option, value in content.items():
        if option in NOT_SEARCHED:
            raise UserError(f"{where}: {option!r} is no option of a domain; give {flag(option)} to the search.")
        if value is None:
            raise UserError(f"{where}: {option}: expected a value, found none (null); give one, or take the line out.")
        if isinstance(value, dict):
            parameters[option] = _parameter(f"{where}: {option}", value)
        else:
            fixed[option] = value
    return Space(name, origin, parameters, fixed, where)


def _parameter(where: str, content: dict[str, Any]) -> Parameter:
    if len(content) != 1 or next(iter(content)) not in KINDS:
        found = ", ".join(map(str, content)) or "nothing"
        hint = did_you_mean(found, KINDS)
        raise UserError(ended(f"{where}: expected one of {', '.join(KINDS)}, found {found}{hint}"))
    ((kind, values),) = content.items()
    if kind == "choice":
        if not isinstance(values, list) or not values or any(isinstance(value, dict | None) for value in values):
            raise UserError(f"{where}: expected a list of choices, found {values!r}.")
        if len({str(_label(value)) for value in values}) < len(values):
            raise UserError(f"{where}: expected each choice once, found {values}.")
        return Parameter(kind, tuple(values))
    whole = kind.endswith("integer")
    bounds = [_number(value, whole) for value in values] if isinstance(values, list) else []
    if len(bounds) != 2 or None in bounds:
        kinds = "whole numbers" if whole else "numbers"
        raise UserError(f"{where}: expected the lowest and the highest of its {kinds}, [LOW, HIGH], found {values!r}.")
    low, high = bounds
    if not low < high:
        raise UserError(f"{where}: expected a lowest value below the highest, found {low} and {high}.")
    if kind.startswith("log-") and low <= 0:
        raise UserError(f"{where}: expected a lowest value above 0, for logarithms are taken, found {low}.")
    return Parameter(kind, (low, high))


def _number(value: Any, whole: bool) -> Any:
    """A finite number, or None. Also of a text, for to YAML 1e-5, without a point, is one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = int(value) if whole else float(value)
        is_finite = math.isfinite(number)
    except (ValueError, OverflowError):
        # The second of inf as a whole number, and of a whole one that no float holds.
        return None
    return number if is_finite and (not whole or isinstance(value, int | str)) else None


def _label(value: Any) -> Any:
    """A choice as Optuna stores it: lists as words."""
    return " ".join(map(str, value)) if isinstance(value, list) else value
