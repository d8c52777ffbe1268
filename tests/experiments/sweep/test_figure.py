"""Figures of sweeps: what is drawn where, looked at through matplotlib's own objects."""

import pytest
from PIL import Image

from dtp.errors import UserError
from dtp.experiments.sweep import figure as module
from dtp.experiments.sweep.figure import draw_sweep
from tests.experiments.sweep.helpers import TINY, made_up, sweep_of

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def drawn(here, monkeypatch):
    """Draws a sweep and returns the panels that are seen, and the figure."""
    figures = []
    save = module.save_figure
    monkeypatch.setattr(module, "save_figure", lambda figure, path: (figures.append(figure), save(figure, path)))

    def draw(sweep, jobs):
        assert draw_sweep(sweep, here / "out", jobs, "command") == here / "out" / "tiny.png"
        return [axes for axes in figures[-1].axes if axes.get_visible()], figures[-1]

    return draw


def filled(here, text=TINY, leave=()):
    """A sweep and its runs; accuracies grow with the place of the setting and with the seed."""
    sweep = sweep_of(here, text)
    jobs = sweep.jobs(here / "out")
    for place, point in enumerate(sweep.points):
        for seed in sweep.seeds:
            if (point.name, seed) in leave:
                continue
            last = 0.1 * place + 0.02 * seed
            series = {
                "val/accuracy": {10: last / 2, 20: last},
                "test/accuracy": {20: last},
                "train/loss": {20: 2 - last},
            }
            made_up(jobs[point.name, seed], series)
    return sweep, jobs


def lines(axes):
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}


def test_why_a_run_failed_is_no_formula(here, drawn):
    sweep, jobs = filled(here, leave=[("bp, widths 8", 0)])
    folder = jobs["bp, widths 8", 0].folder
    folder.mkdir(parents=True)
    why = "--data-dir $DATA_$SET: found no such folder."
    (folder / "failed.txt").write_text(why)
    _, figure = drawn(sweep, jobs)
    assert why in " ".join(figure.get_supxlabel().split())


def test_curves_have_a_panel_for_each_variant_and_a_line_for_each_value(here, drawn):
    panels, _ = drawn(*filled(here))
    dtp, bp = panels[:2]
    assert (dtp.get_title(loc="left"), bp.get_title(loc="left")) == ("dtp", "bp")
    assert dtp.get_xlabel() == "batches of the forward weights" and dtp.get_ylabel() == "validation accuracy (%)"
    # Per cent, the mean of two seeds; bp has twice the batches of the forward weights that the alternating dtp has.
    assert lines(bp)["8"] == [(10, pytest.approx(10.5)), (20, pytest.approx(21))]
    assert lines(dtp)["2 x 8"] == [(0, pytest.approx(5.5)), (10, pytest.approx(11))]
    assert dtp.get_ylim() == bp.get_ylim()
    assert len(dtp.collections) == 2, "a band of one deviation for each line"
    assert dtp.get_legend() is None and bp.get_legend().get_title().get_text() == "widths"


def test_values_lie_at_their_number_with_bars_of_a_deviation(here, drawn):
    panels, _ = drawn(*filled(here))
    axes = panels[2]
    assert axes.get_xlabel() == "hidden layers" and list(axes.get_xticks()) == [1, 2]
    bars = {container.get_label(): container for container in axes.containers}
    x, y = bars["bp"].lines[0].get_data()
    assert list(x) == [1, 2] and list(y) == pytest.approx([21, 31])
    (segment, _) = bars["bp"].lines[2][0].get_segments()
    assert segment[:, 1] == pytest.approx([21 - 2**0.5, 21 + 2**0.5])


def test_numbers_far_apart_have_a_logarithmic_axis(here, drawn):
    text = "base: {max_epochs: 2, algo: bp, lr_schedule: constant}\ngrid: {lr: [0.001, 0.1]}\n"
    sweep, jobs = filled(here, text + "figure: {kind: values, x: lr, metric: test/accuracy}\n")
    (axes,), _ = drawn(sweep, jobs)
    assert axes.get_xscale() == "log" and [t.get_text() for t in axes.get_xticklabels()] == ["0.001", "0.1"]


