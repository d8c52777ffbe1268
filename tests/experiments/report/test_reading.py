"""Run folders as they are found: in depth, unfinished, failed, being written, damaged."""

import pytest

from dtp.errors import UserError
from dtp.experiments.report.reading import RATE, read_run, read_runs
from tests.experiments.report.folders import make_run


def test_finds_runs_in_any_depth_each_once_in_the_order_of_their_numbers(tmp_path):
    for seed in (10, 9, 0):
        make_run(tmp_path / "sweep" / "bp" / f"seed{seed}", seed=seed)
    make_run(tmp_path / "alone")
    found = read_runs([tmp_path, tmp_path / "sweep", tmp_path / "alone"])
    assert [run.name for run in found] == ["alone", "sweep/bp/seed0", "sweep/bp/seed9", "sweep/bp/seed10"]
    assert [run.name for run in read_runs([tmp_path / "alone"])] == ["alone"]


def test_finds_runs_behind_links_each_once(tmp_path):
    make_run(tmp_path / "elsewhere" / "campaign" / "seed0")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(tmp_path / "elsewhere" / "campaign")
    (tmp_path / "runs" / "again").symlink_to(tmp_path / "elsewhere" / "campaign" / "seed0")
    (tmp_path / "elsewhere" / "campaign" / "back").symlink_to(tmp_path / "runs")
    assert [record.name for record in read_runs([tmp_path / "runs"])] == ["again"]


def test_a_run_that_lies_here_is_called_by_its_own_place_whatever_links_to_it(tmp_path):
    make_run(tmp_path / "published" / "seed0")
    (tmp_path / "latest").symlink_to(tmp_path / "published" / "seed0")
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "first").symlink_to(tmp_path / "published")
    assert [record.name for record in read_runs([tmp_path])] == ["published/seed0"]


def test_looks_for_no_runs_within_a_run(tmp_path):
    run = make_run(tmp_path / "run")
    make_run(run / "wandb" / "copy")
    assert [found.folder for found in read_runs([tmp_path])] == [run]


def test_states(tmp_path):
    make_run(tmp_path / "finished")
    make_run(tmp_path / "unfinished", finished=False, trained=2)
    make_run(tmp_path / "longer", epochs=8, summary={"epochs": 4})
    make_run(tmp_path / "diverged", finished=False, trained=1)
    (tmp_path / "diverged" / "failed.txt").write_text("Training diverged: loss is not\na finite number.\n")
    (tmp_path / "refused").mkdir()
    (tmp_path / "refused" / "failed.txt").write_text("--lr: expected a number above 0.\n")
    found = {run.name: run for run in read_runs([tmp_path])}
    assert {name: run.state for name, run in found.items()} == {
        "finished": "finished",
        "unfinished": "unfinished",
        "longer": "unfinished",
        "diverged": "failed",
        "refused": "failed",
    }
    assert found["diverged"].failure == "Training diverged: loss is not a finite number."
    assert found["refused"].options == {} and found["refused"].epochs == 0
    assert found["unfinished"].epochs == 2 and found["unfinished"].steps == 1100


def test_a_run_stopped_by_max_steps_has_finished(tmp_path):
    make_run(tmp_path / "run", epochs=10, trained=2, max_steps=1100)
    assert read_run(tmp_path / "run").state == "finished"


@pytest.mark.parametrize("said", [{"batches_per_epoch": 550}, {}], ids=["said", "before"])
def test_of_an_epoch_that_was_cut_short_its_part_counts(tmp_path, said):
    # Feedback epochs first: 550 batches of feedback, 550 of the forward weights, 550 of feedback, 110 of the forward.
    rows = [{"epoch": e, "step": step, RATE: 1000.0} for e, step in enumerate([550, 1100, 1650, 1760])]
    summary = {"epochs": 3, "steps": 1760, **said}
    run = make_run(tmp_path / "run", "sdtp", 0, summary=summary, rows=rows, max_steps=1760, schedule="alternating")
    record = read_run(run)
    assert record.batches_per_epoch == 550
    assert (record.passes, record.feedback_passes) == (1.2, 2)
    assert list(record.ends["number"]) == [0, 1, 1, 1.2]
    assert record.course(RATE, "epochs") == {0: 1000.0, 1: 1000.0, 1.2: 1000.0}
    # 1760 batches of 100 images at 1000 a second, for 1.2 epochs.
    assert record.costs["epoch"] == pytest.approx(176 / 1.2)


