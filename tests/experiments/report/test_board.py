"""The board: figures of runs beside the published ones, kept in one file that commands add to."""

import json
import os
import shlex
import shutil
import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from dtp.cli.arguments import parse
from dtp.cli.config import PRESETS, read_yaml
from dtp.experiments.report import board
from dtp.experiments.report.command import main
from dtp.experiments.report.published import published
from tests.experiments.report.folders import make_run

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
LEE = {
    "widths": [240] * 7,
    "activation": "tanh",
    "config": "",
    "schedule": "alternating",
    "first_target": "penultimate",
}
# Test accuracies by seed.
ACCURACIES = {0: 0.9814, 1: 0.9805, 2: 0.9797}


@pytest.fixture
def runs(tmp_path):
    """Lee's network by his rule over three seeds, and by bp, with a third of the time, over two."""
    folder = tmp_path / "runs"
    for seed, accuracy in ACCURACIES.items():
        make_run(folder / f"dtp{seed}", "vanilla-dtp", seed, accuracy, epochs=4, seconds=3.0, **LEE)
    for seed in (0, 1):
        make_run(folder / f"bp{seed}", "bp", seed, 0.981, widths=[240] * 7, activation="tanh")
    return folder


def added(*words, to):
    assert main(["--board", *map(str, words), "--json", str(to)]) == 0
    return json.loads(to.read_text())


def ours(rows):
    return [row for row in rows if row["ours"] is not None]


def test_a_damaged_run_among_others_is_left_out_and_told(runs, tmp_path, capsys):
    (runs / "bp1" / "summary.json").write_text('{"epochs": 4, "st')
    rows = added(runs, to=tmp_path / "board.json")
    assert [row["seeds"] for row in ours(rows) if row["rule"] == "bp"] == [[0]]
    error = capsys.readouterr().err
    assert error.startswith("warning: ") and "bp1" in error and error.count("\n") == 1


def test_runs_without_an_accuracy_are_not_on_the_board(runs, tmp_path):
    make_run(runs / "f1", "mine:Rule", summary={"test_accuracy": None, "test_f1": 0.9, "test_loss": 0.4})
    assert {row["rule"] for row in ours(added(runs, to=tmp_path / "board.json"))} == {"vanilla-dtp", "bp"}


def test_runs_become_rows_with_their_means_beside_the_published_figures(runs, tmp_path):
    rows = added(runs, "--note", "quiet machine", to=tmp_path / "board.json")
    assert all(set(row) == set(board.FIELDS) for row in rows)
    dtp, bp = sorted(ours(rows), key=lambda row: row["rule"], reverse=True)
    percent = [100 * accuracy for accuracy in ACCURACIES.values()]
    assert dtp["ours"] == pytest.approx(statistics.fmean(percent), abs=0.005)
    assert dtp["deviation"] == pytest.approx(statistics.stdev(percent), abs=0.005)
    # Lee 2018 reports a test error of 1.94 %, after 100 epochs.
    assert (dtp["published"], dtp["published_epochs"], dtp["seeds"]) == (98.06, 100, [0, 1, 2])
    # Two of four epochs trained the forward weights, in three times the time of one of bp each.
    assert dtp["epochs"] == 2 and dtp["cost"] == pytest.approx(6.0) and bp["cost"] == 1.0
    assert bp["published"] == 98.14 and bp["deviation"] == 0
    assert dtp["commit"] == "abc" and dtp["date"] == "2026-01-01"
    assert "--seed SEED" in dtp["command"] and "DIR" in dtp["command"] and str(tmp_path) not in dtp["command"]
    assert "ours 2 epochs, theirs 100" in dtp["note"] and dtp["note"].endswith("quiet machine")


def test_published_figures_without_one_of_ours_are_rows_too(runs, tmp_path):
    rows = added(runs, to=tmp_path / "board.json")
    figures = [(f.rule, f.data, f.accuracy) for f in published()]
    shown = [(row["rule"], row["data"], row["published"]) for row in rows if row["source"]]
    assert sorted(shown) == sorted(figures)
    missing = [row for row in rows if row["ours"] is None]
    assert len(missing) == len(figures) - 2
    assert all(row["note"].startswith("not run yet") and row["seeds"] == [] for row in missing)