def test_final_values_are_rows_with_every_seed(here, drawn):
    panels, _ = drawn(*filled(here, leave={("bp, widths 8", 0), ("bp, widths 8", 1)}))
    axes = panels[3]
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == ["dtp, widths 8", "dtp, widths 2 x 8", "bp, widths 8", "bp, widths 2 x 8"]
    # The first on top.
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    seeds = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "None"]
    assert list(seeds[0].get_xdata()) == pytest.approx([0, 2])
    assert [text.get_text() for text in axes.texts] == ["no result"]


def test_what_is_missing_is_said_below(here, drawn):
    leave = {("bp, widths 8", 1), ("dtp, widths 8", 0)}
    sweep, jobs = filled(here, leave=leave)
    failed = jobs["bp, widths 8", 1]
    failed.folder.mkdir(parents=True)
    (failed.folder / "failed.txt").write_text("Training diverged: the loss is nan.\n")
    panels, figure = drawn(sweep, jobs)
    note = " ".join(figure.get_supxlabel().split())
    assert note.startswith("Mean and standard deviation over 1 to 2 seeds. 2 of 8 runs have no result:")
    assert "dtp, widths 8 seed 0 (not begun)" in note and "(failed: Training diverged: the loss is nan.)" in note
    # What there is of the setting is drawn.
    assert lines(panels[1])["8"][-1] == (20, pytest.approx(20))


def test_many_missing_are_counted(here, drawn):
    sweep, jobs = filled(
        here, leave={(n, s) for n in ("bp, widths 8", "bp, widths 2 x 8", "dtp, widths 8") for s in (0, 1)}
    )
    _, figure = drawn(sweep, jobs)
    assert "and 2 more, see results.md" in " ".join(figure.get_supxlabel().split())


def test_the_file_is_small_and_replaces_its_own_alone(here, drawn):
    sweep, jobs = filled(here)
    drawn(sweep, jobs)
    png = here / "out" / "tiny.png"
    with Image.open(png) as image:
        assert image.mode == "P" and png.stat().st_size < 120_000
    others = {path: path.read_bytes() for path in (here / "out").rglob("seed*/*") if path.is_file()}
    png.write_bytes(b"old")
    drawn(sweep, jobs)
    with Image.open(png) as image:
        assert image.size[0] > 500
    assert all(path.read_bytes() == content for path, content in others.items())


def test_without_a_finished_run_there_is_no_figure(here):
    sweep = sweep_of(here)
    assert draw_sweep(sweep, here / "out", sweep.jobs(here / "out"), "c") is None
    (here / "out").mkdir()
    assert draw_sweep(sweep, here / "out", sweep.jobs(here / "out"), "c") is None
    assert [path.name for path in (here / "out").iterdir()] == [".draw.lock"]


def test_metrics_without_values_have_no_panel(here, drawn):
    text = "base: {max_epochs: 2, algo: bp}\nfigure: {metric: [train/loss, val/top5]}\n"
    panels, _ = drawn(*filled(here, text))
    assert [axes.get_ylabel() for axes in panels] == ["training loss"]


def test_a_figure_of_nothing_that_was_measured_is_a_mistake(here):
    sweep, jobs = filled(here, "base: {max_epochs: 2, algo: bp}\nfigure: {metric: val/acuracy}\n")
    with pytest.raises(UserError, match="tiny: figure, metric: expected columns of metrics.csv .* found val/acuracy"):
        draw_sweep(sweep, here / "out", jobs, "c")
    # The numbers are there all the same.
    assert (here / "out" / "results.json").is_file() and not (here / "out" / "tiny.png").exists()


def test_rows_in_the_colours_of_the_lines_are_their_legend(here, drawn):
    text = "base: {max_epochs: 2, algo: bp, lr_schedule: constant}\ngrid: {lr: [0.1, 0.2, 0.5]}\n"
    text += "figure: [{kind: curves}, {kind: final, metric: test/accuracy}]\n"
    (curves, final), _ = drawn(*filled(here, text))
    assert curves.get_legend() is None and final.get_ylabel() == "lr"
    colors = [line.get_color() for line in curves.lines]
    assert [container.lines[0].get_color() for container in final.containers] == colors and len(set(colors)) == 3
