"""The sbatch scripts on a real SLURM of two nodes, which slurm/local_cluster.sh starts on this machine."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
import yaml

from dtp.run.folder import checkpoint_step, newest_checkpoint

ROOT = Path(__file__).parent.parent.parent
UP = ["bash", str(ROOT / "slurm" / "local_cluster.sh"), "up"]
DOWN = ["bash", str(ROOT / "slurm" / "local_cluster.sh"), "down"]
# Ten batches per epoch.
SMALL = "--model mlp --widths 16 --data digits --batch-size 128 --max-epochs 3 --accelerator cpu".split()
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0")
TWO_TASKS = ("--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=0")
STEPS = 30
# Of a start, on a busy machine: importing torch alone takes seconds.
START = 120
# After one of two tasks is killed, the job has ended.
ENDS_WITHIN = 60
# Holds every rank in the batch after HELD_AT, in the middle of an epoch, until a signal or a file "release" comes.
HELD_AT = 13
HOLDING_RULE = f"""
import os
import time
from pathlib import Path

from dtp.algorithms import DTP
from dtp.system.signals import stop_request


class Holding(DTP):
    def training_step(self, batch, batch_idx):
        run = self.trainer.default_root_dir
        if self.trainer.global_step == {HELD_AT} and Path(run + ".hold").exists():
            Path(run + f".held-{{self.global_rank}}").write_text(str(os.getpid()))
            while stop_request.signum is None and not Path(run + ".release").exists():
                time.sleep(0.02)
        return super().training_step(batch, batch_idx)
"""
HOLDING = ("--algo", "holding:Holding", *SMALL)

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def wait_for(what, seconds, condition, complain=lambda: ""):
    """The condition's value once it is true; an assertion error with ``complain()`` after so many seconds."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"{what}: not within {seconds} seconds\n{complain()}"
        time.sleep(0.2)
    return value


