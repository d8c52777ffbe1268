"""How many devices a run uses: those that it names, or those for which a launcher has started processes."""

import os
import subprocess
import sys

import pytest

from dtp.cli.config import RunOptions
from dtp.distributed.devices import choose_devices
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
