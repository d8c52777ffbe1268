"""``slurm/search.sh`` on a real SLURM of two nodes on this machine."""

import json

import pytest

from dtp.experiments.search.study import read_study
from tests.slurm.test_slurm_cluster import Job, slurm  # noqa: F401

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SEARCH = "--algo bp --data digits --widths 8 --max-epochs 1 --diagnostics-every 0 --trials 4 --jobs 1".split()


def test_the_tasks_of_an_array_divide_the_trials_of_one_study(slurm):  # noqa: F811
    number = slurm("sbatch", "--parsable", "--array=1-2", "--gpus-per-node=0", "slurm/search.sh", *SEARCH)
    folder = slurm.root / f"runs/search-{number}"
    tasks = [Job(slurm, f"{number}_{i}", folder, "search") for i in (1, 2)]
    for task in tasks:
        # A trial imports torch, on a machine that may be busy with the other's.
        assert task.ends(240) == "COMPLETED", task.logs()
    assert [trial["state"] for trial in read_study(folder)["trials"]] == ["finished"] * 4
    begun = [line.split()[0] for task in tasks for line in task.log.splitlines() if " of 4: " in line]
    assert sorted(begun) == [f"trial-{i:04d}" for i in range(4)]
    for i in range(4):
        assert (folder / f"trial-{i:04d}.log").read_text().count("run folder") == 1
        # A run on its own, whatever SLURM told the process that began it.
        assert json.loads((folder / f"trial-{i:04d}/summary.json").read_text())["world_size"] == 1
