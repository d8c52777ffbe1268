"""Correlation of GAIT-prop's updates with backprop's."""

import pytest
import torch

from dtp.experiments.theory.gait import _arrived, _correlation, _depart, measure
from dtp.experiments.theory.options import GaitOptions
from tests.experiments.theory.studies import SMALL, run


@pytest.fixture(scope="module")
def values():
    return measure(GaitOptions(seeds=[0, 1], depth=5, width=20, batch_size=16, steps=[1e-7, 0.1], departures=[0, 0.1]))


def test_normalised_targets_with_short_steps_are_backprop_in_orthogonal_networks(values):
    for activation in ("leaky-relu", "sl-relu"):
        for layers in values["steps"][f"{activation}, float64"]["1e-07"]:
            assert len(layers) == 6 and min(layers) > 0.9999


def test_original_targets_do_not_arrive_far_below_the_output(values):
    for layers in _arrived(values["targets"]["original, leaky-relu, float32"]):
        assert min(layers[-2:]) > 0.99 and max(layers[:2]) < 0.5
    # In double precision they come further.
    for layers in _arrived(values["targets"]["original, leaky-relu, float64"]):
        assert min(layers[1:]) > 0.99


def test_long_steps_cross_kinks_of_the_leaky_relu_but_not_of_the_smooth_one(values):
    kinked, smooth = (values["steps"][f"{name}, float64"]["0.1"] for name in ("leaky-relu", "sl-relu"))
    assert max(min(layers) for layers in kinked) < 0.99 < 0.999 < min(min(layers) for layers in smooth)


def test_short_steps_are_lost_in_single_precision(values):
    single, double = (values["steps"][f"sl-relu, {name}"]["1e-07"] for name in ("float32", "float64"))
    assert max(layers[0] for layers in _arrived(single)) < 0.9 < 0.9999 < min(layers[0] for layers in double)


def test_it_is_not_backprop_where_weights_are_not_orthogonal(values):
    for found in values["departures"].values():
        assert all(min(layers) > 0.9999 for layers in found["0"])
        assert all(0.7 < min(layers) < 0.99 for layers in found["0.1"])


def test_the_departure_has_the_size_asked_for():
    weight = torch.linalg.qr(torch.randn(30, 30, dtype=torch.float64)).Q.float().double()
    before = weight.clone()
    _depart(weight, 0.0)
    identity = torch.eye(30, dtype=torch.float64)
    assert (weight.T @ weight - identity).abs().max() < 1e-14 < (before.T @ before - identity).abs().max()
    orthogonal = weight.clone()
    _depart(weight, 0.2)
    assert ((weight - orthogonal).norm() / orthogonal.norm()).item() == pytest.approx(0.2)


def test_correlation_is_pearsons_and_no_number_where_there_is_no_update():
    a, b = torch.randn(4, 5), torch.randn(4, 5)
    expected = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()
    assert _correlation(a, b) == pytest.approx(expected, abs=1e-6)
    assert _correlation(a, 3 * a + 2) == pytest.approx(1)
    assert _correlation(torch.zeros(4, 5), b) is None


def test_a_measurement_of_orthogonal_weights_alone_is_drawn(tmp_path):
    # Its one departure, 0, has no place on the logarithmic axis.
    record = run(tmp_path, "gait", *SMALL["gait"].split(), "--departures", "0")
    assert list(record["values"]["departures"]["sl-relu"]) == ["0"]
    assert (tmp_path / "gait.png").is_file()
