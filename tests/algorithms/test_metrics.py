"""Running means of scalars, wherever those lie."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dtp.algorithms.metrics import RunningMeans, as_vector


def test_means_are_weighted_by_the_images():
    means = RunningMeans()
    means.add(*as_vector({"loss": torch.tensor(1.0), "steps": torch.tensor(4)}), weight=1)
    means.add(*as_vector({"loss": torch.tensor(4.0)}), weight=2)
    assert means.compute() == {"loss": 3.0, "steps": 4.0}


@pytest.mark.parametrize("first", ["cpu", "cuda"])
def test_numbers_of_the_host_and_of_a_gpu_are_read_together(first):
    """Tensors that claim to be on a GPU do as such; their operations check devices as real ones do."""
    other = {"cpu": "cuda", "cuda": "cpu"}[first]
    with FakeTensorMode():
        means = RunningMeans()
        for _ in range(2):
            scalars = {"one": torch.ones((), device=first), "other": torch.ones((), device=other)}
            names, values = as_vector(scalars)
            means.add(names, values, weight=3)
    assert names == ("one", "other") and values.device.type == "cuda" and values.shape == (2,)
