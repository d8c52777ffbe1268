"""Figures of a report stay readable: names apart from each other, files small, what is missing named."""

import itertools
import random

import pytest
from matplotlib.text import Text
from PIL import Image

from dtp.algorithms.options import FAMILIES
from dtp.experiments.report import figures
from tests.experiments.report.folders import make_run, only_section

RULES = [rule for rules in FAMILIES.values() for rule in rules]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """All rules, three seeds each, most of them close together."""
    folder, numbers = tmp_path_factory.mktemp("comparison"), random.Random(0)
    for rule in RULES:
        accuracy, seconds = numbers.choice([0.97, 0.975, 0.98, 0.9]), numbers.choice([1.0, 1.1, 2.0, 2.2, 12.0])
        angles = [numbers.uniform(0, 95) for _ in range(3)]
        for seed in range(3):
            make_run(
                folder / rule / f"seed{seed}",
                rule,
                seed,
                accuracy + numbers.gauss(0, 0.001),
                seconds=1.0 if rule == "bp" else seconds,
                angles=[0.0] * 3 if rule == "bp" else angles,
                feedback=[] if rule == "bp" else angles[1:],
                epochs=6,
            )
    return only_section(folder)


@pytest.fixture(scope="module")
def drawn(comparison, tmp_path_factory):
    """The figures of the comparison by the files that they are in; each is drawn once."""
    folder, found = tmp_path_factory.mktemp("figures"), {}
    save = figures.save_figure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save_figure", lambda figure, path: (found.update({path: figure}), save(figure, path)))
        for drawing in figures.drawings(comparison):
            drawing.draw(folder / f"{drawing.kind}.png")
    return found


@pytest.fixture
def saved(monkeypatch):
    """Figures as they are when they are saved."""
    found = []

    def save(figure, path):
        figure.canvas.draw()
        found.append(figure)

    monkeypatch.setattr(figures, "save_figure", save)
    return found


def boxes(figure, words):
    renderer = figure.canvas.get_renderer()
    texts = [text for axes in figure.axes for text in axes.texts if text.get_text() in words]
    # Of the words alone, without the line that joins them to their point.
    extents = [Text.get_window_extent(text, renderer) for text in texts]
    return [text.get_text() for text in texts], extents


def covered(one, other):
    wide = min(one.x1, other.x1) - max(one.x0, other.x0)
    high = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(wide, 0) * max(high, 0)


def test_all_rules_are_drawn_in_small_files(drawn):
    for path in drawn:
        assert 5_000 < path.stat().st_size < 120_000
        with Image.open(path) as picture:
            assert max(picture.size) < 2500
    assert {path.stem for path in drawn} == {"curves", "curves-time", "cost", "angles"}


@pytest.mark.parametrize("kind", ["curves", "curves-time", "cost"])
def test_every_rule_is_named_and_no_name_covers_another(drawn, kind):
    (figure,) = [figure for path, figure in drawn.items() if path.stem == kind]
    names, extents = boxes(figure, RULES)
    assert set(names) == set(RULES)
    for one, other in itertools.combinations(extents, 2):
        assert covered(one, other) < 0.15 * min(one.width * one.height, other.width * other.height)
    page = figure.bbox
    assert all(page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1 for box in extents)


def test_angles_have_a_row_for_each_rule_but_backprop(drawn):
    (figure,) = [figure for path, figure in drawn.items() if path.stem == "angles"]
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert sorted(rows) == sorted(set(RULES) - {"bp"})
    points = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert len(points) == 3 * len(rows)


