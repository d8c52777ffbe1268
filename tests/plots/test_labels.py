"""Names of a figure are moved apart."""

import pytest

from dtp.plots.labels import apart


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([0.1, 0.5, 0.9], [0.1, 0.5, 0.9]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.5, 0.5, 0.58], [0.42667, 0.52667, 0.62667]),
        ([], []),
    ],
)
def test_names_are_moved_apart_as_little_as_it_takes(heights, expected):
    assert apart(heights, 0.1) == pytest.approx(expected, abs=1e-4)
