"""The figure of a run."""

import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from PIL import Image

from dtp.plots.run import draw_metrics
from dtp.run.reading import read_metrics

HEADER = "epoch,step,train/loss,val/accuracy,update_angle/layer1,feedback_angle/layer2"


def write(folder: Path, *rows: str, header: str = HEADER, end: str = "\n") -> Path:
    path = folder / "metrics.csv"
    path.write_text("\n".join([header, *rows]) + end)
    return path


def draw_run(metrics_csv: Path, figure: Path) -> bool:
    return draw_metrics(read_metrics(metrics_csv), figure)


@pytest.fixture
def drawn(monkeypatch):
    """Lists the axes of all figures that were drawn."""
    from matplotlib.figure import Figure

    axes = []
    draw = Figure.draw

    def recording(self, renderer):
        axes[:] = self.axes
        return draw(self, renderer)

    monkeypatch.setattr(Figure, "draw", recording)
    return axes


def lines(axes) -> dict[str, list[tuple[float, float]]]:
    """The labelled lines of a panel."""
    found = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}
    return {label: points for label, points in found.items() if not label.startswith("_")}


def test_a_long_run_of_many_layers_gives_a_small_png(tmp_path):
    kinds = ("update_angle", "feedback_angle")
    names = [f"{kind}/layer{n}" for kind in kinds for n in range(1, 31)]
    header = ",".join(["epoch", "step", "train/loss", "val/loss", "train/accuracy", *names])
    rows = [",".join(map(str, [i // 10, 50 * i, 0.1, 0.2, 0.9, *range(60)])) for i in range(1, 901)]
    figure = tmp_path / "training.png"
    assert draw_run(write(tmp_path, *rows, header=header), figure)
    assert figure.stat().st_size < 200_000
    with Image.open(figure) as image:
        assert image.format == "PNG"
        assert min(image.size) > 800


def test_there_are_panels_only_for_what_was_measured(tmp_path, drawn):
    metrics = write(tmp_path, "0,10,2.0,,,", "0,20,1.5,0.5,,")
    assert draw_run(metrics, tmp_path / "a.png")
    assert [axes.get_title(loc="left") for axes in drawn] == ["Accuracy", "Loss"]
    # Of any kind: it may be squared.
    assert drawn[1].get_ylabel() == "mean over images"


def test_empty_cells_and_numbers_that_are_not_finite_are_gaps(tmp_path, drawn):
    metrics = write(tmp_path, "0,10,nan,0.25,,", "0,20,,0.5,inf,", "0,30,,,,80.5")
    assert draw_run(metrics, tmp_path / "a.png")
    accuracy, feedback = drawn
    assert lines(accuracy) == {"validation": [(10, 25), (20, 50)]}
    assert lines(feedback) == {"2": [(30, 80.5)]}


def test_epoch_means_are_drawn_as_training_where_there_are_some(tmp_path, drawn):
    header = "epoch,step,train/loss,train/loss_epoch,val/loss"
    assert draw_run(write(tmp_path, "0,5,3,,", "0,10,2,2.5,2.25", header=header), tmp_path / "a.png")
    assert lines(drawn[0]) == {"training": [(10, 2.5)], "validation": [(10, 2.25)]}


def test_means_of_few_batches_stand_in_for_epoch_means(tmp_path, drawn):
    assert draw_run(write(tmp_path, "0,5,3,,,", "0,10,2,,,"), tmp_path / "a.png")
    assert lines(drawn[0]) == {"training": [(5, 3), (10, 2)]}


@pytest.mark.parametrize(
    "torn",
    ["0,30,1.0,0.7", "0,30,1.0,0.7,1,9", "0,3", ",", "0,30,1,\0\0"],
    ids=["short", "digits", "step", "comma", "nul"],
)
def test_a_torn_last_line_is_skipped(tmp_path, drawn, torn):
    metrics = write(tmp_path, "0,10,2.0,0.25,,", torn, end="")
    assert draw_run(metrics, tmp_path / "a.png")
    assert lines(drawn[0]) == {"validation": [(10, 25)]}
    assert lines(drawn[1]) == {"training": [(10, 2)]}


def test_a_torn_line_that_a_resumed_run_wrote_after_is_skipped(tmp_path, drawn):
    metrics = write(tmp_path, "0,10,2.0,,,", "0,20,1.", "0,30,1.0,,,")
    assert draw_run(metrics, tmp_path / "a.png")
    assert lines(drawn[0]) == {"training": [(10, 2), (30, 1)]}


def test_batches_that_a_resumed_run_repeated_are_drawn_once_and_in_order(tmp_path, drawn):
    metrics = write(tmp_path, "0,10,3,,,", "0,20,9,,,", "0,30,9,,,", "0,20,2,,,")
    assert draw_run(metrics, tmp_path / "a.png")
    assert lines(drawn[0]) == {"training": [(10, 3), (20, 2), (30, 9)]}


def test_a_layer_has_the_same_colour_in_both_panels_of_angles(tmp_path, drawn):
    header = "step,update_angle/layer1,update_angle/layer2,update_angle/layer10,feedback_angle/layer2"
    assert draw_run(write(tmp_path, "5,1,2,3,4", header=header), tmp_path / "a.png")
    colors = [{line.get_label(): line.get_color() for line in axes.lines} for axes in drawn]
    assert list(colors[0]) == ["1", "2", "10"]
    assert colors[0]["2"] == colors[1]["2"]
    assert len(set(colors[0].values())) == 3


def test_legends_titles_and_axes_of_four_panels_do_not_overlap(tmp_path, drawn):
    rows = [f"{i},{200_000 * i},{100 / i},{i / 9},{90 / i},{100 / i}" for i in range(1, 9)]
    assert draw_run(write(tmp_path, *rows), tmp_path / "a.png")
    figure = drawn[0].figure
    boxes = [axes.get_tightbbox() for axes in drawn]
    assert len(boxes) == 4
    for i, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:i])
    for axes in drawn:
        assert not axes.get_legend().get_window_extent().overlaps(axes.get_window_extent())
        labels = [label.get_window_extent() for label in axes.get_xticklabels()]
        assert not any(left.overlaps(right) for left, right in zip(labels, labels[1:], strict=False))


@pytest.mark.parametrize("rows", [[], ["0,10,,,,"], ["0,,2.0,,,"]], ids=["no rows", "no values", "no batch"])
def test_with_nothing_to_draw_an_old_figure_stays(tmp_path, rows):
    figure = tmp_path / "a.png"
    figure.write_bytes(b"old")
    assert not draw_run(write(tmp_path, *rows), figure)
    assert figure.read_bytes() == b"old"


@pytest.mark.parametrize("text", ["", "\n", "epoch,step"])
def test_an_empty_or_headless_file_is_nothing_to_draw(tmp_path, text):
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    assert not draw_run(path, tmp_path / "a.png")
    assert not draw_run(tmp_path / "missing.csv", tmp_path / "a.png")


def test_the_figure_is_replaced_in_one_step_and_leaves_no_other_file(tmp_path, monkeypatch):
    metrics, figure = write(tmp_path, "0,10,2.0,,,"), tmp_path / "a.png"
    figure.write_bytes(b"old")

    def full(self, path, **options):
        path.write_bytes(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(OSError, match="disk full"):
            draw_run(metrics, figure)
    assert figure.read_bytes() == b"old"
    assert draw_run(metrics, figure)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "metrics.csv"]


def test_drawing_leaves_matplotlibs_settings_and_backend(tmp_path):
    before = dict(matplotlib.rcParams)
    assert draw_run(write(tmp_path, "0,10,2.0,,,"), tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before


def test_importing_the_module_does_not_import_matplotlib_and_drawing_does_not_import_pyplot(tmp_path):
    metrics = write(tmp_path, "0,10,2.0,,,")
    code = f"""
import sys
from pathlib import Path
from dtp.plots.run import draw_metrics
from dtp.run.reading import read_metrics
assert not {{"matplotlib", "numpy", "torch"}} & set(sys.modules)
assert draw_metrics(read_metrics(Path({str(metrics)!r})), Path({str(tmp_path / "a.png")!r}))
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
