"""The sbatch scripts, run with an srun and a scontrol that only note how they were called."""

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

SLURM = Path(__file__).parent.parent / "slurm"
SCRIPTS = ["vgg_dtp", "vgg_bp"]
JOB = {
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_NAME": "vgg_dtp",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_CPUS_PER_TASK": "3",
}
ARRAY = {"SLURM_JOB_ID": "19", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "5"}

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


class Cluster:
    """A folder that stands for the repository, and what sbatch would do with it."""

    def __init__(self, folder):
        self.root = folder / "repository"
        self.spool = folder / "spool"
        self.programs = folder / "programs"
        for path in (self.root, self.spool, self.programs):
            path.mkdir()
        shutil.copytree(SLURM, self.root / "slurm")
        self.program(
            "srun", 'printf "%s\\n" "$@" > "$NOTES/srun"; pwd > "$NOTES/pwd"; env > "$NOTES/env"; exit $STATUS'
        )
        self.program("scontrol", 'echo "$@" >> "$NOTES/scontrol"; exit ${SCONTROL_STATUS:-0}')

    def program(self, name, body):
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def run(self, *arguments, script="vgg_dtp", status=0, submitted_from=None, **environ):
        """Run a copy of the script from elsewhere, as SLURM does."""
        copied = self.spool / "slurm_script"
        shutil.copy(SLURM / f"{script}.sh", copied)
        return subprocess.run(
            ["bash", str(copied), *arguments],
            cwd=self.spool,
            env={
                "PATH": f"{self.programs}:{os.environ['PATH']}",
                "HOME": str(self.spool),
                "NOTES": str(self.spool),
                "STATUS": str(status),
                "SLURM_SUBMIT_DIR": str(submitted_from or self.root),
                **JOB,
                **environ,
            },
            capture_output=True,
            text=True,
            timeout=30,
        )

    def noted(self, name):
        path = self.spool / name
        return path.read_text().splitlines() if path.exists() else None

    @property
    def command(self):
        """The program that srun was to start, with its arguments."""
        words = self.noted("srun")
        return words[words.index("python") :]

    def option(self, flag):
        """The value that counts, the last one."""
        command = self.command
        return command[len(command) - command[::-1].index(flag)] if flag in command else None


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


@pytest.mark.parametrize("script, algo", [("vgg_dtp", "dtp"), ("vgg_bp", "bp")])
def test_starts_main_under_srun_on_all_nodes_and_devices(cluster, script, algo):
    done = cluster.run(script=script, SLURM_JOB_NAME=script)
    assert (done.returncode, done.stderr) == (0, "")
    assert cluster.command == [
        *["python", "main.py", "--algo", algo, "--model", "vgg", "--data", "imagenet32"],
        *["--num-nodes", "2", "--devices", "4", "--run-dir", f"runs/{script}-17", "--resume", "auto"],
    ]
    assert cluster.noted("pwd") == [str(cluster.root)]
    assert "SRUN_CPUS_PER_TASK=3" in cluster.noted("env")
    assert cluster.noted("scontrol") is None


def test_arguments_and_variables_are_passed_on(cluster):
    cluster.run(
        *["--seed", "1", "--run-dir", "a folder"],
        DTP_DATA_DIR="/the data",
        DTP_RUN_DIR="/ignored",
        DTP_ARGS="--batch-size  64\n --seed 2 --limit *",
    )
    assert cluster.option("--data-dir") == "/the data"
    assert cluster.option("--batch-size") == "64"
    assert cluster.option("--limit") == "*"
    assert cluster.option("--seed") == "1"
    assert cluster.option("--run-dir") == "a folder"


def test_run_dir_can_be_set_and_is_the_same_after_a_requeue(cluster):
    cluster.run(DTP_RUN_DIR="/scratch/my run")
    assert cluster.option("--run-dir") == "/scratch/my run"
    cluster.run()
    first = cluster.command
    cluster.run(SLURM_RESTART_COUNT="2")
    assert cluster.command == first


def test_array_tasks_have_seeds_and_folders_of_their_own(cluster):
    cluster.run(**ARRAY)
    assert cluster.option("--seed") == "5"
    assert cluster.option("--run-dir") == "runs/vgg_dtp-17_5"
    cluster.run("--seed", "8", **ARRAY, DTP_RUN_DIR="/scratch/run")
    assert cluster.option("--seed") == "8"
    assert cluster.option("--run-dir") == "/scratch/run-5"


@pytest.mark.parametrize("environ, job", [({}, "17"), (ARRAY, "17_5")])
def test_a_run_that_asks_to_be_continued_is_queued_again(cluster, environ, job):
    done = cluster.run(status=75, **environ)
    assert done.returncode == 0
    assert cluster.noted("scontrol") == [f"requeue {job}"]


@pytest.mark.parametrize("status", [1, 2, 130, 137, 143])
def test_other_statuses_are_passed_through(cluster, status):
    assert cluster.run(status=status).returncode == status
    assert cluster.noted("scontrol") is None


def test_a_job_that_cannot_be_queued_again_says_how_to_go_on(cluster):
    done = cluster.run(status=75, SCONTROL_STATUS="1")
    assert done.returncode == 75
    assert "DTP_RUN_DIR=runs/vgg_dtp-17" in done.stderr


def test_virtual_environment_is_activated(cluster, tmp_path):
    activate = tmp_path / "venv/bin/activate"
    activate.parent.mkdir(parents=True)
    activate.write_text("export ACTIVATED=yes\n")
    cluster.run(DTP_VENV=str(tmp_path / "venv"))
    assert "ACTIVATED=yes" in cluster.noted("env")


@pytest.mark.parametrize(
    "environ, expected",
    [
        ({"submitted_from": "/"}, "submit from the root of the repository"),
        ({"SLURM_JOB_ID": ""}, "not a SLURM job"),
        ({"DTP_VENV": "/nowhere"}, "no virtual environment"),
    ],
)
def test_mistakes_are_told_in_one_line(cluster, environ, expected):
    done = cluster.run(**environ)
    assert done.returncode == 2
    assert expected in done.stderr and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert cluster.noted("srun") is None


@pytest.mark.parametrize("script", SCRIPTS)
def test_sbatch_directives(script):
    text = (SLURM / f"{script}.sh").read_text()
    directives = re.findall(r"^#SBATCH (\S+)$", text, re.MULTILINE)
    # sbatch stops looking at the first command.
    assert len(directives) == len(re.findall(r"^#SBATCH", text.split("\nset ")[0], re.MULTILINE))
    options = {directive.partition("=")[0] for directive in directives}
    assert {"--requeue", "--open-mode=append", "--signal=SIGUSR1@90", "--nodes=1", "--ntasks-per-node=1"} <= {
        *directives
    }
    assert {"--gpus-per-node", "--cpus-per-task", "--mem-per-cpu", "--time", "--output", "--job-name"} <= options


@pytest.mark.parametrize("name", [*SCRIPTS, "common"])
def test_scripts_parse(name):
    subprocess.run(["bash", "-n", str(SLURM / f"{name}.sh")], check=True)
