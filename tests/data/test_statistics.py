import json

import numpy as np
import pytest

from dtp.data.options import DataOptions
from dtp.data.small import Digits
from dtp.data.statistics import STATISTICS, Statistics, cached_statistics, compute_statistics, used_statistics


def test_statistics_that_cannot_be_stored_are_used(tmp_path):
    (tmp_path / "file").touch()
    own = Statistics((0.5,), (0.25,))
    assert cached_statistics(tmp_path / "file" / "statistics.json", "key", 1, lambda: own) == own


def test_computed_statistics_are_numpys():
    images = np.random.default_rng(0).integers(0, 256, (50, 3, 4, 4), dtype=np.uint8)
    found = compute_statistics([images[:20], images[20:]])
    assert np.allclose(found.mean, (images / 255).mean((0, 2, 3)), atol=1e-12)
    assert np.allclose(found.std, (images / 255).std((0, 2, 3)), atol=1e-12)


def test_a_constant_channel_can_be_divided_by_and_is_looked_at_once(tmp_path):
    own = compute_statistics([np.zeros((2, 1, 4, 4), dtype=np.uint8)])
    assert own.std == (1 / 255,)
    for compute in (lambda: own, None):
        assert cached_statistics(tmp_path / "statistics.json", "key", 1, compute) == own


def test_the_table_holds_the_statistics_of_digits():
    computed = compute_statistics([Digits(DataOptions()).load_train()[0]])
    assert np.allclose(computed.mean, STATISTICS["digits"].mean, atol=5e-5)
    assert np.allclose(computed.std, STATISTICS["digits"].std, atol=5e-5)


def test_normalisation_modes():
    own = Statistics((0.1, 0.3), (0.2, 0.1))
    assert used_statistics(own, "standard") == own
    assert used_statistics(own, "std3x").mean == (0.1, 0.3)
    assert used_statistics(own, "std3x").std == pytest.approx((0.6, 0.3))
    assert used_statistics(own, "meanstd05") == Statistics((0.5, 0.5), (0.5, 0.5))
    assert used_statistics(own, "unit") == Statistics((0.0, 0.0), (1.0, 1.0))


def test_std3x_on_cifar10_is_that_of_the_published_runs():
    used = used_statistics(STATISTICS["cifar10"], "std3x", "cifar10")
    assert used.mean == (0.4914, 0.4822, 0.4465)
    assert used.std == pytest.approx((0.6069, 0.5982, 0.6030))


def test_cached_statistics_are_computed_once_per_key(tmp_path):
    path, calls = tmp_path / "statistics.json", []

    def compute():
        calls.append(1)
        return Statistics((0.1,), (0.2 + len(calls) / 10,))

    assert cached_statistics(path, "a", 1, compute) == cached_statistics(path, "a", 1, compute)
    assert len(calls) == 1
    assert cached_statistics(path, "b", 1, compute).std == (0.4,)
    assert list(json.loads(path.read_text())) == ["b"]
    path.write_text("{broken")
    assert cached_statistics(path, "b", 1, compute).std == (0.5,)
    assert [file.name for file in tmp_path.iterdir()] == ["statistics.json"]


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ([0.5], [0.5]),
        ([0.5] * 3, [0.5] * 2),
        ([0.5] * 2, [0.5] * 3),
        ([-0.1] * 3, [0.5] * 3),
        ([1.1] * 3, [0.5] * 3),
        ([0.5] * 3, [0.0] * 3),
        ([0.5] * 3, [1 / 256] * 3),
        ([0.5, float("nan"), 0.5], [0.5] * 3),
        ([0.5] * 3, [0.5, float("inf"), 0.5]),
        (["0.5"] * 3, [0.5] * 3),
        (0.5, 0.5),
    ],
)
def test_stored_statistics_that_no_images_have_are_computed_again(tmp_path, mean, std):
    path, own = tmp_path / "statistics.json", Statistics((0.1,) * 3, (0.2,) * 3)
    path.write_text(json.dumps({"key": {"mean": mean, "std": std}}))
    assert cached_statistics(path, "key", 3, lambda: own) == own
    assert json.loads(path.read_text()) == {"key": {"mean": [0.1] * 3, "std": [0.2] * 3}}