def test_a_setting_that_comes_again_replaces_its_row_and_another_one_is_added(runs, tmp_path):
    path = tmp_path / "board.json"
    first = added(runs, to=path)
    assert added(runs, to=path) == first
    assert added(to=path) == first
    make_run(tmp_path / "more" / "a", "bp", 0, 0.97, epochs=2, widths=[240] * 7, activation="tanh")
    make_run(tmp_path / "other" / "a", "bp", 0, 0.9, widths=[10])
    second = added(tmp_path / "more", tmp_path / "other", to=path)
    assert len(ours(second)) == 4
    # The figure of the paper stands beside both budgets, and nowhere without one.
    lee = [
        row for row in second if row["source"].startswith("Lee") and row["rule"] == "bp" and row["published"] == 98.14
    ]
    assert [row["ours"] for row in lee] == [98.1, 97.0]


def test_a_setting_is_the_same_whatever_its_command_was_called_and_in_whatever_order(tmp_path):
    path, kept = tmp_path / "board.json", tmp_path / "kept.json"
    found = []
    for accuracy, command in (
        (0.5, "python main.py --algo bp --model mlp --data digits --lr 0.1 --seed SEED --data-dir DIR --log-every 5"),
        (0.6, "dtp train --lr=0.10 --data digits --model mlp --diagnostics-every 20 --algo bp --seed SEED"),
        (0.7, "dtp train --lr 0.2 --data digits --model mlp --algo bp --seed SEED"),
    ):
        kept.write_text(json.dumps({"command": command, "seed": 0, "test_accuracy": accuracy}))
        found.append(sorted(row["ours"] for row in ours(added(kept, to=path))))
    assert found == [[50.0], [60.0], [60.0, 70.0]]


def test_a_rule_of_ones_own_is_the_same_whether_it_was_trusted_or_named(tmp_path):
    for accuracy, trust in ((0.5, {}), (0.6, {"trust": True})):
        make_run(tmp_path / "run", "my_rule:Mine", 0, accuracy, **trust)
        (row,) = ours(added(tmp_path / "run", to=tmp_path / "board.json"))
        assert row["ours"] == 100 * accuracy and ("--trust" in row["command"]) == bool(trust)
        shutil.rmtree(tmp_path / "run")


def test_images_that_were_recompressed_keep_a_row_of_their_own(tmp_path):
    path, kept = tmp_path / "board.json", tmp_path / "kept.json"
    command = "dtp train --algo bp --model mlp --data imagefolder --data-dir DIR --seed SEED"
    found = []
    for images, accuracy in (("cifar10-jpeg", 0.5), ("cifar10-lossless", 0.6), ("cifar10-jpeg", 0.4)):
        kept.write_text(json.dumps({"command": command, "seed": 0, "test_accuracy": accuracy}))
        rows = ours(added(kept, "--images", images, to=path))
        found.append({"JPEG" in row["note"]: row["ours"] for row in rows})
    assert found == [{True: 50.0}, {True: 50.0, False: 60.0}, {True: 40.0, False: 60.0}]


def test_a_row_that_loses_seeds_of_the_one_before_it_is_told(runs, tmp_path, capsys):
    path = tmp_path / "board.json"
    added(runs, to=path)
    assert capsys.readouterr().err == ""
    rows = added(runs / "dtp0", runs / "dtp2", to=path)
    assert [row["seeds"] for row in ours(rows) if row["rule"] == "vanilla-dtp"] == [[0, 2]]
    error = capsys.readouterr().err
    assert error.startswith("warning: vanilla-dtp, mlp 7x240 tanh, alternating, mnist: ") and error.count("\n") == 1
    assert "seed 0, 2, takes the place of one that had seed 1 too" in error
    # All of them, and the baseline that was not given again, say nothing.
    added(runs, to=path)
    assert capsys.readouterr().err == ""


