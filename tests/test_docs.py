"""The documentation tells the truth: its listings run, its links lead somewhere; test_commands.py has its commands."""

import contextlib
import io
import json
import re
import shlex

import pytest
import yaml

import dtp
from dtp.algorithms import ALGORITHMS
from dtp.cli.arguments import parse
from dtp.cli.program import COMMANDS
from dtp.cli.train import main
from dtp.data import DATA
from dtp.models import MODELS
from tests.pages import DOCS, MADE, OWN_RULE, PAGES, RESULTS, blocks, commands


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def registry(monkeypatch):
    """Listings may register types."""
    from dtp.feedback import operations

    monkeypatch.setattr(operations, "_OPERATIONS", dict(operations._OPERATIONS))


@pytest.mark.parametrize("name", [name for name, text in PAGES.items() if blocks(text, "python")])
def test_every_listing_of_the_documentation_runs_and_prints_what_it_shows(name, tmp_path, monkeypatch, registry):
    """All of a page in their order, in one namespace; a comment before a block says why it is not run, if so."""
    monkeypatch.chdir(tmp_path)
    namespace, printed = {"__name__": "listing"}, ""
    for comment, language, text in re.findall(
        r"(?:^(%[^\n]*)\n)?^```(python|text)\n(.*?)^```", PAGES[name], re.DOTALL | re.MULTILINE
    ):
        if language == "python" and not comment.startswith("% not run:"):
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(text, name, "exec"), namespace)
            printed = output.getvalue()
        elif language == "text":
            assert text.split() == printed.split()


def test_the_listing_of_an_own_rule_trains(here):
    (here / "my_rule.py").write_text(OWN_RULE)
    command = (
        "--algo my_rule:LearnedHybrid --alpha 0.9 --model mlp --widths 32 32 --max-epochs 5 --batch-size 64 "
        "--run-dir run"
    )
    assert main(command.split()) == 0
    assert json.loads((here / "run" / "summary.json").read_text())["test_accuracy"] > 0.85


def test_the_listing_of_an_own_rule_is_short_and_does_what_it_says(here):
    import torch

    from dtp.algorithms import BP
    from dtp.models import MLP
    from dtp.models.options import MLPOptions

    text = OWN_RULE
    assert len([line for line in text.splitlines() if line.strip()]) <= 22
    (here / "my_exact_rule.py").write_text(text)
    from my_exact_rule import LearnedHybrid

    network = MLP(MLPOptions(widths=[8, 8], activation="tanh"), (1, 3, 3), 4).double()
    x, y = torch.randn(5, 1, 3, 3, dtype=torch.float64), torch.randint(4, (5,))
    _, backprop = BP(network).forward_gradients(x, y)
    rule = LearnedHybrid(network, LearnedHybrid.Options(alpha=1.0, beta=0.3)).double()
    for ours, theirs in zip(rule.forward_gradients(x, y)[1], backprop, strict=True):
        torch.testing.assert_close(ours / 0.3, theirs, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", PAGES | RESULTS)
def test_every_link_of_the_documentation_leads_somewhere(name):
    page = DOCS / name
    for target in re.findall(r"\]\((?!https?:|#)([^)\s#]+)", (PAGES | RESULTS)[name]):
        path = (page.parent / target).resolve()
        made = path.is_relative_to(DOCS) and str(path.relative_to(DOCS)) in MADE
        assert path.exists() or made, f"{name} links to {target}"


def test_every_rule_has_a_drawing_and_sources_that_are_listed():
    known = yaml.safe_load((DOCS / "rules" / "rules.yaml").read_text())
    missing = set(ALGORITHMS.names()) - set(known["rules"])
    assert not missing, f"docs/rules/rules.yaml lacks {missing}"
    assert set(known["rules"]) == set(ALGORITHMS.names())
    for name, fact in known["rules"].items():
        assert set(fact) <= {"what", "flow", "equations", "sources"}, name
        assert set(fact.get("sources", [])) <= set(known["sources"]), name


def test_no_page_names_an_address_that_is_not_a_link():
    """Nothing of the site is fetched from elsewhere: scripts, fonts and pictures are its own."""
    for name, text in PAGES.items():
        assert not re.search(r"!\[[^\]]*\]\(https?:", text), name


def test_every_choice_and_every_command_has_its_place():
    for registry, page in ((MODELS, "networks.md"), (DATA, "data.md")):
        for name in registry.names():
            assert f"`{name}`" in PAGES[page]
    assert {words[1] for words, page in commands().items() if words[0] == "dtp" and page in PAGES} >= set(COMMANDS)


def test_files_and_folders_that_the_documentation_names_are_there():
    for name, text in PAGES.items():
        for path in re.findall(
            r"(?:`|^    )((?:dtp|docs|benchmarks|slurm|tests)/[\w./-]*[\w/])(?=[`\s]| )", text, re.MULTILINE
        ):
            assert (DOCS.parent / path).exists(), f"{name} names {path}"


def test_every_picture_has_an_alternative_text():
    for name, text in (PAGES | RESULTS).items():
        for words in re.findall(r"!\[([^\]]*)\]\(", text):
            assert len(words.split()) >= 4, f"{name}: {words!r}"


def test_every_public_name_has_its_place():
    """Of rules the pages that are made from their registry, of all else the page of the API."""
    rules = {entry.load().__name__ for entry in ALGORITHMS.entries.values()}
    for name in set(dtp._names()) - rules:
        assert f":: dtp.{name}\n" in PAGES["api.md"], name


def test_commands_on_pages_that_are_made_are_understood(here):
    """Costs and published figures show the commands that are kept with the results; of those that train, all parse."""
    results = DOCS.parent / "benchmarks" / "results"
    rules = json.loads((results / "rules.json").read_text()).values()
    board = json.loads((results / "board.json").read_text())
    shown = {found["command"] for found in rules} | {row["command"] for row in board if row["published"] is not None}
    words = [shlex.split(command.replace("python main.py", "dtp train").replace("SEED", "1")) for command in shown]
    trained = [line[2:] for line in words if line[:2] == ["dtp", "train"]]
    assert len(trained) > 50
    for line in trained:
        assert parse(line)


def test_every_template_of_a_rule_is_told_with_hooks_that_it_has():
    rows = re.findall(r"^\| `(\w+)` \| (?:train|have|send|are) .* \| (.*) \|$", PAGES["own-rule.md"], re.MULTILINE)
    templates: dict[str, object] = {}
    for line in re.findall(r"`(from dtp[\w.]* import [\w, ]+)`", PAGES["own-rule.md"]):
        exec(line, templates)
    assert len(rows) == 4
    for name, text in rows:
        hooks = re.findall(r"`(\w+)`", text)
        assert hooks and all(hasattr(templates[name], hook) for hook in hooks)
