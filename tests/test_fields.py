"""What options may be: one place for it, from which the command line and the rules of Python say the same."""

import abc
import dataclasses
import math
import re
from dataclasses import dataclass
from threading import Lock
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from simple_parsing.docstring import get_attribute_docstring

import dtp
from dtp.algorithms import ALGORITHMS
from dtp.cli.arguments import parse
from dtp.cli.config import RunOptions
from dtp.data import DATA
from dtp.errors import UserError
from dtp.fields import Iterations, Range, checked, made, option, own, said_of
from dtp.models import MODELS


@dataclass
class Options:
    # A rate.
    rate: float = option(0.5, above=0, most=1)
    # Values.
    values: list[float] = option([], least=0)
    count: int = option(2, least=1)
    kind: Literal["one", "two"] = "one"
    often: list[Iterations] = option([3], least=0)
    on: bool = False
    part: float | None = None
    unset: float = None
    word: str = "a"


@dataclass
class Narrower(Options):
    rate: float = 0.1
    count: int = option(4, least=3)


@pytest.mark.parametrize(
    "bounds, inside, outside, one, many",
    [
        (dict(above=0), [1e-9, 5], [0, -1], "a number above 0", "values above 0"),
        (dict(least=0), [0, 5], [-1e-9], "0 or more", "values of at least 0"),
        (dict(least=2), [2], [1], "at least 2", "values of at least 2"),
        (dict(least=0, most=1), [0, 1], [-0.1, 1.1], "a number from 0 to 1", "values from 0 to 1"),
        (dict(least=0, below=1), [0, 0.9], [1], "a number from 0 to below 1", "values from 0 to below 1"),
        (dict(above=0, most=1), [1e-9, 1], [0, 1.1], "a number above 0 and up to 1", "values above 0 and up to 1"),
        (dict(above=0, below=1), [0.5], [0, 1], "a number above 0 and below 1", "values above 0 and below 1"),
    ],
)
def test_a_range_holds_what_it_says(bounds, inside, outside, one, many):
    limits = Range(**bounds)
    assert all(map(limits.holds, inside)) and not any(map(limits.holds, [*outside, math.nan]))
    assert (limits.words(), limits.words(many=True)) == (one, many)


def test_a_subclass_with_another_default_keeps_the_range_and_may_narrow_it():
    assert said_of(Narrower, "rate", "range") == Range(above=0, most=1)
    assert said_of(Narrower, "count", "range") == Range(least=3)
    with pytest.raises(UserError, match="--rate: expected a number above 0 and up to 1, found 2"):
        checked(Narrower(rate=2))


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"rate": "x"}, "--rate: expected a number, found 'x'."),
        ({"rate": True}, "--rate: expected a number, found True."),
        ({"rate": math.nan}, "--rate: expected finite values, found nan; give a usual number."),
        ({"count": 1.5}, "--count: expected a whole number, found 1.5."),
        ({"count": 2**70}, "--count: expected a whole number of at most 9223372036854775807, found 1180591620717411"),
        ({"kind": "tow"}, "--kind: expected one of one, two; found 'tow'; did you mean two?"),
        ({"often": [1.5]}, "--often: expected a whole number or inf, found 1.5."),
        ({"on": "yes"}, "--on: expected true or false, found 'yes'."),
        ({"part": "x"}, "--part: expected a number, found 'x'."),
        ({"values": [1, -1]}, "--values: expected values of at least 0, found -1."),
        ({"word": 3}, "--word: expected a word, found 3."),
        ({"raet": 1}, "Rule has no option 'raet'; did you mean rate?"),
        ({"zzz": 1}, "Rule has no option 'zzz'; it has rate, values, count, kind, often, on, part, unset, word."),
    ],
)
def test_mistakes_are_told_in_one_sentence(values, sentence):
    with pytest.raises(UserError) as error:
        made(Options, None, values, "Rule")
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize("options", [0.1, "sgd", Options])
def test_options_that_are_none_are_told_in_one_sentence(options):
    with pytest.raises(UserError, match=r"^Rule: expected its options, Rule.Options\(\.\.\.\), found .*\.$"):
        made(Options, options, {}, "Rule")


def test_values_become_the_types_of_their_fields():
    found = made(
        Options, {"rate": 1}, {"values": np.float32(0.5), "count": np.int64(3), "often": (1, math.inf, "inf")}, "Rule"
    )
    assert (found.rate, found.values, found.count, found.often) == (1, [0.5], 3, [1, math.inf, math.inf])
    assert [type(v) for v in (*found.values, found.count)] == [float, int]
    # It is a float of Python's too.
    assert type(made(Options, None, {"rate": np.float64(0.5)}, "Rule").rate) is float


def test_options_that_are_right_stay_as_they_are_and_others_are_not_changed():
    right, wrong = Options(values=[1.0]), Options(values=2.0)
    assert checked(right) == Options(values=[1.0])
    assert checked(wrong).values == [2.0] and wrong.values == 2.0


RANGE_IN_WORDS = re.compile(r"(?<![\w-])(above|at least) -?\d|\d or more|from -?\d[\d.]* (up )?to \d")


