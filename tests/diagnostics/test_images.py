"""Pictures of what a network has learned: pixel for pixel, and only where there is something to show."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dtp.cli.train import main
from dtp.diagnostics.images import draw_filters, draw_reconstructions, draw_rows, first_filters
from dtp.models import MLP, LeNet, LocallyConnected, as_network
from dtp.models.options import LeNetOptions, LocallyConnectedOptions, MLPOptions

pytestmark = pytest.mark.drawn

# Side of a pixel of 12 images of 8x8 with a gap of 1, and where the picture begins.
SIDE, LEFT, TOP = 7, 12, 40


def pixels(path):
    picture = Image.open(path)
    assert picture.mode == "P" and path.stat().st_size < 120_000
    return np.asarray(picture.convert("RGB")) / 255


def cell(picture, row, column, channel=0, size=8, side=SIDE):
    """Image in a place of the picture, one value per pixel of it."""
    top, left = TOP + row * (size + 1) * side, LEFT + column * (size + 1) * side
    part = picture[top : top + size * side, left : left + size * side, channel]
    blocks = part.reshape(size, side, size, side).transpose(0, 2, 1, 3).reshape(size, size, -1)
    assert (blocks.max(2) - blocks.min(2)).max() == 0, "a pixel is not a square of one colour"
    return blocks[:, :, 0]


def test_each_image_is_above_its_own_reconstruction(tmp_path):
    images = torch.rand(20, 1, 8, 8)
    draw_reconstructions(images, 1 - images, tmp_path / "figure.png")
    picture = pixels(tmp_path / "figure.png")
    for i in (0, 5, 11, 12, 19):
        row, column = 2 * (i // 12), i % 12
        above, below = cell(picture, row, column), cell(picture, row + 1, column)
        np.testing.assert_allclose(above, images[i, 0].numpy(), atol=0.02)
        np.testing.assert_allclose(below, 1 - images[i, 0].numpy(), atol=0.02)
    # After the last image there is nothing.
    assert cell(picture, 2, 8).min() == 1 and cell(picture, 3, 11).min() == 1


def test_rows_have_names_beside_them(tmp_path):
    rows = {"first": torch.zeros(12, 1, 8, 8), "second": torch.ones(12, 1, 8, 8)}
    draw_rows(rows, "Rows", tmp_path / "figure.png")
    picture = pixels(tmp_path / "figure.png")
    names = picture[TOP:, :150]
    first, second = names[: len(names) // 2], names[len(names) // 2 :]
    assert first.min() < 0.5 and second.min() < 0.5
    images = picture[:, 140:]
    assert cell(images, 0, 11).max() == 0 and cell(images, 1, 0).min() == 1


def test_colours_stay_colours(tmp_path):
    images = torch.zeros(12, 3, 8, 8)
    images[:, 1] = 1
    draw_reconstructions(images, images, tmp_path / "figure.png")
    assert [cell(pixels(tmp_path / "figure.png"), 0, 3, channel).mean() for channel in range(3)] == [0, 1, 0]


def test_weights_of_either_sign_are_darker_and_lighter_than_grey(tmp_path):
    filters = torch.zeros(144, 1, 8, 8)
    filters[:, 0, 0, 0], filters[:, 0, 7, 7] = 3.0, -1.5
    draw_filters(filters, "Weights", tmp_path / "figure.png", most=144)
    first = cell(pixels(tmp_path / "figure.png"), 0, 0)
    assert first[0, 0] == 1 and first[7, 7] == pytest.approx(0.25, abs=0.02)
    assert first[3, 3] == pytest.approx(0.5, abs=0.02)


def test_prototypes_share_one_scale(tmp_path):
    filters = torch.stack([torch.full((1, 8, 8), value) for value in torch.linspace(-1, 1, 144)])
    draw_filters(filters, "Prototypes", tmp_path / "figure.png", signed=False, most=144)
    picture = pixels(tmp_path / "figure.png")
    assert cell(picture, 0, 0).mean() == 0 and cell(picture, 11, 11).mean() == 1


@pytest.mark.parametrize("count", [1, 2, 5, 30])
def test_any_number_of_images_has_a_picture(count, tmp_path):
    draw_filters(torch.randn(count, 1, 28, 28), "Weights", tmp_path / "filters.png")
    draw_reconstructions(torch.rand(count, 1, 28, 28), torch.rand(count, 1, 28, 28), tmp_path / "reconstructions.png")
    for name in ("filters.png", "reconstructions.png"):
        assert pixels(tmp_path / name).size


def test_filters_are_those_of_a_first_layer_that_sees_images():
    mlp = MLP(MLPOptions(widths=[5]), (3, 4, 6), 2)
    assert torch.equal(first_filters(mlp).flatten(1), mlp[1][1].weight)
    assert first_filters(mlp).shape == (5, 3, 4, 6)
    assert first_filters(LeNet(LeNetOptions(), (1, 28, 28), 10)).shape == (32, 1, 5, 5)
    # Components, and weights that differ from place to place, are no images.
    assert first_filters(MLP(MLPOptions(), (100, 1, 1), 2)) is None
    assert first_filters(LocallyConnected(LocallyConnectedOptions(channels=[2, 3]), (1, 16, 16), 2)) is None


def test_weights_of_a_linear_layer_on_something_else_than_all_pixels_are_no_images():
    pooled = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 10))
    assert first_filters(as_network(pooled, (1, 8, 8))) is None


SHORT = "--data digits --batch-size 32 --max-epochs 1 --limit-train-batches 2 --diagnostics-every 0".split()
RUNS = {
    "--algo bp --task autoencoder --model mlp --widths 8": {"reconstructions.png", "filters.png"},
    "--algo dtp-dae --model tied-autoencoder --hidden 8": {"reconstructions.png", "filters.png"},
    "--algo competitive --model mlp --widths": {"filters.png"},
    "--algo delta --model mlp --widths": {"filters.png"},
    "--algo bp --model mlp --widths 8": set(),
    "--algo competitive --model mlp --widths --pca 9": set(),
}


@pytest.mark.parametrize("words", RUNS)
def test_a_run_draws_what_there_is_to_show(words, here):
    assert main([*words.split(), *SHORT, "--run-dir", "run"]) == 0
    drawn = {path.name for path in (here / "run").glob("*.png")} - {"training.png"}
    assert drawn == RUNS[words]


def test_a_picture_that_cannot_be_written_costs_no_result(here, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("no room")

    monkeypatch.setattr("dtp.diagnostics.images.save_figure", full)
    with pytest.warns(UserWarning, match="No pictures in .*no room"):
        assert main([*"--algo delta --model mlp --widths".split(), *SHORT, "--run-dir", "run"]) == 0
    assert (here / "run" / "summary.json").is_file()
