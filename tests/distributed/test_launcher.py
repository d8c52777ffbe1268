"""What a process knows of its launcher: the variables that torchrun, srun and Lightning set, and what each answers."""

import os
import subprocess
import sys

import pytest

from dtp.cli.train import main
from dtp.distributed import launcher
from dtp.distributed.launcher import Place
from dtp.errors import UserError

OF_LAUNCHERS = ("RANK", "LOCAL_", "WORLD_SIZE", "MASTER_", "SLURM_", "TORCHELASTIC_", "GROUP_", "NODE_RANK")

MEETING = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
# Rank 4 of two machines with three processes each, as torchrun sets it; its agent has the store.
TORCHRUN = MEETING | {
    "RANK": "4",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "6",
    "LOCAL_WORLD_SIZE": "3",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RESTART_COUNT": "2",
}
# Task 5 of a step of two machines with four tasks each.
SRUN = MEETING | {
    "SLURM_JOB_ID": "123",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "8",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_NODES": "2",
}
# A step of one task.
ONE = {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_PROCID": "0", "SLURM_STEP_NUM_NODES": "1"}
# The same job as its script sees it: nobody has started the tasks.
SBATCH = {name: value for name, value in SRUN.items() if name != "SLURM_STEP_NUM_NODES"} | {"SLURM_PROCID": "0"}
# A shell in that job, of which Lightning knows by its name that it is no task.
SHELL = SRUN | {"SLURM_JOB_NAME": "bash", "SLURM_PROCID": "0"}
# The shell of salloc, which is no task at all.
SALLOC = {"SLURM_JOB_ID": "123", "SLURM_JOB_NAME": "interactive", "SLURM_NTASKS": "8"}
# A further process of dtp train --devices 2, as Lightning sets it.
LIGHTNING = MEETING | {"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2"}
# The process that started that one.
FIRST = LIGHTNING | {"LOCAL_RANK": "0"}
# The same in a shell of SLURM, and in a script of sbatch that names no number of tasks.
IN_SHELL = SHELL | {"SLURM_NTASKS": "1"} | LIGHTNING
IN_SCRIPT = {name: value for name, value in SBATCH.items() if name != "SLURM_NTASKS"} | LIGHTNING
# A task of srun whose script sets LOCAL_RANK as well.
WRAPPED = SRUN | {"LOCAL_RANK": "1"}


@pytest.fixture
def launched(monkeypatch):
    def launch(environ):
        for name in [name for name in os.environ if name.startswith(OF_LAUNCHERS)]:
            monkeypatch.delenv(name)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)

    return launch


@pytest.mark.parametrize(
    ("environ", "has_rank", "rank", "has_launcher", "by_lightning", "together", "processes", "layout"),
    [
        ({}, False, 0, False, False, False, None, None),
        (TORCHRUN, True, 4, True, False, True, 6, (3, 2)),
        (SRUN, True, 5, True, False, True, 8, (4, 2)),
        (SBATCH, True, 0, True, False, True, 8, None),
        (SHELL, True, 0, False, False, True, None, None),
        (SALLOC, False, 0, False, False, False, None, None),
        (LIGHTNING, True, 1, False, True, True, 2, None),
        (FIRST, True, 0, False, False, True, 2, None),
        (IN_SHELL, True, 1, False, True, True, 2, None),
        (IN_SCRIPT, True, 1, False, True, True, 2, None),
        (WRAPPED, True, 5, True, False, True, 8, (4, 2)),
        # What is no number says nothing, and the next is asked.
        ({"RANK": "", "SLURM_PROCID": "x", "LOCAL_RANK": "3"}, True, 3, True, False, False, None, None),
    ],
    ids="alone torchrun srun sbatch shell salloc lightning first in_shell in_script wrapped garbled".split(),
)
def test_what_each_launcher_says(
    environ, has_rank, rank, has_launcher, by_lightning, together, processes, layout, launched
):
    launched(environ)
    assert launcher.has_rank() == has_rank
    assert launcher.process_rank() == rank
    assert launcher.has_launcher() == has_launcher
    assert launcher.started_by_lightning() == by_lightning
    assert launcher.began_together() == together
    assert launcher.processes() == processes
    assert launcher.layout(processes or 0) == layout


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        (TORCHRUN, Place(4, 6, "node1", 29500, serves=False, attempt="2")),
        (TORCHRUN | {"RANK": "0"}, Place(0, 6, "node1", 29500, serves=False, attempt="2")),
        # Without a store of torchrun's it is rank 0 that has it.
        (
            TORCHRUN | {"RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "False"},
            Place(0, 6, "node1", 29500, serves=True, attempt="2"),
        ),
        (TORCHRUN | {"WORLD_SIZE": "1"}, None),
        ({name: value for name, value in TORCHRUN.items() if name != "MASTER_PORT"}, None),
        ({name: value for name, value in TORCHRUN.items() if name != "MASTER_ADDR"}, None),
        (SRUN, Place(5, 8, "node1", 29500, serves=False)),
        (SRUN | {"SLURM_PROCID": "0"}, Place(0, 8, "node1", 29500, serves=True)),
        (SHELL, None),
        (SRUN | ONE, None),
        # A shell of salloc in a job with a name of its own.
        (SALLOC | {"SLURM_JOB_NAME": "train", "SLURM_NTASKS_PER_NODE": "4"}, None),
        (LIGHTNING, Place(1, 2, "node1", 29500, serves=False, parent=os.getppid())),
        (FIRST, Place(0, 2, "node1", 29500, serves=True)),
        (IN_SHELL, Place(1, 2, "node1", 29500, serves=False, parent=os.getppid())),
        (IN_SCRIPT, Place(1, 2, "node1", 29500, serves=False, parent=os.getppid())),
    ],
)
def test_where_a_process_stands(environ, expected, launched):
    launched(environ)
    assert launcher.place_of_process() == expected


