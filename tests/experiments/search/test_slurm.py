"""``slurm/search.sh``: the tasks of an array share one study. With an srun that only notes how it was called."""

import pytest

from dtp.experiments.search.command import make_parser
from tests.slurm.test_slurm_scripts import ARRAY, Cluster, pytestmark  # noqa: F401

BEGUN = {"SLURM_JOB_NAME": "search", "DOES": "touch runs/search-17/study.json"}


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


def search(cluster, *arguments, **environ):
    return cluster.run(*arguments, script="search", **{**BEGUN, **environ})


def test_starts_the_search_under_srun(cluster):
    done = search(cluster, "--algo", "sdtp", "--trials", "8", DTP_DATA_DIR="/the data")
    assert (done.returncode, done.stderr) == (0, "")
    words = ["--study", "runs/search-17", "--data-dir", "/the data", "--algo", "sdtp", "--trials", "8"]
    assert cluster.command == ["python", "-m", "dtp", "search", *words]
    options, rest = make_parser().parse_known_args(words)
    assert str(options.study) == "runs/search-17" and rest == ["--data-dir", "/the data", "--algo", "sdtp"]


def test_array_tasks_share_the_study_and_have_logs_and_no_seeds_of_their_own(cluster):
    search(cluster, **ARRAY)
    assert cluster.option("--study") == "runs/search-17" and cluster.option("--seed") is None
    assert "a line of main.py" in cluster.log("runs/search-17", "17_5")
    search(cluster, **ARRAY, DTP_RUN_DIR="scratch/mine", DOES="touch scratch/mine/study.json")
    assert cluster.option("--study") == "scratch/mine"
    search(cluster, "--study=theirs", **ARRAY, DOES="touch theirs/study.json")
    assert "a line of main.py" in cluster.log("theirs", "17_5")


def test_a_search_that_is_stopped_is_queued_again(cluster):
    done = search(cluster, status=75, **ARRAY)
    assert done.returncode == 0 and cluster.noted("scontrol") == ["requeue 17_5"]


def test_a_search_that_never_began_shows_why_and_leaves_no_folder(cluster):
    done = search(cluster, status=2, SAYS="error: a mistake.", DOES=":")
    assert done.returncode == 2 and "\nerror: a mistake.\n" in done.stdout
    assert not (cluster.root / "runs/search-17").exists()
