"""The command dtp: its commands, where they come from, and how they end."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dtp
from dtp.cli.program import COMMANDS, console
from tests.experiments.report.folders import make_run
from tests.runs import ROOT, SHORT

PYTHON = [sys.executable, "-c", "import sys; from dtp.cli.program import console; sys.exit(console())"]


def run(*words, cwd, command=PYTHON, **environ):
    return subprocess.run(
        [*command, *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(**environ),
        timeout=120,
    )


def environment(**environ):
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]]), **environ}


def test_version_and_help_are_told_without_torch(tmp_path):
    assert run("--version", cwd=tmp_path).stdout == f"targetprop {dtp.__version__}\n"
    for words in ([], ["--help"], ["-h"]):
        done = run(*words, cwd=tmp_path)
        assert done.returncode == 0 and all(f"  {name} " in done.stdout for name in COMMANDS)
    code = "import sys; from dtp.cli.program import console; console(['--help']); assert 'torch' not in sys.modules"
    assert run(cwd=tmp_path, command=[sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_that_says_how_it_is_called(name, capsys):
    # Of training in a process of its own, whose signals it keeps.
    if name == "train":
        assert "\nusage: dtp train [--algo" in run("train", "--help", cwd=ROOT).stdout
        return
    assert console([name, "--help"]) == 0
    assert f"usage: dtp {name} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sweep", ["x", "--output=~/x"]),
        ("search", ["--study=~/x", "--write-preset=~/x", "--wandb-sweep=~/x", "--draw=~/x", "--output=~/x"]),
        ("report", ["--output=~/x", "--json=~/x", "--times=~/x"]),
        ("theory", ["gait", "--output=~/x"]),
    ],
)
def test_a_home_folder_that_the_shell_has_left_alone_is_filled_in(name, words, monkeypatch):
    """As after an equals sign, where bash does not."""
    monkeypatch.setenv("HOME", "/home/nobody")
    options = vars(importlib.import_module(COMMANDS[name][0]).make_parser().parse_args(words))
    for word in words:
        if word.startswith("--"):
            found = options[word[2:].partition("=")[0].replace("-", "_")]
            assert found in (Path("/home/nobody/x"), [Path("/home/nobody/x")])


def test_an_unknown_command_is_one_sentence(capsys):
    for words, expected in (
        (["tran"], "did you mean train?"),
        (["--algo", "bp"], "(dtp train --algo ...)"),
        (["tr\nain"], "'tr\\nain'"),
        ([""], "dtp ''"),
    ):
        assert console(words) == 2
        error = capsys.readouterr().err
        assert expected in error and error.count("\n") == 1


@pytest.mark.parametrize("start", [PYTHON + ["train"], [sys.executable, "-m", "dtp"]])
def test_it_trains_outside_the_checkout_and_calls_itself_by_its_name(start, tmp_path):
    """A user's own module goes before an installed one of its name (of Python's own), and libraries before theirs."""
    (tmp_path / "wave.py").write_text("from dtp.algorithms import BP\nclass Own(BP): pass\n")
    (tmp_path / "yaml.py").write_text("open('ran', 'w')")
    words = ["--algo", "wave:Own", *SHORT, "--max-epochs", "1"]
    done = run(*words, "--run-dir", "run", cwd=tmp_path, command=start)
    assert done.returncode == 0 and done.stdout.startswith("wave:Own on digits"), done.stderr
    assert (tmp_path / "run" / "config.yaml").read_text().startswith(f"# command: dtp train {' '.join(words)}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "start, name",
    [
        (PYTHON + ["train"], "dtp train"),
        ([sys.executable, "-m", "dtp", "train"], "dtp train"),
        ([sys.executable, "-m", "dtp"], "dtp train"),
        ([sys.executable, ROOT / "main.py"], "python main.py"),
    ],
)
def test_a_mistake_is_told_with_the_name_that_training_goes_by(start, name, tmp_path):
    done = run("--nothing", "1", cwd=tmp_path, command=start)
    assert done.returncode == 2 and f"({name} --help lists all)" in done.stderr


@pytest.mark.parametrize("command, name", [("train", "MPLBACKEND"), ("train", "TORCH_LOGS"), ("report", "MPLBACKEND")])
def test_a_variable_that_a_library_refuses_is_named(command, name, tmp_path):
    folder = make_run(tmp_path / "run")
    words = [*SHORT, "--run-dir", "new"] if command == "train" else [str(folder)]
    done = run(command, *words, cwd=tmp_path, **{name: "junk"})
    assert done.returncode == 2 and done.stderr.startswith(f"error: {name}: expected a value that its library knows")
    assert "junk" in done.stderr and done.stderr.count("\n") == 1 and not (tmp_path / "new").exists()


@pytest.mark.parametrize("words", ["train --help", "search --help", "slurm vgg_dtp", "--help"])
def test_a_reader_that_leaves_is_no_error(words, tmp_path):
    # The first line is the only one that is read; what is written then breaks the pipe.
    command = f"{' '.join(PYTHON[:2])} '{PYTHON[2]}' {words} | head -1; exit ${{PIPESTATUS[0]}}"
    done = run("-c", command, cwd=tmp_path, command=["bash"])
    assert done.returncode == 0 and done.stderr == "" and done.stdout


def test_options_and_choices_are_completed_in_bash(tmp_path, capsys):
    pytest.importorskip("shtab")
    assert console(["completion", "bash"]) == 0
    (tmp_path / "dtp").write_text(capsys.readouterr().out)
    script = """source ./dtp
        complete_words() { COMP_WORDS=(dtp "$@"); COMP_CWORD=$#; _shtab_dtp dtp "${@: -1}" ""; echo "${COMPREPLY[@]}"; }
        complete_words se; complete_words train --algo sdt; complete_words train --feedback-par
        complete_words train --deterministic t; complete_words slurm vgg_d"""
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["search", "sdtp", "--feedback-parallel", "true", "vgg_dtp"], done.stderr


def test_without_its_library_completion_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert console(["completion", "bash"]) == 2
    assert "pip install 'targetprop[completion]'" in capsys.readouterr().err
    assert console(["completion", "fish"]) == 2
    assert "expected one of bash, zsh, tcsh, found fish" in capsys.readouterr().err


@pytest.mark.parametrize("start", [[*PYTHON, "report"], [sys.executable, "-m", "dtp.report"]])
def test_no_library_is_imported_from_the_run_folder_that_is_read(start, tmp_path):
    make_run(tmp_path / "run")
    for name in ("yaml", "numpy", "matplotlib"):
        (tmp_path / "run" / f"{name}.py").write_text("open('ran', 'w')")
    done = run(".", cwd=tmp_path / "run", command=start)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.md").is_file() and not (tmp_path / "run" / "ran").exists()


def test_a_file_called_dtp_beside_the_command_takes_no_place_in_the_runs_of_a_sweep(tmp_path):
    (tmp_path / "dtp.py").write_text("open('ran', 'w')")
    (tmp_path / "small.yaml").write_text("base: {algo: bp, data: digits, max_epochs: 1}")
    # As the installed command, which does not look here first.
    start = [sys.executable, "-P", *PYTHON[1:]]
    done = run("sweep", "small.yaml", "--output", "swept", cwd=tmp_path, command=start)
    assert done.returncode == 0 and (tmp_path / "swept/all/seed0/summary.json").is_file(), done.stdout + done.stderr
    assert not (tmp_path / "ran").exists()


def test_closed_streams_are_as_good_as_none(tmp_path):
    words = [*PYTHON, "train", *SHORT, "--run-dir", "run"]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words], cwd=tmp_path, env=environment(), timeout=120
    )
    assert done.returncode == 0 and (tmp_path / "run/summary.json").is_file()
    done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *PYTHON, "--version"], cwd=tmp_path, env=environment())
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("environ", "count"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
    ids=["by default", "as the count in the environment says", "as the policy in the environment says"],
)
def test_threads_of_torch_that_wait_sleep_soon(environ, count, tmp_path):
    told = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [*PYTHON, "train", "--data", "mnist", "--data-dir", "nowhere"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**told, "PYTHONPATH": environment()["PYTHONPATH"], "OMP_DISPLAY_ENV": "VERBOSE", **environ},
        timeout=120,
    )
    if "GOMP_" not in done.stderr:
        pytest.skip("this torch has other threads than those of GNU's OpenMP")
    assert f"GOMP_SPINCOUNT = '{count}'" in done.stderr
