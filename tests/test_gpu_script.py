"""What benchmarks/gpu.sh says of mistakes before anything runs; .ci/run does a little of every part of it."""

import subprocess
import sys
import tarfile

import pytest

from tests.runs import ROOT


def script(*words: str) -> subprocess.CompletedProcess:
    words = ["--python", sys.executable, *words]
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
        ("--dry --python /no/python tests", "the module torch is missing"),
    ],
)
def test_a_mistake_ends_in_one_sentence(words, said, tmp_path):
    out = [] if words == "--out" else ["--out", str(tmp_path)]
    ended = script(*out, *words.split())
    assert ended.returncode == 2 and said in ended.stderr and ended.stderr.startswith("gpu.sh: ")
    assert len(ended.stderr.splitlines()) == 1


def test_a_report_is_one_archive_of_small_files(tmp_path):
    assert script("--dry", "--out", str(tmp_path), "report").returncode == 0
    with tarfile.open(tmp_path / "runs.tgz") as archive:
        assert not [name for name in archive.getnames() if name.endswith(".ckpt")]
