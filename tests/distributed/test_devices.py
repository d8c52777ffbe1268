"""How many devices a run uses: those that it names, or those for which a launcher has started processes."""

import os
import subprocess
import sys

import pytest
import torch

from dtp.cli.config import RunOptions
from dtp.distributed import devices
from dtp.distributed.devices import choose_devices, choose_strategy
from dtp.distributed.division import ByImages, ByImagesOncePerBatch, ByLayers
from dtp.errors import UserError
from tests.runs import ROOT, SHORT

# As srun sets them in a step of tasks; as torchrun does.
SRUN = {
    "SLURM_NTASKS": "8",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_PROCID": "0",
    "SLURM_JOB_NAME": "train",
    "SLURM_STEP_NUM_NODES": "2",
}
TORCHRUN = {"WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3", "RANK": "0", "LOCAL_RANK": "0"}


@pytest.fixture
def launched(monkeypatch):
    def launch(environ):
        for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)

    return launch


def choose(**options):
    return choose_devices(RunOptions(accelerator="cpu", **options))


@pytest.mark.parametrize(("environ", "expected"), [({}, (1, 1)), (SRUN, (4, 2)), (TORCHRUN, (3, 2))])
def test_left_out_the_numbers_are_those_of_the_launcher(launched, environ, expected):
    launched(environ)
    assert choose() == ("cpu", *expected)


@pytest.mark.parametrize("environ", [SRUN, TORCHRUN])
def test_numbers_that_are_given_must_be_those_of_the_launcher(launched, environ):
    launched(environ)
    devices = 4 if environ is SRUN else 3
    assert choose(devices=str(devices), num_nodes=2) == ("cpu", devices, 2)
    with pytest.raises(UserError, match="--num-nodes 1 --devices 2 means 2"):
        choose(devices="2")
    with pytest.raises(UserError, match="--num-nodes 3 --devices 1 means 3"):
        choose(num_nodes=3)


@pytest.fixture
def machine(launched, monkeypatch):
    """With so many GPUs and four cores."""

    def make(gpus):
        launched({})
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(devices, "available_cores", lambda: 4)

    return make


@pytest.mark.parametrize(
    ("accelerator", "asked", "gpus", "expected"),
    [
        ("auto", "1", 2, ("gpu", 1, 1)),
        ("auto", "auto", 2, ("gpu", 2, 1)),
        ("auto", "auto", 0, ("cpu", 1, 1)),
        ("gpu", "2", 2, ("gpu", 2, 1)),
        ("cuda", "auto", 2, ("gpu", 2, 1)),
        ("cpu", "auto", 2, ("cpu", 1, 1)),
        ("cpu", "4", 2, ("cpu", 4, 1)),
        # As many as there are GPUs, however few cores.
        ("gpu", "8", 8, ("gpu", 8, 1)),
    ],
)
def test_a_plain_command_has_the_devices_of_its_machine(machine, accelerator, asked, gpus, expected):
    machine(gpus)
    assert choose_devices(RunOptions(accelerator=accelerator, devices=asked)) == expected


@pytest.mark.parametrize(
    ("gpus", "options", "words"),
    [
        (0, {"accelerator": "gpu"}, "--accelerator gpu: this machine has no usable GPU"),
        (2, {"accelerator": "gpu", "devices": "3"}, "--devices 3: this machine has 2 GPUs"),
        (8, {"accelerator": "cpu", "devices": "5"}, "--devices 5: this machine has 4 CPU cores"),
        (2, {"num_nodes": 2}, "--num-nodes 2: a plain command starts processes on its own machine only"),
    ],
)
def test_what_a_machine_does_not_have_is_refused(machine, gpus, options, words):
    machine(gpus)
    with pytest.raises(UserError, match=words):
        choose_devices(RunOptions(**options))


def test_several_processes_divide_feedback_as_asked_and_one_has_no_strategy_unless_asked():
    assert choose_strategy(RunOptions(), 1) == "auto"
    asked = {
        ByImages: {},
        ByLayers: {"feedback_parallel": "layer"},
        ByImagesOncePerBatch: {"feedback_sync": "batch"},
    }
    for division, options in asked.items():
        assert type(choose_strategy(RunOptions(**options), 2).division) is division
    assert type(choose_strategy(RunOptions(strategy="feedback-ddp"), 1).division) is ByImages


@pytest.mark.parametrize(
    "environ",
    [
        # A script of sbatch that starts Python without srun: the other tasks are not there.
        {name: value for name, value in SRUN.items() if name != "SLURM_STEP_NUM_NODES"},
        # On each machine as many, or nobody can say where each is.
        SRUN | {"SLURM_STEP_NUM_NODES": "3"},
        TORCHRUN | {"LOCAL_WORLD_SIZE": "4"},
    ],
)
def test_what_does_not_add_up_is_refused(launched, environ):
    launched(environ)
    with pytest.raises(UserError, match=f"The launcher started {environ.get('SLURM_NTASKS', '6')} processes"):
        choose()


def test_a_shell_of_one_task_is_told_how_to_train_on_several_devices(launched):
    launched({"SLURM_JOB_ID": "123", "SLURM_JOB_NAME": "mine", "SLURM_NTASKS": "1"})
    with pytest.raises(UserError, match=r"SLURM_NTASKS: expected 2, .* found 1 and no task of srun.*; unset SLURM_NT"):
        choose(devices="2")


@pytest.mark.slow
@pytest.mark.usefixtures("preloaded")
def test_torchrun_needs_no_numbers(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "dtp"]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    done = subprocess.run(
        [*command, "train", "--accelerator", "cpu", *SHORT, "--max-steps", "3", "--run-dir", "run"],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert '"world_size": 2' in (tmp_path / "run" / "summary.json").read_text()