def test_of_runs_that_differ_in_nothing_the_latest_counts_and_once(runs, tmp_path):
    again = {"finished": "2026-02-01T00:00:00+0000"}
    make_run(runs / "again", "vanilla-dtp", 1, 0.99, epochs=4, seconds=3.0, summary=again, **LEE)
    untested = {"finished": "2026-03-01T00:00:00+0000", "test_accuracy": None}
    make_run(runs / "untested", "vanilla-dtp", 1, 0.99, epochs=4, seconds=3.0, summary=untested, **LEE)
    (dtp,) = [row for row in ours(added(runs, to=tmp_path / "board.json")) if row["rule"] == "vanilla-dtp"]
    percent = [98.14, 99.0, 97.97]
    assert dtp["seeds"] == [0, 1, 2]
    assert dtp["ours"] == pytest.approx(statistics.fmean(percent), abs=0.005)
    assert dtp["deviation"] == pytest.approx(statistics.stdev(percent), abs=0.005)


@pytest.mark.parametrize(
    ("words", "epochs"),
    [
        ("--algo bp --max-epochs 3", 3),
        ("--algo vanilla-dtp --schedule alternating --max-epochs 4", 2),
        ("--algo ddtp-linear --feedback-warmup-epochs 1 --extra-feedback-epochs 1 --max-epochs 5", 2),
    ],
)
def test_epochs_are_counted_where_a_file_does_not_say_how_many_batches_there_were(words, epochs, tmp_path):
    kept = {**KEPT, "command": f"dtp train --model mlp --data digits {words} --seed SEED"}
    assert put_on_board(kept, tmp_path) == 0
    (row,) = ours(json.loads((tmp_path / "board.json").read_text()))
    assert row["epochs"] == epochs


def test_results_that_were_kept_without_run_folders_come_to_the_same_figures(runs, tmp_path):
    main([str(runs), "--output", str(tmp_path / "page.md"), "--json", str(tmp_path / "report.json"), "--no-figures"])
    known = ours(added(runs, to=tmp_path / "folders.json"))
    kept = ours(added(tmp_path / "report.json", to=tmp_path / "files.json"))
    same = ("rule", "network", "data", "source", "published", "ours", "deviation", "seeds", "epochs", "cost", "command")
    same += ("commit",)
    assert [{name: row[name] for name in same} for row in kept] == [{name: row[name] for name in same} for row in known]


def results_of_sweep(folder, **changed):
    setting = {
        "name": "bp",
        "command": "dtp train --algo bp --model mlp --data digits --max-epochs 2 --seed SEED",
        "seeds": [0, 1],
        "last": {"test/accuracy": {"values": [0.5, 0.6]}},
        "epochs": 2,
        "batches": 20,
    }
    content = {"settings": [{**setting, **changed}], "device": "Abacus", "threads": 1, "versions": {"commit": "abc"}}
    content = {name: changed.get(name, value) for name, value in content.items()}
    (folder / "results.json").write_text(json.dumps(content))
    return folder / "results.json"


def test_the_part_of_an_epoch_that_was_cut_short_counts_wherever_it_comes_from(tmp_path):
    path = results_of_sweep(tmp_path, epochs=2, batches=25, batches_per_epoch=10.0)
    (row,) = ours(added(path, to=tmp_path / "of-sweep.json"))
    assert row["epochs"] == 2.5
    for seed in (0, 1):
        summary = {"epochs": 2, "steps": 25, "batches_per_epoch": 10}
        make_run(tmp_path / "runs" / str(seed), "bp", seed, summary=summary, max_steps=25, batches=10, trained=2)
    words = ["--output", str(tmp_path / "page.md"), "--json", str(tmp_path / "report.json"), "--no-figures"]
    assert main([str(tmp_path / "runs"), *words]) == 0
    for path in (tmp_path / "runs", tmp_path / "report.json"):
        (row,) = ours(added(path, to=tmp_path / "board.json"))
        assert row["epochs"] == 2.5


def test_a_sweep_whose_runs_were_made_at_several_commits_is_a_row_that_names_them(tmp_path):
    versions = [{"commit": "abc", "dtp": "1"}, {"commit": "abd", "dtp": "1"}]
    path = results_of_sweep(tmp_path, versions=versions, device=["Abacus", "Other"], batches=[20, 21])
    (row,) = ours(added(path, to=tmp_path / "board.json"))
    assert (row["ours"], row["seeds"], row["epochs"], row["commit"]) == (55.0, [0, 1], 2, "abc abd")


