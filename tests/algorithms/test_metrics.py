"""Running means of scalars, wherever those lie."""

import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dtp.algorithms.metrics import RunningMeans, as_vector


def test_means_are_weighted_by_the_images():
    means = RunningMeans()
    means.add(*as_vector({"loss": torch.tensor(1.0), "steps": torch.tensor(4)}), weight=1)
    means.add(*as_vector({"loss": torch.tensor(4.0)}), weight=2)
    assert means.compute() == {"loss": 3.0, "steps": 4.0}


def test_means_go_on_from_their_state_on_as_many_ranks_and_on_others():
    def means(*values):
        found = RunningMeans()
        for value in values:
            found.add(("loss", "steps"), torch.tensor([value, 0.1], dtype=torch.float64), weight=3)
            found.add(("other",), torch.tensor([1.0], dtype=torch.float64))
        return found

    saved, cpu = means(0.1, 0.7), torch.device("cpu")
    for state in (saved.state_dict(), json.loads(json.dumps(saved.state_dict()))):
        again = means(5.0)
        again.load_state_dict([state], cpu)
        again.add(("loss", "steps"), torch.tensor([0.3, 0.1], dtype=torch.float64), weight=3)
        assert again.compute() == {**means(0.1, 0.7, 0.3).compute(), "other": 1.0}
    again.load_state_dict([means(1.0).state_dict(), means(2.0).state_dict()], cpu, scale=2.0)
    again.add(("loss", "steps"), torch.tensor([3.0, 0.1], dtype=torch.float64), weight=6)
    assert again.compute()["loss"] == pytest.approx(2.25)


class JoinedOnOneDevice(TorchDispatchMode):
    """Raises where scalars of two devices are joined, as torch does, and fake tensors alone do not."""

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        joined = arguments[0] if function.overloadpacket.__name__ in ("stack", "cat") else []
        if len({tensor.device.type for tensor in joined}) > 1:
            raise RuntimeError("Expected all tensors to be on the same device")
        return function(*arguments, **(named or {}))


@pytest.mark.parametrize("first", ["cpu", "cuda"])
def test_numbers_of_the_host_and_of_a_gpu_are_read_together(first):
    other = {"cpu": "cuda", "cuda": "cpu"}[first]
    with FakeTensorMode(), JoinedOnOneDevice():
        means = RunningMeans()
        for _ in range(2):
            scalars = {"one": torch.ones((), device=first), "other": torch.ones((), device=other)}
            names, values = as_vector(scalars)
            means.add(names, values, weight=3)
    assert names == ("one", "other") and values.device.type == "cuda" and values.shape == (2,)
