"""What all tests share: determinism, small networks and batches, and no traces left behind."""

import gc
import os
import shutil
import signal

import pytest
import torch

from dtp.models import MLP, LeNet, Network
from dtp.models.options import LeNetOptions, MLPOptions
from dtp.system.signals import STOP_SIGNALS, stop_request
from tests import preloaded as preloaded_pythons
from tests.cheap import leave_undrawn, make_runs_cheap

# For this process, and for the processes that tests start: the tensors of the tests are small, and threads
# that wait for each other on a busy machine would cost far more than they bring.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
make_runs_cheap()
if not torch.cuda.is_available():
    # The first backward pass of a process counts the devices, and starts threads for them; then no rank can be forked
    # of it. A fake mode pretends that there is a GPU from then on, and must not come before it.
    torch.zeros((), requires_grad=True).backward()


def pytest_configure(config):
    # Workers take tests from each other, so that none ends long after the rest.
    if config.getoption("dist", "no") == "load":
        config.option.dist = "worksteal"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """One more than cores, for some tests wait: for SLURM, or for silence that lasts."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items):
    missing = {"gpu": None if torch.cuda.is_available() else "no CUDA device", "slurm": _missing_for_slurm()}
    for item in items:
        for marker, reason in missing.items():
            if reason and marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


def _missing_for_slurm() -> str | None:
    """Why no cluster can be started here, if so."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    if not all(shutil.which(program, path=path) for program in ("munged", "slurmctld", "slurmd", "sbatch")):
        return "no SLURM: slurm/local_cluster.sh install"
    return None if os.geteuid() == 0 else "starting a SLURM cluster needs root"


@pytest.fixture(autouse=True)
def isolation(monkeypatch):
    """Same random numbers for every test; signal handlers and the environment as they were."""
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for name in [name for name in os.environ if name.startswith(("WANDB_", "SLURM_", "DTP_"))]:
        monkeypatch.delenv(name)
    # As torch.manual_seed, which first formats the stack for each kind of GPU that is not there.
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Runs here and in preloaded children leave an empty picture.

    Those of tests marked ``drawn`` draw, and so do children of fixtures for a whole module, which come before this.
    """
    if request.node.get_closest_marker("drawn") is None:
        leave_undrawn(monkeypatch.setattr)
        monkeypatch.setattr(preloaded_pythons, "drawn", False)


@pytest.fixture
def preloaded():
    """Other Pythons that the test starts have torch, Lightning and dtp imported already."""
    with preloaded_pythons.children():
        yield


@pytest.fixture
def mlp() -> Network:
    return MLP(MLPOptions(widths=[12, 11, 10]), (1, 4, 4), 5)


@pytest.fixture
def lenet() -> Network:
    return LeNet(LeNetOptions(channels=[3, 4], hidden=8), (2, 12, 12), 5)


@pytest.fixture(params=["mlp", "lenet"])
def network(request) -> Network:
    return request.getfixturevalue(request.param)


@pytest.fixture
def batch(network) -> tuple[torch.Tensor, torch.Tensor]:
    return make_batch(network)


def make_batch(network: Network, size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images for a network, in its dtype, and the goals of its task: labels, usually."""
    dtype = next(network.parameters()).dtype
    x, y = torch.randn(size, *network.input_shape, dtype=dtype), torch.randint(network.num_classes, (size,))
    return x, network.task.goal(x, y)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder, and no stop asked for by an earlier run in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stop_request, "signum", None)
    return tmp_path
