"""Shape inference without data."""

import pytest
import torch
from torch import nn

from dtp.models.shapes import SHAPE_KEEPING, output_shape


def hooked(module, then):
    """A module whose outputs a hook of the user's changes."""
    module.register_forward_hook(lambda module, inputs, output: then(output))
    return module


@pytest.mark.parametrize(
    ("module", "in_shape"),
    [
        (nn.Linear(5, 3), (5,)),
        (nn.Conv2d(2, 3, (3, 2), stride=2, padding=1), (2, 9, 6)),
        (nn.MaxPool2d(3, 2, 1, ceil_mode=True), (4, 7, 10)),
        (nn.AdaptiveAvgPool2d((3, 2)), (4, 7, 10)),
        (nn.Sequential(nn.Conv2d(2, 3, 3).double(), nn.Flatten(2)), (2, 9, 6)),
        (nn.BatchNorm1d(4), (4,)),
        *((kind(), (4, 3)) for kind in SHAPE_KEEPING),
        (
            nn.Sequential(nn.Conv2d(2, 3, 3), nn.ELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Tanh()),
            (2, 9, 6),
        ),
        (nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(5, 3)).double(), (5,)),
        (nn.Sequential(nn.ELU(), nn.Identity()), (2, 9, 6)),
        (nn.Sequential(), (2, 9, 6)),
        (hooked(nn.ELU(), nn.Flatten()), (4, 3)),
        (nn.Sequential(hooked(nn.ELU(), nn.Flatten()), nn.Linear(12, 2)), (4, 3)),
        (hooked(nn.Sequential(nn.ELU()), nn.Flatten()), (4, 3)),
    ],
    ids=str,
)
def test_output_shape_is_that_of_a_real_pass(module, in_shape):
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    expected = module(torch.randn(2, *in_shape, dtype=dtype)).shape[1:]
    assert output_shape(module, in_shape) == expected


def test_module_and_random_state_stay_as_they_are():
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout())
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.get_rng_state()
    output_shape(module, (2, 5, 5))
    assert torch.equal(torch.get_rng_state(), state)
    assert module.training
    for name, tensor in module.state_dict().items():
        assert tensor.device.type == "cpu" and torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("module", "in_shape"),
    [
        (nn.Linear(5, 3), (6,)),
        (nn.Conv2d(2, 3, 3), (3, 9, 6)),
        (nn.Conv2d(2, 3, 3), (2, 2, 6)),
        (nn.Conv2d(2, 3, 3), (18,)),
        (nn.MaxPool2d(3), (4, 2, 2)),
        (nn.AvgPool2d(3), (4, 2, 2)),
        (nn.Sequential(nn.Conv2d(2, 3, 3), nn.ELU(), nn.MaxPool2d(2)), (2, 3, 3)),
        (nn.BatchNorm1d(4), (5,)),
    ],
    ids=str,
)
def test_shape_that_does_not_fit_is_an_error(module, in_shape):
    with pytest.raises(RuntimeError):
        output_shape(module, in_shape)
