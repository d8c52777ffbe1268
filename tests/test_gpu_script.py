"""What benchmarks/gpu.sh says of mistakes before anything runs; .ci/run does a little of every part of it."""

import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from dtp.cli.arguments import parse
from tests.runs import ROOT


def script(*words: str, python: str | Path = sys.executable) -> subprocess.CompletedProcess:
    words = ["--python", str(python), *words]
    return subprocess.run(["bash", ROOT / "benchmarks/gpu.sh", *words], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "words, said",
    [
        ("", "expected a part: tests, ratios"),
        ("--dry train", "train: expected one of"),
        ("--dry train nothing", "found 'nothing'"),
        ("--dry sweep", "sweep: expected its name"),
        ("--dry nothing", "unknown part nothing"),
        ("--wet tests", "unknown option --wet"),
        ("--out", "expected a value after --out"),
        ("--dry train bp-vgg", "expected --cifar DIR or --mnist DIR"),
        ("--dry --python /no/python tests", "/no/python does not run"),
        ("--dry --seconds 9m tests", "--seconds: expected a whole number above 0, found '9m'"),
    ],
)
def test_a_mistake_ends_in_one_sentence(words, said, tmp_path):
    out = [] if words == "--out" else ["--out", str(tmp_path)]
    ended = script(*out, *words.split())
    assert ended.returncode == 2 and said in ended.stderr and ended.stderr.startswith("gpu.sh: ")
    assert len(ended.stderr.splitlines()) == 1


def test_a_report_is_one_archive_of_small_files(tmp_path):
    for name in ("ratios-fp32.json", "tests.log", "step=00000007.ckpt"):
        (tmp_path / name).write_text("{}")
    assert script("--dry", "--out", str(tmp_path), "report").returncode == 0
    with tarfile.open(tmp_path / "runs.tgz") as archive:
        names = archive.getnames()
    assert not [name for name in names if name.endswith(".ckpt")]
    assert {"results/ratios-fp32.json", "results/tests.log"} <= {*names}


def shims(folder: Path, **scripts: str) -> Path:
    """Programs of these names in ``folder``."""
    folder.mkdir()
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


def test_missing_modules_are_named_together(tmp_path):
    """Among them what simple_parsing imports, which nobody would think of."""
    python = shims(tmp_path / "bin", python=f'exec {sys.executable} -S "$@"') / "python"
    ended = script("--dry", "--out", str(tmp_path), "tests", python=python)
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1
    assert "lacks torch, lightning" in ended.stderr and "docstring_parser" in ended.stderr


def test_without_a_python_named_python_python3_is_taken(tmp_path):
    """From a folder with nothing else; what is there besides, the script finds by the usual path."""
    folder = shims(tmp_path / "bin", python3=f'echo "$1" >>{tmp_path}/calls; exec {sys.executable} "$@"')
    path = f"{folder}:/usr/bin:/bin"
    words = ["bash", ROOT / "benchmarks/gpu.sh", "--dry", "--out", str(tmp_path), "report"]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=120, env={**os.environ, "PATH": path})
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "calls").exists()


@pytest.mark.slow
def test_a_part_ends_in_its_time_whatever_its_program_does(tmp_path):
    """Asked to stop some time before, then ended; and what it had written is there."""
    # A stand-in that passes what is looked at first on to Python, and heeds no signal where it is asked to train.
    deaf = f"""[[ "$*" == *"-m pytest"* ]] || exec {sys.executable} "$@"
trap 'echo asked' TERM
echo begun
for _ in $(seq 60); do sleep 1; done"""
    python = shims(tmp_path / "bin", python=deaf) / "python"
    began = time.monotonic()
    ended = script("--dry", "--out", str(tmp_path), "--seconds", "12", "tests", python=python)
    assert time.monotonic() - began < 25
    assert ended.returncode == 1 and "failed or not finished: tests" in ended.stderr
    assert {"begun", "asked"} <= set((tmp_path / "tests.log").read_text().split()) and (tmp_path / "runs.tgz").exists()


def test_tests_that_failed_run_again_each_by_itself(tmp_path):
    """After an error of the device all that follow fail in its process."""
    names = "tests/test_gpu.py::test_a[--probes - expected]", "tests/test_gpu.py::test_b"
    pytest_alone = f"""[[ "$*" == *"-m pytest"* ]] || exec {sys.executable} "$@"
echo "$*" >>{tmp_path}/calls
[[ "$*" == *" -m gpu "* ]] || exit 0
printf 'FAILED {names[0]} - AssertionError: 1 - 2\\nFAILED {names[1]}\\n'
exit 1"""
    python = shims(tmp_path / "bin", python=pytest_alone) / "python"
    ended = script("--dry", "--out", str(tmp_path), "tests", python=python)
    assert ended.returncode == 1 and "finished: tests\n" in ended.stderr
    _, *alone = (tmp_path / "calls").read_text().splitlines()
    assert [line.split(" -s ")[0] for line in alone] == [f"-m pytest {name}" for name in names]


NAMED = re.findall(r"^    \[(\S+)\]=\"(.*)\"$", (ROOT / "benchmarks/gpu.sh").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("name", "words"), NAMED)
def test_what_is_trained_by_name_is_a_command_that_holds(name, words):
    config = parse([*words.split(), "--tf32", "--diagnostics-every", "10", "--val-size", "0", "--test-weights", "last"])
    assert (config.run.algo == "bp") == name.startswith("bp") and config.run.max_epochs > 1
    assert config.run.model in name and (config.run.data in name or config.run.model == "vgg")


def test_all_names_are_found():
    assert len(NAMED) > 10