def test_groups_judged_by_something_else_than_most_are_not_drawn_on_their_axes(tmp_path, saved):
    make_run(tmp_path / "a", "mine:Rule", summary={"test_accuracy": None, "test_f1": 0.9})
    make_run(tmp_path / "b", "bp")
    make_run(tmp_path / "c", "dtp", seconds=2)
    section = only_section(tmp_path)
    section.groups.sort(key=lambda group: group.rule != "mine:Rule")
    kinds = {drawing.kind: drawing for drawing in figures.drawings(section)}
    for kind in ("curves", "cost"):
        kinds[kind].draw(tmp_path / "figure.png")
        assert "Left out, judged by something else: `mine:Rule`." in kinds[kind].caption
    assert len(saved) == 2
    for figure in saved:
        shown = " ".join(text.get_text() for axes in figure.axes for text in axes.texts)
        assert "dtp" in shown and "mine" not in shown and "accuracy" in figure.axes[0].get_ylabel()


def test_curves_show_means_over_seeds_at_epochs_of_the_forward_weights(tmp_path, saved):
    for seed, accuracy in enumerate((0.9, 0.94)):
        make_run(tmp_path / f"bp{seed}", "bp", seed, accuracy, epochs=3)
        make_run(tmp_path / f"dtp{seed}", "vanilla-dtp", seed, accuracy - 0.1, epochs=6, seconds=2)
    for drawing in figures.drawings(only_section(tmp_path))[:2]:
        drawing.draw(tmp_path / "figure.png")
    for figure, factor in zip(saved, (1, 4), strict=True):
        line = max(
            figure.axes[0].lines, key=lambda line: list(line.get_xdata()) != [1, 2, 3] or line.get_marker() == "o"
        )
        assert list(line.get_xdata()) == pytest.approx([factor, 2 * factor, 3 * factor])
        # The axis is one of errors.
        assert line.get_ydata()[-1] == pytest.approx(100 - 82)


def test_what_cannot_be_drawn_is_named(tmp_path):
    make_run(tmp_path / "bp")
    make_run(tmp_path / "fa", "fa")
    make_run(tmp_path / "gait", "gait", model="square")
    make_run(tmp_path / "kp", "kp", finished=False, trained=2)
    captions = {drawing.kind: drawing.caption for drawing in figures.drawings(only_section(tmp_path))}
    assert "Unfinished: `kp`." in captions["curves"]
    assert "Left out, without a time to compare: `kp`, `gait`." in captions["curves-time"]


def test_many_settings_of_one_rule_are_drawn_with_the_best_named(tmp_path, saved):
    make_run(tmp_path / "bp")
    for trial in range(45):
        make_run(tmp_path / f"trial{trial}", "sdtp", lr=0.1 + trial, accuracy=0.5 + 0.01 * trial, seconds=1 + trial)
    found = {drawing.kind: drawing for drawing in figures.drawings(only_section(tmp_path))}
    assert "The best 40 of 46 are named." in found["cost"].caption
    found["curves"].draw(tmp_path / "figure.png")
    axes = saved[0].axes[0]
    assert axes.get_title(loc="left") == "Feedback learns to invert (best 8 of 45 named)"
    named = {text.get_text() for text in axes.texts}
    assert named == {"bp", *(f"sdtp (lr {0.1 + trial:.4g})" for trial in range(37, 45))}


def test_errors_of_reconstruction_are_drawn_with_less_as_better(tmp_path, saved):
    for seed in range(2):
        rows = [
            {"epoch": e, "step": 550 * (e + 1), "val/mse": 0.1 / (e + 1 + seed), "train/images_per_second": 100}
            for e in range(4)
        ]
        summary = {"test_mse": 0.02, "test_accuracy": None}
        make_run(tmp_path / f"{seed}", "bp", seed, task="autoencoder", rows=rows, summary=summary)
    (drawing,) = figures.drawings(only_section(tmp_path))
    drawing.draw(tmp_path / "figure.png")
    axes = saved[0].axes[0]
    assert axes.get_ylabel() == "validation mean square error of a pixel"
    low, high = axes.get_ylim()
    assert low > high


def test_nothing_is_drawn_of_runs_without_numbers(tmp_path):
    make_run(tmp_path / "run", finished=False, trained=0)
    assert figures.drawings(only_section(tmp_path)) == []
