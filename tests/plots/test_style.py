"""What all figures share."""

import subprocess
import sys

import pytest
from PIL import Image

from dtp.plots.style import (
    color,
    counted,
    degrees,
    finish,
    layer_color,
    legend_beside,
    new_figure,
    plot_line,
    plot_spread,
    save_figure,
)


def test_a_figure_is_a_small_png_of_its_size_in_at_most_256_colours(tmp_path):
    figure, axes = new_figure(2, 3, (4.0, 2.0))
    assert len(axes) == 6
    for i, panel in enumerate(axes):
        plot_spread(panel, range(50), [x * i for x in range(50)], [1.0] * 50, color(i), f"{i}")
        finish(panel)
    save_figure(figure, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (1800, 600) and image.mode == "P"
    assert (tmp_path / "a.png").stat().st_size < 120_000


def test_panels_come_row_by_row():
    figure, axes = new_figure(2, 2)
    figure.canvas.draw()
    corners = [(panel.get_position().x0, -panel.get_position().y0) for panel in axes]
    assert corners == sorted(corners, key=lambda corner: (corner[1], corner[0]))


def test_a_figure_that_cannot_be_written_leaves_the_older_one(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def full(self, file, **options):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="disk full"):
        save_figure(new_figure(1, 1)[0], path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_a_band_is_one_deviation_to_either_side():
    _, (panel,) = new_figure(1, 1)
    plot_spread(panel, [0, 1, 2], [10, 20, 30], [1, 2, 3], "red", "a")
    (band,) = panel.collections
    heights = {tuple(point) for point in band.get_paths()[0].vertices.tolist()}
    assert {(0, 9), (0, 11), (1, 18), (1, 22), (2, 27), (2, 33)} <= heights
    assert panel.lines[0].get_label() == "a"


def test_few_values_are_shown_as_points_too():
    _, (panel,) = new_figure(1, 1)
    plot_line(panel, [1], [2], "red", None)
    plot_line(panel, range(100), range(100), "red", None)
    plot_line(panel, range(5), range(5), "red", None, marker="x", linestyle="--")
    assert [line.get_marker() for line in panel.lines] == ["o", "None", "x"]
    assert panel.lines[2].get_linestyle() == "--"


@pytest.mark.parametrize(
    "highest, top", [(0, 10), (9, 10), (9.8, 30), (50, 60), (90, 105), (110, 125), (120, 185), (180, 185)]
)
def test_angles_have_room_and_round_ticks(highest, top):
    _, (panel,) = new_figure(1, 1)
    degrees(panel, highest)
    low, high = panel.get_ylim()
    assert low < 0 and high == top
    ticks = [tick for tick in panel.get_yticks() if 0 <= tick <= high]
    assert 0 in ticks and 4 <= len(ticks) <= 8 and (top < 105 or 90 in ticks)


def test_counts_begin_at_zero_and_have_few_whole_ticks():
    figure, (panel,) = new_figure(1, 1)
    plot_line(panel, [3000, 200_000], [1, 2], "red", "a")
    counted(panel, "batches")
    figure.canvas.draw()
    assert panel.get_xlim()[0] == 0 and panel.get_xlabel() == "batches"
    labels = [label.get_text() for label in panel.get_xticklabels()]
    assert len(labels) <= 6 and "0" in labels and all(label.endswith(",000") for label in labels[1:])


def test_colours_differ():
    assert len({color(i) for i in range(10)}) == 10 and color(10) == color(0)
    assert len({layer_color(n, 7) for n in range(1, 8)}) == 7
    assert layer_color(1, 1) == layer_color(1, 5)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_the_input_has_a_colour_that_no_layer_has(depth):
    from matplotlib.colors import to_rgba

    assert len({to_rgba(layer_color(n, depth)) for n in range(depth + 1)}) == depth + 1


def test_a_legend_beside_hides_nothing():
    figure, (panel,) = new_figure(1, 1)
    plot_line(panel, [0, 1], [0, 1], "red", "a long name of a line")
    legend_beside(panel, "title")
    figure.canvas.draw()
    assert not panel.get_legend().get_window_extent().overlaps(panel.get_window_extent())
    assert panel.get_legend().get_window_extent().x1 <= figure.bbox.x1


def test_importing_the_module_imports_neither_matplotlib_nor_torch():
    code = """
import sys
import dtp.plots.style
assert not {"matplotlib", "numpy", "torch"} & set(sys.modules)
dtp.plots.style.new_figure(1, 1)
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
