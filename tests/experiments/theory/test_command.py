"""The command python -m dtp.theory: files, record, mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from dtp.experiments.theory.command import main
from dtp.experiments.theory.options import STUDIES, UpdateAnglesOptions
from tests.experiments.theory.studies import SMALL, measured, mistake, run

ROOT = Path(__file__).parents[3]
every_study = pytest.mark.parametrize("name", STUDIES)


@every_study
def test_a_study_leaves_numbers_and_a_figure_and_prints_a_table(name, tmp_path, capsys):
    record = run(tmp_path, name, *SMALL[name].split())
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.json", f"{name}.png"]
    assert record["study"] == name and record["command"] == f"dtp theory {name} {SMALL[name]}"
    assert record["seeds"] == record["settings"]["seeds"] and record["versions"]["torch"] and record["device"]
    assert str(tmp_path) not in json.dumps(record)
    with Image.open(tmp_path / f"{name}.png") as image:
        assert image.format == "PNG" and min(image.size) > 400
    assert (tmp_path / f"{name}.png").stat().st_size < 120_000
    table = capsys.readouterr().out
    assert 4 < table.count("\n") < 30 and max(map(len, table.splitlines()[:-1])) < 150


@every_study
def test_a_study_is_the_same_again_and_changes_no_random_state(name):
    state = torch.get_rng_state()
    assert measured(name) == measured(name)
    assert torch.equal(torch.get_rng_state(), state)


@every_study
def test_another_seed_is_another_measurement(name):
    seeds, both = [measured(name, "--seeds", seed) for seed in ("1", "2")], measured(name, "--seeds", "1", "2")
    assert seeds[0] != seeds[1]

    def joined(a, b, together):
        if isinstance(together, dict):
            return all(joined(a[key], b[key], value) for key, value in together.items())
        # Lists over seeds; what is no list over seeds is the same for both.
        return together in (a, a + b) if isinstance(together, list) else together == a == b

    assert joined(*seeds, both)


def test_a_figure_is_drawn_again_without_measuring(tmp_path, monkeypatch):
    record = run(tmp_path, "lee", *SMALL["lee"].split())
    first = (tmp_path / "lee.png").read_bytes()
    (tmp_path / "lee.png").unlink()
    monkeypatch.setattr("dtp.experiments.theory.lee.measure", None)
    assert run(tmp_path, "lee", "--draw") == record
    assert (tmp_path / "lee.png").read_bytes() == first


def test_a_result_of_the_same_study_is_replaced_and_nothing_else_is(tmp_path, capsys):
    words = ["lee", "--output", str(tmp_path), *SMALL["lee"].split()]
    assert main(words) == 0 and main(words) == 0
    capsys.readouterr()
    for text in ("mine", "[]", '{"study": "gait", "values": {}}'):
        (tmp_path / "lee.json").write_text(text)
        assert "lee.json exists and is no result of this study" in mistake(capsys, *words)
        assert (tmp_path / "lee.json").read_text() == text
    (tmp_path / "lee.json").unlink()
    (tmp_path / "lee.png").write_bytes(b"mine")
    assert "lee.png exists" in mistake(capsys, *words)
    assert (tmp_path / "lee.png").read_bytes() == b"mine"


def test_folders_do_not_get_into_the_record(tmp_path):
    small = SMALL["transpose"].replace("--image-shape 2 8 8 ", "")
    words = [*small.split(), "--data", "digits", f"--data-dir={tmp_path}"]
    record = run(tmp_path, "transpose", *words)
    assert record["command"].endswith("--data digits --data-dir DIR") and record["settings"]["data_dir"] == "DIR"
    assert str(tmp_path) not in json.dumps(record)
    # Digits are grey, 8x8: one is what the network got.
    assert "3x4x4 to 4x2x2" in next(iter(record["values"]["layers"]))


@pytest.mark.parametrize(
    "words, part",
    [
        ("", "required: NAME"),
        ("transpos", "found 'transpos'; did you mean transpose?"),
        ("gait --step 1", "Unknown option --step; did you mean --steps?"),
        ("gait --steps x", "--steps: expected a number, found 'x'"),
        ("gait --seeds 1.5", "--seeds: expected a whole number, found '1.5'"),
        ("gait --seeds 1 1", "--seeds: expected different seeds, found 1 1"),
        # Each would be measured twice for one seed, and counted as two.
        (
            "gait --steps 1e-3 0.001",
            "--steps: expected values that differ in six digits, found 0.001 0.001",
        ),
        (
            "gait --departures 0 .1 0.0",
            "--departures: expected values that differ in six digits, found 0.0",
        ),
        (
            "update-angles --betas 0.1 0.1",
            "--betas: expected values that differ in six digits, found 0.1 0.1",
        ),
        ("gait --seeds -1", "--seeds: expected values from 0 to 4294967295, found -1"),
        ("gait --seeds", "--seeds: expected at least one argument"),
        ("gait --steps 0", "--steps: expected values above 0, found 0"),
        ("gait --steps inf", "--steps: expected finite values, found inf"),
        ("gait --seeds 4294967296", "--seeds: expected values from 0 to 4294967295, found 4294967296"),
        (
            "transpose --iterations 1000000000",
            "--iterations: expected a whole number of at most 1000000, found 1000000000",
        ),
        ("gait --departures nan", "--departures: expected finite values, found nan"),
        ("gait --width 9", "--width: expected at least 10, found 9"),
        ("transpose --engine fast", "--engine: expected one of auto, literal, reduced; found 'fast'"),
        ("transpose --drop 2", "--drop: expected a number above 0 and up to 1, found 2"),
        ("transpose --noise 1 2 3", "--noise: expected 1 or 2 values, one for both layers or one each; found 3"),
        ("transpose --channels 4", "--channels: expected at least 2 convolutions, found 1"),
        ("transpose --image-shape 3 2 2", "use larger images or fewer layers"),
        ("transpose --data digits --batch-size 5000", "--batch-size: expected at most the 1293 training images"),
        (
            "transpose --data digits --image-shape 3 8 8",
            "--image-shape 3 8 8: expected random images, found --data digits",
        ),
        (
            "transpose --seeds 0 --iterations 5 --channels 3 4 --image-shape 2 8 8 --batch-size 4 --feedback-lr 1e30",
            "dtp theory transpose: expected finite measurements",
        ),
        ("transpose --data mnist --data-dir nowhere", "expected nowhere"),
        ("update-angles --channels 4 5 6", "--channels: expected 2 values, one for each convolution; found 3"),
        ("update-angles --seeds -1", "--seeds: expected values from 0 to 4294967295, found -1"),
        ("update-angles --noise 1 2", "--noise: expected 1 or 3 values"),
        ("lee --widths 5 5", "--widths: expected a narrow and a wide side, found 5 and 5"),
        ("lee --draw", "--draw: expected"),
        ("lee --output file/in", "--output file/in: cannot be made"),
    ],
)
def test_a_mistake_is_one_sentence(words, part, here, capsys):
    (here / "file").write_text("mine")
    assert part in mistake(capsys, *words.split())
    assert [path.name for path in here.rglob("*") if path.is_file()] == ["file"]


def test_help_lists_studies_and_options_without_waiting_for_torch():
    for words, parts in (
        (["--help"], list(STUDIES)),
        (["transpose", "--help"], ["--drop NUMBER", "(default: 0 1 2 3 4)", "{auto,literal,reduced}"]),
    ):
        code = f"""