class Slurm:
    """A running cluster, and a folder from which jobs are submitted as from the root of the repository."""

    def __init__(self, configuration, root):
        self.root = root
        for name in ("dtp", "slurm", "main.py"):
            (root / name).symlink_to(ROOT / name)
        (root / "holding.py").write_text(HOLDING_RULE)
        programs = root / "programs"
        programs.mkdir()
        (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (programs / "python").chmod(0o755)
        others = ("SLURM_", "SBATCH_", "DTP_", "WANDB_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        self.environ = {
            **kept,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "SLURM_CONF": str(configuration),
            "OMP_NUM_THREADS": "1",
            "WANDB_MODE": "offline",
        }

    def __call__(self, *command, **environ):
        done = subprocess.run(
            command, cwd=self.root, env={**self.environ, **environ}, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, *options, script="vgg_dtp", arguments=(), run_dir=None, **environ):
        if run_dir is not None:
            environ["DTP_RUN_DIR"] = str(run_dir)
        number = self("sbatch", "--parsable", *options, f"slurm/{script}.sh", *arguments, **environ)
        return Job(self, number, run_dir or self.root / f"runs/{script}-{number}", script)


class Job:
    """One job, or one task of an array."""

    def __init__(self, slurm, number, folder, script="vgg_dtp"):
        self.slurm, self.number, self.script = slurm, number, script
        self.folder = Path(folder)

    def about(self, name):
        return re.search(rf"\b{name}=(\S*)", self.slurm("scontrol", "show", "job", self.number)).group(1)

    @property
    def state(self):
        return self.about("JobState")

    @property
    def log(self):
        """What the run printed, beside it."""
        path = self.folder / f"slurm-{self.number}.out"
        return path.read_text() if path.exists() else ""

    @property
    def submit_log(self):
        """SLURM's own file, in the folder of submission."""
        path = self.slurm.root / f"slurm-{self.script}-{self.number}.out"
        return path.read_text() if path.exists() else ""

    def logs(self):
        return f"{self.submit_log}\n---\n{self.log}"

    @property
    def summary(self):
        return json.loads((self.folder / "summary.json").read_text())

    def beside(self, suffix):
        return self.folder.with_name(self.folder.name + suffix)

    def hold(self):
        self.beside(".hold").touch()
        return self

    def held(self, ranks=2):
        """Wait until every rank is held; their process ids."""
        paths = [self.beside(f".held-{rank}") for rank in range(ranks)]
        wait_for("held", START, lambda: all(path.exists() and path.read_text() for path in paths), self.logs)
        return [int(path.read_text()) for path in paths]

    def ends(self, seconds=START):
        """Wait until it has ended for good; how."""
        ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY"}
        wait_for("the job's end", seconds, lambda: self.state in ended, self.logs)
        return self.state

    def completes(self):
        assert self.ends() == "COMPLETED", self.logs()
        return self

    @property
    def newest_step(self):
        newest = newest_checkpoint(self.folder)
        return newest and checkpoint_step(newest)

    def weights(self):
        assert self.newest_step == STEPS
        return torch.load(newest_checkpoint(self.folder), weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    # Not below pytest's folder: names of sockets are short.
    folder = Path(tempfile.mkdtemp(prefix="dtp-slurm-"))
    try:
        done = subprocess.run([*UP, str(folder)], capture_output=True, text=True, timeout=120)
        logs = "\n".join(path.read_text() for path in folder.glob("*.log"))
        assert done.returncode == 0, f"{done.stderr}\n{logs}"
        configuration = re.fullmatch(r"export SLURM_CONF=(\S+)\n", done.stdout).group(1)
        yield Slurm(configuration, tmp_path_factory.mktemp("repository"))
    finally:
        subprocess.run([*DOWN, str(folder)], check=True, timeout=120)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def uninterrupted(slurm):
    """A run on two nodes from its beginning to its end."""
    return slurm.submit(*TWO_NODES, arguments=HOLDING).completes()


def held_job(slurm, name, *options, arguments=HOLDING):
    """A job on two nodes that waits in the middle of its second epoch."""
    run_dir = slurm.root / "runs" / name
    run_dir.parent.mkdir(exist_ok=True)
    Job(slurm, "", run_dir).hold()
    job = slurm.submit(*TWO_NODES, *options, arguments=arguments, run_dir=run_dir)
    job.held()
    return job


def assert_same_weights(one, other):
    one, other = one.weights(), other.weights()
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def assert_went_on_as_if_never_stopped(job, uninterrupted, stopped_by):
    assert job.about("Restarts") == "1"
    assert f"Stopped by {stopped_by} after batch {HELD_AT + 1};" in job.log
    assert f"goes on from batch {HELD_AT + 1}\n" in job.log
    assert "queued again" in job.submit_log and "start 2," in job.submit_log
    assert job.summary["steps"] == STEPS
    assert_same_weights(job, uninterrupted)


def test_two_nodes_make_one_run_with_the_log_beside_it(uninterrupted):
    job = uninterrupted
    assert job.summary["world_size"] == 2
    assert job.summary["steps"] == STEPS
    names = {path.name for path in job.folder.iterdir()}
    assert names - {".lock"} == {
        *("checkpoints", "config.yaml", "metrics.csv", "summary.json", "training.png"),
        *("weights.safetensors", f"slurm-{job.number}.out"),
    }
    assert [path.name for path in job.folder.parent.iterdir()].count(job.folder.name) == 1
    assert job.log.count("test accuracy") == 1
    assert str(job.folder.relative_to(job.slurm.root)) in job.submit_log and "has finished" in job.submit_log


def test_two_tasks_on_one_node_compute_what_one_on_each_of_two_does(slurm, uninterrupted):
    job = slurm.submit(*TWO_TASKS, arguments=HOLDING).completes()
    assert job.summary["world_size"] == 2
    assert_same_weights(job, uninterrupted)


def test_a_signalled_job_is_queued_again_and_ends_with_the_same_weights(slurm, uninterrupted):
    job = held_job(slurm, "signalled", arguments=(*HOLDING, "--logger", "wandb"))
    slurm("scancel", "--signal=USR1", job.number)
    job.completes()
    assert_went_on_as_if_never_stopped(job, uninterrupted, "SIGUSR1")
    # Both starts are one W&B run.
    number = (job.folder / "wandb-id.txt").read_text().strip()
    offline = [path.name for path in (job.folder / "wandb").glob("offline-run-*")]
    assert len(offline) == 2 and all(name.endswith(f"-{number}") for name in offline)


def test_a_job_at_its_time_limit_is_queued_again_and_ends_with_the_same_weights(slurm, uninterrupted):
    # A minute is the shortest limit, and the signal may come up to a minute earlier than asked for.
    job = held_job(slurm, "limited", "--time=1", "--signal=USR1@5")
    job.completes()
    assert_went_on_as_if_never_stopped(job, uninterrupted, "SIGUSR1")


def test_a_preempted_job_is_queued_again_and_ends_with_the_same_weights(slurm, uninterrupted):
    job = held_job(slurm, "preempted", "--partition=low")
    slurm("sbatch", "--partition=main", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
    job.completes()
    assert_went_on_as_if_never_stopped(job, uninterrupted, "SIGTERM")


def test_an_array_makes_one_run_per_seed(slurm):
    number = slurm("sbatch", "--parsable", "--array=1-2", "--gpus-per-node=0", "slurm/vgg_bp.sh", *SMALL)
    tasks = [Job(slurm, f"{number}_{seed}", slurm.root / f"runs/vgg_bp-{number}_{seed}") for seed in (1, 2)]
    for seed, task in enumerate(tasks, 1):
        assert task.completes().summary["seed"] == seed
        assert yaml.safe_load((task.folder / "config.yaml").read_text())["algo"] == "bp"
        assert task.log.count("test accuracy") == 1
    assert tasks[0].weights().keys() == tasks[1].weights().keys()
    assert any(not torch.equal(tasks[0].weights()[name], tasks[1].weights()[name]) for name in tasks[0].weights())


def test_a_job_whose_task_is_killed_ends_soon_and_goes_on_when_submitted_again(slurm, uninterrupted):
    job = held_job(slurm, "killed")
    os.kill(job.held()[1], 9)
    job.beside(".release").touch()
    assert job.ends(ENDS_WITHIN) == "FAILED", job.logs()
    assert f"DTP_RUN_DIR={job.folder}" in job.submit_log
    job.beside(".hold").unlink()
    again = slurm.submit(*TWO_NODES, arguments=HOLDING, run_dir=job.folder).completes()
    assert "goes on from batch 10\n" in again.log
    assert_same_weights(again, uninterrupted)


def test_a_cancelled_job_ends_for_good_with_a_checkpoint(slurm):
    job = held_job(slurm, "cancelled")
    slurm("scancel", job.number)
    assert job.ends() == "CANCELLED"
    assert job.newest_step == HELD_AT + 1, job.logs()
    assert job.about("Restarts") == "0"


def test_a_mistake_shows_where_the_job_was_submitted_and_leaves_no_folder(slurm):
    job = slurm.submit("--gpus-per-node=0", arguments=[*SMALL, "--widthss", "3"])
    assert job.ends() == "FAILED"
    assert "error: " in job.submit_log and "--widthss" in job.submit_log
    assert not job.folder.exists()


def test_a_second_start_of_the_cluster_changes_nothing(slurm):
    configuration = Path(slurm.environ["SLURM_CONF"])
    before = configuration.read_text()
    done = subprocess.run([*UP, str(configuration.parent)], capture_output=True, text=True, timeout=120)
    assert done.stdout == f"export SLURM_CONF={configuration}\n"
    assert configuration.read_text() == before


@pytest.mark.parametrize("controller", ["alive", "killed"])
def test_the_cluster_leaves_nothing_running(slurm, controller):
    folder = Path(tempfile.mkdtemp(prefix="dtp-slurm-"))
    try:
        subprocess.run([*UP, str(folder)], check=True, capture_output=True, timeout=120)
        environ = {**slurm.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        # Deaf to SIGTERM, as a run is that waits for another one.
        endless = f"--wrap=trap '' TERM; srun --ntasks=2 tail -f {folder}/slurm.conf"
        submit = ["sbatch", "--nodes=2", "--ntasks=2", "--output=/dev/null", endless]
        subprocess.run(submit, check=True, capture_output=True, env=environ, timeout=60)
        wait_for("the job's start", 30, lambda: len(processes_of(folder, "tail")) == 2)
        if controller == "killed":
            os.kill(int((folder / "slurmctld.pid").read_text()), 9)
    finally:
        subprocess.run([*DOWN, str(folder)], check=True, timeout=120)
    assert not processes_of(folder)
    assert {path.suffix for path in folder.iterdir()} <= {".log", ""}
    shutil.rmtree(folder)


def processes_of(folder, program=""):
    """Processes of a program that name the folder in their command line, or work in it."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command, name = (path / "cmdline").read_text(errors="replace"), (path / "comm").read_text()
            about = str(folder) in command or (path / "cwd").resolve() == folder
        except OSError:
            # It has ended meanwhile.
            continue
        if about and name.startswith(program):
            found.append(f"{path.name} {name.strip()}")
    return found