def test_a_sweep_with_fewer_accuracies_than_seeds_is_refused(tmp_path, capsys):
    path = results_of_sweep(tmp_path, last={"test/accuracy": {"values": [0.5]}})
    assert main(["--board", str(path), "--json", str(tmp_path / "board.json")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: bp: expected a test accuracy for each of its 2 seeds, found 1; ")
    assert not (tmp_path / "board.json").exists()


def test_runs_of_a_report_that_recorded_no_command_are_left_out(runs, tmp_path, capsys):
    report = tmp_path / "report.json"
    main([str(runs), "--output", str(tmp_path / "page.md"), "--json", str(report), "--no-figures"])
    content = json.loads(report.read_text())
    for group in (group for section in content["studies"] for group in section["groups"]):
        for run in group["runs"]:
            run["commands"] = []
    report.write_text(json.dumps(content))
    capsys.readouterr()
    assert main(["--board", str(report), "--json", str(tmp_path / "board.json")]) == 2
    assert "none is recorded" in capsys.readouterr().err


def test_the_page_says_what_the_rows_say(runs, tmp_path):
    path = tmp_path / "board.json"
    rows = added(runs, to=path)
    page = path.with_suffix(".md").read_text()
    assert f"{len(rows)} rows: 2 with figures of ours, 1 of them over three seeds" in page
    (line,) = [line for line in page.splitlines() if "98.05 ± 0.09" in line]
    assert line.startswith("| `vanilla-dtp` | mlp 7x240 tanh, alternating | Lee 2018") and "| 98.06 |" in line
    assert page == board.write_page(rows, "board.json")


@pytest.mark.parametrize("content", ["{", "{}", '[{"rule": "bp"}]'])
def test_a_file_that_is_no_board_is_left_alone(content, runs, tmp_path, capsys):
    path = tmp_path / "board.json"
    path.write_text(content)
    assert main(["--board", str(runs), "--json", str(path)]) == 2
    assert "--json" in capsys.readouterr().err and path.read_text() == content


def test_runs_that_have_not_finished_are_no_rows(tmp_path, capsys):
    make_run(tmp_path / "runs" / "a", "bp", finished=False, trained=1)
    assert main(["--board", str(tmp_path / "runs"), "--json", str(tmp_path / "board.json")]) == 2
    assert "no finished run" in capsys.readouterr().err and not (tmp_path / "board.json").exists()


def test_words_of_the_board_are_refused_without_it(runs, capsys):
    assert main([str(runs), "--note", "x"]) == 2
    assert "--note: expected together with --board" in capsys.readouterr().err
    assert main(["--board", str(runs), "--title", "x"]) == 2
    assert main(["--board", str(runs), "--no-figures"]) == 2
    assert capsys.readouterr().err.count("expected without --board") == 2
    assert main([]) == 2
    assert "expected run folders" in capsys.readouterr().err


def test_figures_of_one_network_by_two_optimizers_are_told_apart(tmp_path):
    for folder, preset in enumerate(("fa_lenet5_cifar10", "fa_lenet5_cifar10_adam")):
        chosen = {**read_yaml(PRESETS / f"{preset}.yaml"), "model": "lenet5", "data": "cifar10"}
        del chosen["max_epochs"]
        make_run(tmp_path / "runs" / str(folder), "fa", 0, 0.5 + folder / 10, **{**chosen, "epochs": 2})
    rows = added(tmp_path / "runs", to=tmp_path / "board.json")
    found = {row["network"].rpartition(", ")[2]: (row["published"], row["ours"]) for row in ours(rows) if row["source"]}
    assert found == {"sgd": (53.31, 50.0), "adam": (59.33, 60.0)}


def test_the_board_of_the_project_is_whole():
    rows = board.read_board(RESULTS / "board.json")
    assert board.merged(rows, []) == rows
    assert (RESULTS / "board.md").read_text() == board.write_page(rows, "board.json")
    assert len(ours(rows)) >= 60 and sum(len(set(row["seeds"])) >= 3 for row in ours(rows)) >= 30
    for row in ours(rows):
        assert (
            0 <= row["ours"] <= 100
            and row["seeds"]
            and row["command"].startswith(("python ", "dtp train "))
            and row["date"]
        )


def test_every_command_of_ours_on_the_board_is_one_of_this_version():
    shapes = {}
    for row in ours(board.read_board(RESULTS / "board.json")):
        words = shlex.split(row["command"].replace("SEED", "0"))
        assert words[:2] in (["dtp", "train"], ["python", "main.py"])
        named = [value for flag, value in pairwise(words) if flag in ("--algo", "--model", "--config")]
        # Of commands that differ in numbers alone one is enough.
        shapes[frozenset([*named, *(word for word in words if word.startswith("--"))])] = words[2:]
    for words in shapes.values():
        parse(words, own_classes=False)


KEPT = {"command": "dtp train --algo bp --model mlp --data digits --seed SEED", "seed": 0, "test_accuracy": 0.5}


def put_on_board(kept, path):
    (path / "kept.json").write_text(kept if isinstance(kept, str) else json.dumps(kept))
    return main(["--board", str(path / "kept.json"), "--json", str(path / "board.json")])


@pytest.mark.parametrize(
    "command",
    [
        "dtp train --algo read_payload:X",
        "dtp train --model read_payload:X",
        "dtp train --config run",
        "dtp train --config run --trust",
        "dtp train --resume run --trust",
        "dtp train --help",
        "dtp train -h",
        "dtp train 'x",
        "",
    ],
)
def test_commands_in_files_of_results_run_nothing(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "read_payload.py").write_text("open('ran', 'w')\nclass X: pass\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("algo: bp\nmodel: mlp\ndata: read_payload:X\n")
    assert put_on_board({**KEPT, "command": command}, tmp_path) == 2
    assert "left out, for its command cannot be read: " in capsys.readouterr().err
    assert not (tmp_path / "ran").exists() and not (tmp_path / "board.json").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"test_accuracy": "high"},
        {"test_accuracy": float("nan")},
        {"versions": "1"},
        {"versions": {"commit": 3}},
        {"times_bp": "x"},
        {"epochs": "x"},
        {"seed": []},
    ],
)
def test_results_of_another_kind_are_told(change, tmp_path, capsys):
    assert put_on_board({**KEPT, **change}, tmp_path) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ") and not (tmp_path / "board.json").exists()
    assert put_on_board(KEPT, tmp_path) == 0


