"""The short form of the chaos test; the long one is python -m tests.chaos."""

import json
import subprocess
import sys

import pytest

from tests.chaos.judge import judge_mistake, judge_own
from tests.chaos.mistakes import MISTAKES
from tests.chaos.own import OWN
from tests.preloaded import children
from tests.runs import ROOT

# Of the mistakes that are found only in training, each of which takes a start of it, some; the long form has all.
TRAINED = [own for own in OWN if own.flag == "algo"]
SOME = [own for own in OWN if own not in TRAINED] + TRAINED[::4]


@pytest.mark.parametrize("own", SOME, ids=lambda own: own.name.replace(" ", "-"))
def test_a_mistake_in_a_class_of_the_users_own_is_told_as_theirs(own, tmp_path):
    assert judge_own(own, tmp_path) == ""


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: ascii(" ".join(mistake.words)[:60]).strip("'"))
def test_a_mistake_on_the_command_line_is_one_sentence(mistake, tmp_path):
    assert judge_mistake(mistake, tmp_path) == ""


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    out = tmp_path_factory.mktemp("chaos") / "figures.json"
    words = ["--kills", "3", "--flips", "5", "--no-mistakes", "--no-disks", "--out", str(out)]
    with children():
        subprocess.run([sys.executable, "-m", "tests.chaos", *words], cwd=ROOT, check=False)
    return json.loads(out.read_text())


def test_killed_runs_end_as_those_never_killed(figures):
    kills = figures["kills"]
    assert not kills["wrong"] and kills["survived"] == kills["kills"] and kills["hangs"] == 0


def test_flipped_bits_are_noticed(figures):
    flips = figures["flips"]
    assert flips["flips"] == flips["noticed"] == 5 and len(flips["files"]) == 4
