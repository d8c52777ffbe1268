"""The documentation tells the truth: its commands parse, its listings run, its links lead somewhere."""

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

import dtp
from dtp.algorithms import ALGORITHMS
from dtp.cli.arguments import parse
from dtp.cli.program import COMMANDS
from dtp.cli.train import main
from dtp.data import DATA
from dtp.experiments.report import command as report
from dtp.experiments.search import command as search
from dtp.experiments.sweep import command as sweep
from dtp.experiments.sweep.plan import read_sweep, sweep_path
from dtp.experiments.theory.options import STUDIES
from dtp.models import MODELS
from dtp.slurm import __main__ as slurm

DOCS = Path(__file__).parent.parent / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
# Made when the site is built.
MADE = {f"rules/{name}.md" for name in [*ALGORITHMS.names(), "_table", "_classes", "_options", "_papers"]}
PAGES = {name: text for name, text in PAGES.items() if name not in MADE and "_build" not in name}
# Included in pages of the site.
RESULTS = {
    f"../benchmarks/results/{path.name}": path.read_text()
    for path in sorted((DOCS.parent / "benchmarks" / "results").glob("*.md"))
}


def blocks(text, language):
    """Fenced blocks of a language, each with the line before it."""
    return re.findall(rf"(?:^(%[^\n]*)\n)?^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands():
    """The words of each ``dtp`` in a block, or in a sentence where it stands without placeholders."""
    for name, text in (PAGES | RESULTS).items():
        lines = [line for _, block in blocks(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
        lines += [said for said in re.findall(r"`(dtp \w+ [^`]+)`", text) if not re.search(r"[A-Z]{2}|\.\.\.", said)]
        for line in lines:
            # What a variable of the shell completes is not to be parsed.
            words = [] if "$" in line else shlex.split(line, comments=True)
            if words[:1] == ["dtp"]:
                yield pytest.param(words[1:], id=f"{name}: {' '.join(words)}")


# What is to lie in files for commands that name them.
OWN_RULE = blocks(PAGES["own-rule.md"], "python")[0][1]
OWN_SWEEPS = {
    "my_sweep.yaml": blocks(PAGES["experiments.md"], "yaml")[0][1],
    "runs/two-rules.yaml": PAGES["notebooks/sweep.md"].split('"""')[1],
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", list(commands()))
def test_every_command_of_the_documentation_is_understood(words, here):
    name, rest = words[0], words[1 : words.index(">")] if ">" in words else words[1:]
    if name == "--help":
        return
    assert name in COMMANDS
    if "my_rule:LearnedHybrid" in rest:
        (here / "my_rule.py").write_text(OWN_RULE)
    if name == "train" and "--help" in rest:
        with pytest.raises(SystemExit):
            parse(rest)
    elif name == "train":
        # A run that there is none of.
        if "--init-weights" in rest:
            del rest[(at := rest.index("--init-weights")) : at + 2]
        parse(rest)
    elif name == "search":
        _, of_train = search.make_parser().parse_known_args(rest)
        parse(of_train)
    elif name == "sweep" and rest != ["--help"]:
        options, of_train = sweep.make_parser().parse_known_args(rest)
        for path, text in OWN_SWEEPS.items():
            (here / path).parent.mkdir(exist_ok=True)
            (here / path).write_text(text)
        assert read_sweep(sweep_path(options.sweep)).points
        parse(of_train)
    elif name == "theory":
        assert rest[0] in STUDIES
    elif name == "report":
        report.make_parser().parse_args(rest)
    elif name == "slurm":
        slurm.make_parser().parse_known_args(rest[: rest.index("--")] if "--" in rest else rest)


def test_every_other_command_calls_a_file_that_is_there():
    """Other lines of a block begin with a program of the repository, or a comment says why the block is not run."""
    for name, text in PAGES.items():
        for comment, block in blocks(text, "bash"):
            if comment.startswith("% not run:"):
                continue
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] != "dtp":
                    files = [word for word in words if re.fullmatch(r"(benchmarks|slurm)/\w+\.(py|sh)", word)]
                    assert files or "-m dtp train" in line, f"{name}: {line}"
                    assert all((DOCS.parent / path).exists() for path in files), f"{name}: {line}"


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
    named = {words.values[0][0] for words in commands()}
    assert named >= set(COMMANDS) - {"completion"} and "dtp completion" in PAGES["start.md"]


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
