"""Domains: every rule has one that it can be trained with, the published ones are the paper's, mistakes are told."""

import dataclasses
import math
from dataclasses import dataclass

import optuna
import pytest

from dtp.algorithms import ALGORITHMS
from dtp.algorithms.options import AlgorithmOptions
from dtp.cli.arguments import parse
from dtp.cli.config import as_arguments
from dtp.errors import UserError
from dtp.experiments.search.space import SPACES, Parameter, _of_rule, domain, read_space
from dtp.fields import option
from dtp.run.building import build

TABLE_4 = {
    "lr": ("log-uniform", (1e-5, 3e-4)),
    "beta2": ("choice", (0.99, 0.999)),
    "eps": ("choice", (1e-4, 1e-6, 1e-8)),
}
INVERSE = {f"feedback_{name}": values for name, values in TABLE_4.items()} | {"noise": ("uniform", (0.01, 0.3))}
BARTUNOV = {
    **dict.fromkeys(["bp", "fa", "dfa"], TABLE_4),
    **dict.fromkeys(["sdtp", "ao-sdtp"], TABLE_4 | INVERSE),
    "vanilla-dtp": TABLE_4 | INVERSE | {"beta": ("uniform", (0.01, 0.2))},
}


def test_every_rule_has_a_domain_that_says_where_it_comes_from():
    assert {path.stem for path in SPACES.glob("*.yaml")} <= set(ALGORITHMS.names())
    for rule in ALGORITHMS.names():
        # Of a rule that says nothing a UserError tells what is missing.
        origin = domain("", rule).origin
        assert ("Ours" in origin) != ("table 4" in origin), rule


def test_a_domain_that_options_say_is_the_one_that_a_file_says(tmp_path):
    """Those of the options' metadata, the nearest class first, in the order of the fields; the rest is not in it."""

    @dataclass
    class Base:
        first: float = option(1.0, above=0, search={"log-uniform": [0.1, 10]})
        second: str = option("a", search="a")
        third: list[int] = option([1])
        fourth: float = option(2.0, search={"uniform": [0, 1]})

    @dataclass
    class Own(Base):
        search_origin = "Ours: a test."
        third: list[int] = option([2], search={"choice": [[1], [2, 3]]})
        fourth: float = option(2.0, search=None)
        first: float = 3.0

    path = tmp_path / "own.yaml"
    path.write_text("# Ours: a test.\nfirst: {log-uniform: [0.1, 10]}\nsecond: a\nthird: {choice: [[1], [2, 3]]}\n")
    found, said = _of_rule("own", Own), read_space(path)
    assert found == dataclasses.replace(said, where="domain of own")
    assert list(found.parameters) == list(said.parameters) == ["first", "third"]
    assert _of_rule("nothing", AlgorithmOptions) is None


def test_a_mistake_in_what_options_say_names_the_rule_and_the_option():
    @dataclass
    class Own:
        rate: float = option(1.0, search={"uniform": [2, 1]})

    with pytest.raises(UserError, match="^domain of own: rate: expected a lowest value below the highest"):
        _of_rule("own", Own)


@pytest.mark.parametrize("rule", ALGORITHMS.names())
def test_a_rule_can_be_built_with_the_ends_and_the_choices_of_its_domain(rule):
    space = domain("", rule)
    model = {"gait": "square", "dtp-dae": "tied-autoencoder"}.get(rule, "mlp")
    layers = [] if rule in ("hebb", "delta", "competitive") else ["5", "5"]
    words = ["--algo", rule, "--model", model, *(["--widths", *layers] if model == "mlp" else [])]
    first = {name: parameter.values[0] for name, parameter in space.parameters.items()}
    others = [{**first, name: value} for name, parameter in space.parameters.items() for value in parameter.values]
    for values in [*others, *space.corners()]:
        assert build(parse([*words, *as_arguments({**space.fixed, **values})]))


@pytest.mark.parametrize("rule", BARTUNOV)
def test_published_domains_are_those_of_the_table(rule):
    space = domain("", rule)
    assert {name: (p.kind, p.values) for name, p in space.parameters.items()} == BARTUNOV[rule]
    assert (space.fixed["optimizer"], space.fixed["momentum"]) == ("adam", 0.9)
    if "noise" in space.parameters:
        assert (space.fixed["feedback_optimizer"], space.fixed["feedback_momentum"]) == ("adam", 0.9)