def test_an_option_whose_comment_tells_a_range_has_one():
    kinds = [r.resolve(name).load_options() for r in (ALGORITHMS, MODELS, DATA) for name in r.names()]
    for kind in [RunOptions, *kinds]:
        for field in dataclasses.fields(kind):
            owner = next(cls for cls in kind.__mro__ if field.name in vars(cls).get("__annotations__", {}))
            told = get_attribute_docstring(owner, field.name).comment_above
            if RANGE_IN_WORDS.search(told) and field.type not in (bool, "bool"):
                assert said_of(kind, field.name, "range") is not None, (kind, field.name)


SAID = {}


def said_by_the_command_line(owner, limits, option, word, name):
    """Of the first rule that has the option from the class that defines it, for it takes far longer than in Python."""
    if (owner, option, limits) not in SAID:
        with pytest.raises(UserError) as error:
            # The first model and dataset have no preset with every rule, whose values would mix in.
            parse(["--algo", name, f"--{option}", word])
        SAID[owner, option, limits] = str(error.value)
    return SAID[owner, option, limits]


@pytest.mark.parametrize("name", ALGORITHMS.names())
def test_the_defaults_of_every_rule_are_in_range_and_what_is_not_is_refused_alike_everywhere(name):
    options = ALGORITHMS.resolve(name).load_options()
    checked(options())
    for field in dataclasses.fields(options):
        limits = said_of(options, field.name, "range")
        low = None if limits is None else limits.least if limits.least is not None else limits.above
        if low is None:
            continue
        wrong = low - 1
        with pytest.raises(UserError) as here:
            made(options, None, {field.name: wrong}, name)
        owner = next(cls for cls in options.__mro__ if field.name in vars(cls).get("__annotations__", {}))
        # The command line makes fractions of whole numbers.
        there = said_by_the_command_line(owner, limits, field.name, str(int(wrong)), name)
        assert there.replace(".0.", ".") == str(here.value).replace(".0.", ".")


@pytest.mark.parametrize("option, value", [("optimizer", "adamw"), ("lr_schedule", "consine"), ("loss", "hinge")])
def test_a_wrong_choice_is_told_in_the_words_of_the_command_line(option, value):
    with pytest.raises(UserError) as there:
        parse(["--algo", "bp", f"--{option}", value])
    with pytest.raises(UserError) as here:
        made(ALGORITHMS.resolve("bp").load_options(), None, {option: value}, "BP")
    assert str(here.value) == str(there.value) and "expected one of" in str(here.value)


def test_an_option_declared_anew_as_text_is_told_with_the_numbers_that_it_must_have():
    @dataclass
    class Text(Options):
        rate: str = "a"

    with pytest.raises(UserError, match="--rate: expected a number above 0 and up to 1, found a"):
        checked(Text())


def test_the_options_of_an_owner_are_its_own():
    options = Options(rate=0.25, values=[1.0])
    found = [made(Options, options, {}, "it"), made(Options, options, {"count": 3}, "it"), checked(options)]
    options.rate = 0.75
    options.values.append(2.0)
    assert [(own.rate, own.values) for own in found] == [(0.25, [1.0])] * 3
    values = [1.0]
    own = made(Options, None, {"values": values}, "it")
    values.append(2.0)
    assert own.values == [1.0]


def test_an_option_that_is_set_without_being_declared_is_refused_in_python_too():
    class Undecorated(Options):
        rate: float = 0.25

    with pytest.raises(UserError, match="it: its class .*Undecorated sets rate and does not declare it"):
        made(Undecorated, None, {}, "it")

    class Empty(Options):
        pass

    assert made(Empty, None, {}, "it") == Empty()


def test_a_class_of_options_that_is_not_decorated_is_told_where_its_option_is_given():
    class Undecorated(Options):
        amount: float = 0.25

    with pytest.raises(UserError, match="it has no option 'amount'; decorate its class .*Undecorated with @dataclass"):
        made(Undecorated, None, {"amount": 0.5}, "it")


def test_a_rule_of_ones_own_whose_options_extend_none_is_refused_in_python_too():
    @dataclass
    class Alone:
        rate: float = 0.25

    rule = type("Rule", (dtp.BP,), {"Options": Alone})
    with pytest.raises(UserError, match="^Rule: its class Options must extend that of BP, found one without 'loss'"):
        rule(torch.nn.Linear(4, 3), rate=0.5)


def test_a_rule_of_ones_own_may_extend_a_class_beside_the_rules_that_has_options_of_another_kind():
    class Beside:
        @dataclass
        class Options:
            colour: str = "red"

    rule = type("Rule", (dtp.BP, Beside), {})
    assert rule(torch.nn.Linear(4, 3), lr=0.5).options == dtp.BP.Options(lr=0.5)


def test_what_is_no_option_or_comes_after_its_declaration_needs_no_type():
    class Contract(abc.ABC):
        @property
        @abc.abstractmethod
        def more(self): ...

    @dataclass(slots=True)
    class Slots(Options):
        kind_of_file: ClassVar[str] = "yaml"
        more: float = 0.5

    @dataclass
    class Other(Slots, Contract):
        kind_of_file = "json"

    assert (made(Slots, None, {"rate": 0.25}, "it").rate, made(Other, None, {}, "it").more) == (0.25, 0.5)


def test_lists_of_options_are_copied_and_other_values_shared():
    @dataclass
    class Given:
        values: list = dataclasses.field(default_factory=list)
        teacher: object = None

    given = Given([1, 2], Lock())
    copied = own(given)
    given.values.append(3)
    assert copied.values == [1, 2] and copied.teacher is given.teacher
