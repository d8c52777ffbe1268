"""The documentation tells the truth: its commands parse, its listings run, its links lead somewhere."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest
import yaml

from dtp.algorithms import ALGORITHMS
from dtp.arguments import parse
from dtp.sweep.plan import read_sweep, sweep_path
from dtp.theory.options import STUDIES

DOCS = Path(__file__).parent.parent / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
# Made when the site is built.
MADE = {f"rules/{name}.md" for name in ALGORITHMS.names()} | {"rules/_table.md", "rules/_options.md"}
PAGES = {name: text for name, text in PAGES.items() if name not in MADE and "_build" not in name}


def blocks(text, language):
    """Fenced blocks of a language, each with the line before it."""
    return re.findall(rf"(?:^(%[^\n]*)\n)?^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands():
    for name, text in PAGES.items():
        for _, block in blocks(text, "bash"):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["dtp"]:
                    yield pytest.param(words[1:], id=f"{name}: {' '.join(words)}")


@pytest.mark.parametrize("words", list(commands()))
def test_every_command_of_the_documentation_is_understood(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name, rest = words[0], words[1:]
    if name == "train" and "my_rule:LearnedHybrid" in rest:
        (tmp_path / "my_rule.py").write_text(blocks(PAGES["own-rule.md"], "python")[0][1])
    if name == "train" and "..." not in rest:
        if "--help" in rest:
            with pytest.raises(SystemExit):
                parse(rest)
        elif "--init-weights" not in rest:
            parse(rest)
    elif name == "sweep" and rest[0] != "my_sweep.yaml":
        assert read_sweep(sweep_path(rest[0])).points
    elif name == "theory":
        assert rest[0] in STUDIES


def test_the_sweep_that_the_documentation_lists_is_one(tmp_path):
    ((_, text),) = blocks(PAGES["experiments.md"], "yaml")
    (tmp_path / "listed.yaml").write_text(text)
    assert len(read_sweep(tmp_path / "listed.yaml").seeds) == 3


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


@pytest.mark.parametrize("name", PAGES)
def test_every_link_of_the_documentation_leads_somewhere(name):
    page = DOCS / name
    for target in re.findall(r"\]\((?!https?:|#)([^)\s#]+)", PAGES[name]):
        path = (page.parent / target).resolve()
        made = path.is_relative_to(DOCS) and str(path.relative_to(DOCS)) in MADE
        assert path.exists() or made, f"{name} links to {target}"


def test_every_rule_has_a_drawing_and_sources_that_are_listed():
    known = yaml.safe_load((DOCS / "rules" / "rules.yaml").read_text())
    assert set(known["rules"]) == set(ALGORITHMS.names())
    for name, fact in known["rules"].items():
        assert set(fact) <= {"flow", "equations", "sources"}, name
        assert set(fact.get("sources", [])) <= set(known["sources"]), name


def test_no_page_names_an_address_that_is_not_a_link():
    """Nothing of the site is fetched from elsewhere: scripts, fonts and pictures are its own."""
    for name, text in PAGES.items():
        assert not re.search(r"!\[[^\]]*\]\(https?:", text), name