def test_an_epoch_that_was_cut_and_then_trained_to_its_end_ends_twice_in_the_metrics(tmp_path):
    rows = [{"epoch": e, "step": step, RATE: 1000.0} for e, step in [(0, 8), (0, 12), (1, 20), (1, 24), (2, 32)]]
    record = read_run(make_run(tmp_path / "run", summary={"epochs": 2, "steps": 32}, rows=rows, max_steps=32))
    assert (record.batches_per_epoch, record.passes, record.feedback_passes) == (12, 2.667, 0)


def test_a_rule_without_feedback_has_no_passes_of_it_by_rounding(tmp_path):
    summary = {"epochs": 0, "steps": 1, "batches_per_epoch": 16}
    record = read_run(make_run(tmp_path / "run", summary=summary, rows=[], max_steps=1))
    assert (record.passes, record.feedback_passes) == (0.062, 0)


@pytest.mark.parametrize("said", [{"batches_per_epoch": 550}, {}], ids=["said", "before"])
def test_a_run_that_ended_in_its_first_epoch_has_trained_a_part_of_one(tmp_path, said):
    summary = {"epochs": 0, "steps": 55, **said}
    rows = [{"epoch": 0, "step": 55, RATE: 1000.0}]
    assert read_run(make_run(tmp_path / "run", summary=summary, rows=rows, max_steps=55)).passes == 0.1


def test_a_row_that_is_being_written_is_left_out(tmp_path):
    run = make_run(tmp_path / "run", finished=False)
    whole = read_run(run).rows
    metrics = run / "metrics.csv"
    text = metrics.read_text()
    for torn in ("4,27", "4,2750,0.9\n", "0.31,,\n"):
        metrics.write_text(text + torn)
        assert read_run(run).rows == whole


@pytest.mark.parametrize("line", ["1,many,0.5,0.5,0.5", "1,550", "torn"])
def test_a_damaged_row_before_the_end_is_told_with_its_line(tmp_path, line):
    run = make_run(tmp_path / "run")
    lines = (run / "metrics.csv").read_text().splitlines()
    lines[2] = line
    (run / "metrics.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"metrics.csv, line 3: expected \d+ numbers or empty cells, found "):
        read_run(run)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.csv", "time,loss\n1,2\n", "begins with the columns epoch,step"),
        ("metrics.csv", "epoch,step,train/images_per_second\n,550,9\n", "expected the epoch of step 550"),
        ("summary.json", "{", "is not the JSON of a summary"),
        ("summary.json", '{"accuracy": 1}', "expected the summary of a run"),
        ("config.yaml", "a: [", "is not valid YAML"),
        ("config.yaml", "lr: 0.1\n", "expected the configuration of a run, found none of its 'algo'"),
    ],
)
def test_damaged_files_are_told_by_name(tmp_path, name, text, message):
    run = make_run(tmp_path / "run")
    (run / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_runs([tmp_path])
    assert str(run / name) in str(error.value)


def test_a_finished_run_without_its_configuration_is_told(tmp_path, capsys):
    run, other = make_run(tmp_path / "run"), make_run(tmp_path / "other", seed=1)
    (run / "config.yaml").unlink()
    assert {record.name: record.state for record in read_runs([tmp_path])} == {"other": "finished", "run": "damaged"}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {run / 'config.yaml'}: is missing") and str(other) not in line
    with pytest.raises(UserError, match="config.yaml: is missing"):
        read_run(run, finished=True)


def test_not_a_number_is_no_number(tmp_path):
    rows = [{"epoch": 0, "step": 550, "val/accuracy": "nan", "train/images_per_second": 100}]
    run = read_run(make_run(tmp_path / "run", rows=rows, finished=False))
    assert run.column("val/accuracy") == [] and len(run.column("train/images_per_second")) == 1


def test_the_last_measured_angles_count(tmp_path):
    rows = [
        {"epoch": 0, "step": 0, "update_angle/layer1": 90, "update_angle/layer10": 91},
        {"epoch": 0, "step": 550, "update_angle/layer1": 20, "update_angle/layer10": 30, "update_angle/layerx": 5},
        {"epoch": 1, "step": 1100, "val/accuracy": 0.5},
    ]
    run = read_run(make_run(tmp_path / "run", rows=rows))
    assert run.last_layers("update_angle") == {1: 20.0, 10: 30.0}
    assert run.last_layers("feedback_angle") == {}


def test_angles_of_before_the_first_batch_are_not_those_of_a_trained_network(tmp_path):
    rows = [{"epoch": 0, "step": 0, "update_angle/layer1": 90}, {"epoch": 0, "step": 550, "val/accuracy": 0.5}]
    run = read_run(make_run(tmp_path / "run", rows=rows))
    assert run.last_layers("update_angle") == {}