@pytest.mark.parametrize("kind", ["log-uniform", "uniform", "log-integer", "integer"])
def test_draws_fill_the_range_as_the_kind_says(kind):
    parameter = Parameter(kind, (2, 200) if kind.endswith("integer") else (0.002, 0.2))
    sampler, study = optuna.samplers.RandomSampler(seed=0), optuna.create_study()
    found = [sampler.sample_independent(study, None, "x", parameter.distribution()) for _ in range(400)]
    low, high = parameter.values
    assert min(found) >= low and max(found) <= high and max(found) > 0.9 * high
    middle = math.sqrt(low * high) if kind.startswith("log-") else (low + high) / 2
    assert sum(value < middle for value in found) / 400 == pytest.approx(0.5, abs=0.1)
    assert all(isinstance(value, int) for value in found) == kind.endswith("integer")


def test_a_choice_of_lists_comes_back_as_lists(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("widths: {choice: [[8], [8, 8]]}\nlr: {uniform: [1e-5, 1.0]}\n")
    space = read_space(path)
    assert space.parameters["lr"].values == (1e-5, 1.0)
    distribution = space.parameters["widths"].distribution()
    assert [space.options({"widths": found})["widths"] for found in distribution.choices] == [[8], [8, 8]]


def test_what_the_command_line_sets_is_not_searched():
    space = domain("", "sdtp").without(["lr", "momentum"])
    assert "lr" not in space.parameters and "momentum" not in space.fixed and "noise" in space.parameters


def test_a_rule_of_ones_own_has_the_domain_of_the_rule_that_it_extends(tmp_path, monkeypatch):
    (tmp_path / "my_search_rules.py").write_text(
        "from dataclasses import dataclass\n"
        "from dtp.algorithms import SDTP\n"
        "from dtp.algorithms.base import Algorithm\n"
        "from dtp.fields import option\n"
        "class Mine(SDTP):\n"
        "    @dataclass\n"
        "    class Options(SDTP.Options):\n"
        "        mine: float = 1.0\n"
        "class Said(SDTP):\n"
        "    @dataclass\n"
        "    class Options(SDTP.Options):\n"
        "        mine: float = option(0.5, search={'uniform': [0, 1]})\n"
        "class Other(Algorithm):\n"
        "    @dataclass\n"
        "    class Options(Algorithm.Options):\n"
        "        other: float = 1.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert domain("", "my_search_rules:Mine") == domain("sdtp", "bp")
    said = domain("", "my_search_rules:Said")
    assert (
        said.parameters == {"mine": Parameter("uniform", (0.0, 1.0))} and said.where == "domain of my_search_rules:Said"
    )
    assert said.origin == "what the options of my_search_rules:Said say."
    # The options that all rules have are those of backprop.
    assert domain("", "my_search_rules:Other") == domain("bp", "bp")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("[1, 2]", "expected lines of the form"),
        ("lr: {uniform: [1, 2}", "is not valid YAML"),
        ("lr: {log-unifrom: [1, 2]}", "found log-unifrom; did you mean log-uniform?"),
        ("lr: {uniform: [1, 2], choice: [3]}", "lr: expected one of log-uniform"),
        ("lr: {uniform: [2, 1]}", "expected a lowest value below the highest, found 2.0 and 1.0"),
        ("lr: {uniform: [1]}", "expected the lowest and the highest of its numbers"),
        ("lr: {uniform: 3}", "expected the lowest and the highest"),
        ("lr: {uniform: [a, 1]}", "expected the lowest and the highest"),
        ("lr: {uniform: [0, .inf]}", "expected the lowest and the highest"),
        ("widths: {integer: [1, .inf]}", "expected the lowest and the highest of its whole numbers"),
        (f"lr: {{uniform: [0, 1{400 * '0'}]}}", "expected the lowest and the highest of its numbers"),
        (f"widths: {{integer: [1, 1{400 * '0'}]}}", "expected the lowest and the highest of its whole numbers"),
        ("lr: {log-uniform: [0, 1]}", "above 0, for logarithms"),
        ("batch_size: {integer: [1.5, 3]}", "of its whole numbers"),
        ("lr: null", "lr: expected a value, found none"),
        ("lr: {choice: [0.1, null]}", "expected a list of choices, found [0.1, None]"),
        ("lr: {choice: []}", "expected a list of choices"),
        ("lr: {choice: [0.1, 0.1]}", "expected each choice once"),
        ("seed: {integer: [0, 3]}", "'seed' is no option of a domain"),
        ("lr-period: 3\nlr_period: {integer: [1, 3]}", "lr_period: expected once, found with dashes and"),
    ],
)
def test_mistakes_in_a_file_are_told_in_one_sentence(text, expected, tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_space(path)
    assert expected in str(error.value) and str(path) in str(error.value)


def test_a_name_that_is_none_gets_a_hint():
    with pytest.raises(UserError, match="--space sdpt: no such file; did you mean sdtp"):
        domain("sdpt", "bp")
