"""Feedback weights on their way to transposes of frozen forward weights."""

import pytest
import torch

from dtp.experiments.theory.options import TransposeOptions
from dtp.experiments.theory.transpose import draw, measure, table
from tests.experiments.theory.studies import run

SIZES = {"seeds": [0], "channels": [4, 6], "image_shape": [2, 8, 8], "batch_size": 24, "noise": [0.1]}


def last(values, layer, routing, kind):
    """The last measurement of the first seed; ``layer`` is a word of its title."""
    return next(found for title, found in values["layers"].items() if layer in title)[routing][kind][0][-1]


def test_angles_fall_to_the_transpose_where_maxima_are_fixed_and_not_where_they_move():
    values = measure(TransposeOptions(**SIZES, iterations=400, points=4))
    assert values["iterations"] == [0, 100, 200, 300, 400]
    for layer in ("convolution", "linear"):
        series = next(found for title, found in values["layers"].items() if layer in title)["fixed"]
        assert series["angle"][0][0] > 60 and series["distance"][0][0] > 0.9
        assert series["angle"][0][-1] < 12 and series["distance"][0][-1] < 0.25
    assert last(values, "convolution", "noisy", "angle") > 2 * last(values, "convolution", "fixed", "angle")
    # A linear layer has no maxima, and both have the same weights and noise.
    routings = next(found for title, found in values["layers"].items() if "linear" in title)
    assert routings["noisy"] == routings["fixed"]


def test_the_literal_loss_and_its_reduced_form_go_the_same_way():
    found = [measure(TransposeOptions(**SIZES, iterations=40, engine=engine)) for engine in ("literal", "reduced")]
    for title, routings in found[0]["layers"].items():
        for routing, kinds in routings.items():
            for kind, series in kinds.items():
                other = found[1]["layers"][title][routing][kind]
                assert torch.tensor(series).sub(torch.tensor(other)).abs().max() < 1e-2


def test_how_often_is_measured_changes_nothing():
    few, many = (measure(TransposeOptions(**SIZES, iterations=30, points=points)) for points in (3, 30))
    assert many["iterations"][::10] == few["iterations"] == [0, 10, 20, 30]
    for title, routings in few["layers"].items():
        for routing, kinds in routings.items():
            assert many["layers"][title][routing]["angle"][0][::10] == pytest.approx(kinds["angle"][0], abs=1e-2)


def test_the_expected_curve_is_the_sampled_one_without_what_noise_adds():
    values = measure(TransposeOptions(**{**SIZES, "batch_size": 240}, iterations=200, points=4, drop=1))
    for title, routings in values["layers"].items():
        assert list(routings) == ["noisy", "fixed", "expected"]
        for kind, most in (("angle", 3.0), ("distance", 0.05)):
            (sampled,), (expected,) = (routings[name][kind] for name in ("fixed", "expected"))
            assert sampled[0] == expected[0] and sampled == pytest.approx(expected, abs=most)
            assert expected[-1] < (0.7 if "linear" in title else 1.0) * sampled[-1]


def test_a_measurement_without_the_expected_curve_is_still_shown(tmp_path):
    values = measure(TransposeOptions(**SIZES, iterations=4, points=2))
    assert table(values).count("expected") == 4
    for routings in values["layers"].values():
        del routings["expected"]
    assert "expected" not in table(values)
    draw(values, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").exists()


def test_lower_rates_at_the_end_take_away_what_noise_leaves():
    angles = {}
    for drop in (0.5, 1.0):
        o = TransposeOptions(**{**SIZES, "noise": [0.1]}, feedback_lr=[0.3], iterations=300, points=2, drop=drop)
        angles[drop] = last(measure(o), "linear", "fixed", "angle")
    assert angles[0.5] < 0.6 * angles[1.0]


def test_a_batch_of_digits(tmp_path):
    record = run(tmp_path, "transpose", *"--data digits --seeds 3 --iterations 20 --channels 3 4".split())
    assert record["values"]["iterations"][-1] == 20