def test_deep_nesting_is_told(tmp_path, capsys):
    assert put_on_board(100_000 * "[", tmp_path) == 2
    assert "expected run folders or JSON of results" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", [{"ours": "x"}, {"seeds": None}, {"data": 3}, {"note": None}, {"cost": float("inf")}]
)
def test_rows_of_another_kind_are_told_and_kept(change, runs, tmp_path, capsys):
    path = tmp_path / "board.json"
    rows = added(runs, to=path)
    path.write_text(json.dumps([{**rows[0], **change}, *rows[1:]]))
    before = path.read_bytes()
    assert main(["--board", str(runs), "--json", str(path)]) == 2
    assert "expected a list of rows" in capsys.readouterr().err and path.read_bytes() == before


def test_neither_a_pipe_nor_the_page_is_the_board(runs, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    assert main(["--board", str(runs), "--json", str(tmp_path / "pipe")]) == 2
    assert "found something else" in capsys.readouterr().err
    path = str(tmp_path / "new.json")
    assert main(["--board", str(runs), "--json", path, "--output", path]) == 2
    assert "is the board itself" in capsys.readouterr().err and not (tmp_path / "new.json").exists()


def test_a_board_whose_page_has_no_place_is_not_written(runs, tmp_path, capsys):
    (tmp_path / "file").touch()
    words = ["--board", str(runs), "--json", str(tmp_path / "new.json"), "--output", str(tmp_path / "file" / "page.md")]
    assert main(words) == 2
    assert "give another --output" in capsys.readouterr().err and not (tmp_path / "new.json").exists()