def test_one_task_need_not_say_on_which_machine_it_is(launched):
    launched({name: value for name, value in (SRUN | ONE).items() if name != "SLURM_NTASKS_PER_NODE"})
    assert launcher.processes() == 1


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        (SALLOC | {"SLURM_JOB_NAME": "train"}, "SLURM_PROCID: .* found none .* put srun before the command"),
        (SRUN | {"SLURM_JOB_NAME": "interactive"}, "SLURM_JOB_NAME: .* found interactive for task 5"),
    ],
    ids=["a shell in a job with a name of its own", "a task in the shell of salloc"],
)
def test_what_lightning_takes_for_a_task_or_a_shell_and_is_the_other_is_refused(environ, words, launched):
    launched(environ)
    with pytest.raises(UserError, match=words):
        launcher.processes()


@pytest.mark.parametrize("around", [SRUN, SBATCH])
def test_within_a_job_of_slurm_torchrun_says_all(around, launched):
    launched(around | TORCHRUN)
    assert launcher.process_rank() == 4 and not launcher.uses_slurm()
    assert launcher.processes() == 6 and launcher.layout(6) == (3, 2)
    assert launcher.place_of_process() == Place(4, 6, "node1", 29500, serves=False, attempt="2")


@pytest.mark.parametrize("environ", [TORCHRUN, SRUN, LIGHTNING])
def test_a_run_that_a_process_starts_is_alone(environ, launched):
    launched(launcher.without_launcher(environ | {"PATH": "/bin"}))
    assert os.environ["PATH"] == "/bin"
    assert not launcher.has_rank() and not launcher.began_together() and launcher.process_rank() == 0
    assert launcher.processes() is None and launcher.place_of_process() is None


@pytest.mark.parametrize("environ", [{}, TORCHRUN, SRUN, SBATCH, SHELL, LIGHTNING, FIRST, SRUN | {"RANK": "5"}])
def test_what_a_launcher_sets_makes_sense(environ, launched):
    launched(environ)
    launcher.require_sense()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"RANK": "x"}, "RANK: expected a whole number"),
        ({"SLURM_LOCALID": "²"}, "SLURM_LOCALID: expected a whole number"),
        ({"SLURM_PROCID": ""}, "SLURM_PROCID: expected a whole number"),
        ({"SLURM_NTASKS": "abc"}, "SLURM_NTASKS: expected a whole number"),
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE: expected a whole number"),
        ({"RANK": "3"}, "RANK: expected a rank below the number of processes, 1 by"),
        # Without an address: train would look for the other ranks there, for a minute.
        ({"RANK": "6", "WORLD_SIZE": "6"}, "RANK: expected a rank below the number of processes, 6 by"),
    ],
)
@pytest.mark.parametrize("command", [["train", "--max-steps", "1"], ["report", "runs"]])
def test_what_no_launcher_sets_is_one_sentence(environ, expected, command, launched, tmp_path):
    launched(environ)
    code = "import sys; from dtp.cli.program import console; sys.exit(console())"
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {expected}") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("environ", [SRUN, SBATCH])
def test_tasks_that_are_on_no_machine_are_one_sentence(environ, launched, capsys):
    launched({name: value for name, value in environ.items() if name != "SLURM_NTASKS_PER_NODE"})
    assert launcher.place_of_process() is None
    assert main(["--max-steps", "1", "--run-dir", "run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: SLURM_NTASKS_PER_NODE: expected the tasks on each machine, found none beside --nta")


def test_a_plain_command_asks_without_torch():
    asked = "has_rank(), process_rank(), has_launcher(), began_together(), place_of_process()"
    script = f"import sys\nfrom dtp.distributed.launcher import *\nprint({asked}, 'torch' in sys.modules)"
    environ = {name: value for name, value in os.environ.items() if not name.startswith(OF_LAUNCHERS)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environ, check=True)
    assert done.stdout.split() == ["False", "0", "False", "False", "None", "False"]
