"""The README tells the truth, on one screen: its first commands are the ones that work, and its listing trains."""

import json
import re
import runpy
import shlex
import subprocess
import sys

import pytest

from dtp.algorithms import ALGORITHMS
from dtp.cli.program import COMMANDS
from tests import listed
from tests.pages import README, ROOT


def block(marker, language):
    """The fenced block after an HTML comment."""
    found = re.search(rf"<!-- {marker} -->\n```{language}\n(.*?)```", README, re.DOTALL)
    assert found, f"no block {marker!r} in README.md"
    return found.group(1)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def standing_for_an_install(here):
    """A folder where the README's install is done: ``.venv/bin/python`` is this Python, ``pip install`` is skipped."""
    (here / ".venv" / "bin").mkdir(parents=True)
    python = here / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    command = here / ".venv" / "bin" / "dtp"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m dtp "$@"\n')
    pip = here / ".venv" / "bin" / "pip"
    pip.write_text('#!/bin/sh\nprintf "%s\\n" "$*" > pip-was-asked\n')
    fake = here / "bin" / "python3"
    fake.parent.mkdir()
    # Stands for `python3 -m venv .venv`.
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$*" > venv-was-asked\n')
    for path in (python, command, pip, fake):
        path.chmod(0o755)
    for name in ("main.py", "dtp", "pyproject.toml"):
        (here / name).symlink_to(ROOT / name)
    return here


def run_as_shown(marker, here):
    environment = {"PATH": f"{here / 'bin'}:/usr/bin:/bin", "HOME": str(here), "OMP_NUM_THREADS": "1"}
    # What -n auto means: one process is enough for the one test of the folder.
    environment["PYTEST_XDIST_AUTO_NUM_WORKERS"] = "1"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block(marker, "bash")],
        cwd=here,
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
    )


@pytest.mark.slow
def test_the_first_command_trains_and_prints_the_test_accuracy(standing_for_an_install):
    """All of the command but the download, which .ci/run does on a clean machine."""
    done = run_as_shown("run-command", standing_for_an_install)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (standing_for_an_install / "venv-was-asked").read_text() == "-m venv .venv\n"
    assert (standing_for_an_install / "pip-was-asked").read_text() == "install -q .\n"
    accuracy = float(re.search(r"test accuracy ([\d.]+)%", done.stdout).group(1))
    assert accuracy >= 96
    summary = json.loads(next((standing_for_an_install / "runs" / "dtp_mlp_digits").glob("*/summary.json")).read_text())
    assert summary["test_accuracy"] * 100 == pytest.approx(accuracy, abs=0.01)


def test_the_second_command_runs_the_tests(standing_for_an_install):
    here = standing_for_an_install
    (here / "tests").mkdir()
    (here / "tests" / "test_one.py").write_text("def test_one():\n    pass\n")
    done = run_as_shown("test-command", here)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_the_listing_from_python_trains_and_loads(here, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    names = {}
    exec(block("from-python", "python"), names)
    result, rule = names["result"], names["rule"]
    assert result.summary["test_accuracy"] > 0.9 and len(result.metrics["val/accuracy"].dropna()) == 5
    assert rule.network is names["network"] and type(rule).__name__ == "DTP"


def test_every_listing_has_a_test():
    assert re.findall("^```python$", README, re.MULTILINE) == ["```python"] and block("from-python", "python")


def test_the_commands_that_are_named_are_there():
    """Of dtp itself; test_commands.py runs them."""
    named = {word for word in re.findall(r"(?:^|`)dtp ([a-z]+)", README, re.MULTILINE)}
    assert {"train", "sweep", "search", "theory", "report", "slurm", "completion"} == named == set(COMMANDS)


def test_every_rule_is_in_the_table_once_and_nothing_else_is():
    named = [name for row in listed.rows(README) for name in listed.rules_of(row)]
    missing = set(ALGORITHMS.names()) - set(named)
    assert not missing, f"{listed.COMMAND} adds the rows of {missing}"
    assert sorted(named) == sorted(ALGORITHMS.names())


def test_a_rule_without_a_row_gets_one_of_its_registration_and_its_sources():
    without = "".join(line for line in README.splitlines(keepends=True) if "`ccl`" not in line and "`tp`" not in line)
    added = listed.with_rows(without)
    assert [row for row in listed.rows(added) if listed.rules_of(row) in (["tp"], ["ccl"])] == [
        "| `tp` | target propagation | Bengio 2014, Lee 2018 |\n",
        "| `ccl` | counter-current learning: a feedback network that reads the label | Kao and Hariharan 2024 |\n",
    ]
    assert listed.with_rows(added) == added


def test_it_is_short():
    """One screen and the table of rules; the rest is on the pages of the documentation."""
    assert len([line for line in README.splitlines() if not line.startswith("| `")]) <= 80


def test_files_that_the_readme_names_exist():
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path


def test_the_package_is_described_by_the_readme_without_what_lies_beside_it():
    description = runpy.run_path(str(ROOT / "setup.py"))["description"]
    links = "see [f[x] (y)](docs/f_(x).md), [p](https://a.b/c) (d)"
    assert description(links) == "see f[x] (y), [p](https://a.b/c) (d)"
    told = description(README)
    assert "![" in README and "](docs/" in README
    assert "![" not in told and not re.search(r"\]\((?!https?:)", told) and "measured here" not in told
    # The words of links stay, and so does all else.
    kept = [line for line in README.splitlines() if line and "](" not in line]
    lost = set(kept) - set(told.splitlines())
    assert all("Ernoult et al. (2022)" in line or "backprop. Their VGG" in line for line in lost), lost
    assert "| to use GPUs or a cluster | devices, `dtp slurm`; speed; Weights & Biases |" in told
