"""The distribution of results over configurations: figure and numbers of finished studies."""

import errno
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from dtp.errors import UserError
from dtp.experiments.search.figure import draw_studies
from tests.experiments.search.helpers import fail, open_study, train, write_metrics

pytestmark = pytest.mark.usefixtures("here")

COMMAND = (
    'python -m dtp.search --algo bp --data-dir "/home/me/my mnist" --data_dir=/b '
    "--study /home/me/s --write-preset=/c --trials 4"
)


def study(name, values, diverged=0, **changes):
    made = open_study(name, command=COMMAND, **changes)
    jobs = made.jobs(len(values) + diverged)
    for value in values:
        train(made, next(jobs), value)
    for job in jobs:
        fail(made, job, "Training diverged: loss is not a finite number by batch 3.")
    return Path(name)


def test_several_studies_side_by_side():
    paths = [study("one", [0.9, 0.7, 0.8, 0.6], diverged=2), study("two", [0.95, 0.94, 1.0])]
    said = draw_studies(paths, Path("out/both.png"))
    assert "one: 4 finished, 2 lost" in said and "least 10, median 25, most 40" in said
    with Image.open("out/both.png") as picture:
        assert picture.width > 2 * picture.height and len(picture.getcolors(256)) > 10
    assert Path("out/both.png").stat().st_size < 120_000
    one, two = json.loads(Path("out/both.json").read_text())["studies"]
    assert one["quartiles"] == [pytest.approx(value) for value in (17.5, 25, 32.5)]
    assert (one["least"], one["most"]) == (pytest.approx(10), pytest.approx(40))
    assert one["best"]["trial"] == "trial-0000" and two["best"]["trial"] == "trial-0002"
    assert [trial["state"] for trial in one["trials"]] == ["finished"] * 4 + ["diverged"] * 2
    assert [trial.get("value") for trial in one["trials"]] == [0.9, 0.7, 0.8, 0.6, None, None]
    assert one["settings"]["space"]["lr"] == {"log-uniform": [1e-4, 1.0]}


def test_the_record_holds_no_path_of_the_machine():
    draw_studies([study("one", [0.9])], Path("one.png"))
    text = Path("one.json").read_text()
    assert "--data-dir DIR --data_dir DIR --trials 4" in text
    assert str(Path.cwd()) not in text and "/home/me" not in text


def test_the_best_trial_alone_shows_its_test():
    path = study("one", [0.6, 0.9])
    for i in range(2):
        summary = {"epochs": 2, "steps": 4, "test_loss": i, "test_accuracy": i / 2, "versions": {"torch": "2"}}
        (path / f"trial-{i:04d}/summary.json").write_text(json.dumps(summary))
    draw_studies([path], Path("one.png"))
    (numbers,) = json.loads(Path("one.json").read_text())["studies"]
    assert numbers["best"] == {"trial": "trial-0001", "test_accuracy": 0.5, "test_loss": 1, "epochs": 2, "steps": 4}
    assert not any("test_accuracy" in trial for trial in numbers["trials"]) and numbers["versions"] == {"torch": "2"}


def test_a_figure_is_replaced_by_one_of_the_same_studies_alone():
    one, two = study("one", [0.6, 0.9]), study("two", [0.5])
    draw_studies([one], Path("a.png"))
    before = Path("a.png").read_bytes()
    with pytest.raises(UserError, match="a.png: exists, and shows none of these studies"):
        draw_studies([two], Path("a.png"))
    assert Path("a.png").read_bytes() == before
    draw_studies([one, two], Path("a.png"))
    assert Path("a.png").read_bytes() != before
    Path("b.json").write_text("{}")
    with pytest.raises(UserError, match="b.json: exists"):
        draw_studies([one], Path("b.png"))
    with pytest.raises(UserError, match="ends in .png"):
        draw_studies([one], Path("b.pdf"))


def test_a_figure_that_was_cut_short_by_a_full_disk_is_drawn_the_next_time(monkeypatch):
    path = study("one", [0.6, 0.9])
    for function in ("write_atomically", "save_figure"):
        with monkeypatch.context() as patch:
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            patch.setattr(f"dtp.experiments.search.figure.{function}", lambda *_, error=full: _raise(error))
            with pytest.raises(UserError, match="cannot be written"):
                draw_studies([path], Path(f"{function}.png"))
        draw_studies([path], Path(f"{function}.png"))


def _raise(error):
    raise error


def test_what_cannot_be_drawn_is_told():
    with pytest.raises(UserError, match="none of its 1 trials has finished"):
        draw_studies([study("one", [], diverged=1)], Path("a.png"))
    with pytest.raises(UserError, match="two of the studies are called 'two'"):
        draw_studies([study("two", [0.5]), Path("two/study.json")], Path("a.png"))
    with pytest.raises(UserError, match="searched by val/loss, and two by val/accuracy"):
        draw_studies([Path("two"), study("three", [0.5], objective="val/loss")], Path("a.png"))
    assert not Path("a.png").exists()


@pytest.mark.parametrize("values", [[1.0], [0.999, 0.9991], [0.1, 0.999999], [0.0]])
def test_extreme_values_have_an_axis(values):
    draw_studies([study("one", values)], Path("a.png"))
    assert Path("a.png").is_file()


def test_losses_are_drawn_as_they_are():
    said = draw_studies([study("one", [0.9, 0.9], objective="val/loss")], Path("a.png"))
    assert "best validation loss over epochs: least 0.5, median 0.5, most 0.5" in said


def test_losses_below_zero_are_drawn_too():
    made = open_study("one", objective="val/loss")
    for job, loss in zip(made.jobs(2), (-3.0, 0.5), strict=True):
        write_metrics(job, 0.9)
        metrics = job.folder / "metrics.csv"
        metrics.write_text(metrics.read_text().replace(",0.5\n", f",{loss}\n"))
        made.ended(job, "finished")
    assert "least -3, median -1.25, most 0.5" in draw_studies([Path("one")], Path("a.png"))