import runpy, sys
sys.argv[1:] = {words!r}
try:
    runpy.run_module("dtp.theory", run_name="__main__")
except SystemExit as end:
    assert end.code == 0, end.code
assert not {{"torch", "matplotlib", "numpy"}} & set(sys.modules)
"""
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "COLUMNS": "100"}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        words_of_help = " ".join(done.stdout.split())
        assert all(part in words_of_help for part in parts)


def test_the_published_size_is_that_of_the_paper_where_nothing_else_is_asked_for():
    o = UpdateAnglesOptions(size="published", iterations=7)
    assert (o.channels, o.hidden, o.image_shape, o.batch_size) == ([32, 64], 512, [3, 32, 32], 256)
    assert (o.noise, o.feedback_lr, o.drop, o.unpool) == ([0.2, 0.2, 0.1], [1e-4, 2.5e-3, 0.01], 1.0, "write")
    assert o.iterations == 7
    assert UpdateAnglesOptions(size="published").iterations == 5000
    assert UpdateAnglesOptions().channels == [8, 16]


def test_what_is_typed_is_measured_even_where_it_is_the_default_of_the_other_size(tmp_path, monkeypatch):
    monkeypatch.setattr("dtp.experiments.theory.update_angles.measure", lambda options: {})
    monkeypatch.setattr("dtp.experiments.theory.update_angles.draw", lambda values, path: None)
    monkeypatch.setattr("dtp.experiments.theory.update_angles.table", lambda values: "")
    words = "--size published --channels 8 16 --batch-size 64 --drop 0.67 --unpool add"
    record = run(tmp_path, "update-angles", *words.split())
    found = [record["settings"][name] for name in ("channels", "batch_size", "drop", "unpool", "hidden", "iterations")]
    assert found == [[8, 16], 64, 0.67, "add", 512, 5000]
