"""Numbers of a sweep: over seeds, by forward training, with what is missing."""

import json

import pytest

from dtp.errors import UserError
from dtp.experiments.report.reading import read_run
from dtp.experiments.sweep.figure import draw_sweep
from dtp.experiments.sweep.results import as_table, collect, metric_name
from tests.experiments.report.folders import make_run
from tests.experiments.sweep.helpers import made_up, sweep_of

pytestmark = pytest.mark.usefixtures("here")


def finished(here, text: str | None = None):
    """A sweep whose first setting has finished for both seeds, and its jobs."""
    sweep = sweep_of(here, text) if text else sweep_of(here)
    jobs = sweep.jobs(here / "out")
    for seed, shift in ((0, 0.0), (1, 0.2)):
        made_up(
            jobs[sweep.points[0].name, seed],
            {"val/accuracy": {10: 0.3 + shift, 20: 0.5 + shift}, "test/accuracy": {20: 0.4 + shift}},
        )
    return sweep, jobs


def test_values_mean_and_deviation_over_seeds(here):
    sweep, jobs = finished(here)
    first, *others = collect(sweep, jobs)
    assert first.last("test/accuracy") == [0.4, pytest.approx(0.6)] and first.missing == {}
    assert all(m.missing == {0: "not begun", 1: "not begun"} and not m.runs for m in others)
    where, means, deviations = first.curve("val/accuracy", "batches")
    # dtp alternates: its first epoch trains the feedback alone, its second the forward weights.
    assert (
        where == [0, 10]
        and means == pytest.approx([0.4, 0.6])
        and deviations == pytest.approx([0.2**0.5 / 10**0.5] * 2)
    )


def test_a_curve_goes_on_where_a_seed_lacks_a_value(here):
    sweep = sweep_of(here)
    jobs = sweep.jobs(here / "out")
    for seed, lacking in ((0, None), (1, 5)):
        values = {step: 0.001 * step + 0.2 * seed for step in range(1, 82) if step != lacking}
        made_up(jobs["bp, widths 8", seed], {"train/loss": values, "test/accuracy": {100: 0.5}}, per_epoch=50)
    bp = collect(sweep, jobs)[2]
    where, means, deviations = bp.curve("train/loss", "batches")
    # Two neighbours each of the 80 that both have.
    assert where == [2, 4, 7, *range(9, 82, 2)]
    assert means[:3] == pytest.approx([0.1015, 0.1035, 0.1065])
    assert deviations == pytest.approx([0.2 / 2**0.5] * 40)


def test_why_a_run_has_no_result(here):
    sweep, jobs = finished(here)
    failed, stopped = jobs["bp, widths 8", 0], jobs["bp, widths 8", 1]
    failed.folder.mkdir(parents=True)
    (failed.folder / "failed.txt").write_text("Training diverged.\n")
    made_up(stopped, {"val/accuracy": {7: 0.1}})
    (stopped.folder / "summary.json").unlink()
    (stopped.folder / "checkpoints" / "step=7.ckpt").touch()
    m = collect(sweep, jobs)[2]
    assert m.missing == {0: "failed: Training diverged.", 1: "not finished, 7 batches so far"}


def test_a_run_that_was_to_be_longer_has_no_result_yet(here):
    sweep, _ = finished(here)
    (m, *_) = collect(sweep, sweep.jobs(here / "out", {"max_epochs": "5"}))
    assert m.missing[0].startswith("not finished")


def test_a_run_that_was_to_be_longer_but_is_asked_for_as_it_was_counts(here):
    """As for the sweep itself, which does not train it again."""
    sweep, jobs = finished(here)
    path = jobs[sweep.points[0].name, 0].folder / "config.yaml"
    before, expected = path.read_text(), collect(sweep, jobs)[0].runs[0]
    path.write_text(before.replace("max_epochs: 2", "max_epochs: 5"))
    assert path.read_text() != before
    found = collect(sweep, jobs)[0].runs[0]
    assert found.summary == expected.summary and found.epochs == expected.epochs == 2


@pytest.mark.parametrize("kept, until", [(0, 0), (1, 0), (2, 10)])
def test_a_finished_run_whose_metrics_were_cut_off_has_no_result(here, kept, until):
    """Its last values would be those of an earlier batch, or its seed would stand beside a mean without it."""
    sweep, jobs = finished(here)
    path = jobs[sweep.points[0].name, 1].folder / "metrics.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:kept]))
    m = collect(sweep, jobs)[0]
    assert list(m.runs) == [0] and m.last("test/accuracy") == [0.4]
    assert m.missing[1].startswith(f"finished, but its metrics.csv ends after {until} of 20 batches; move its folder")


def test_a_finished_run_without_its_configuration_is_told(here):
    sweep, jobs = finished(here)
    (jobs[sweep.points[0].name, 0].folder / "config.yaml").unlink()
    with pytest.raises(UserError, match="config.yaml: is missing, and nothing else says what was run"):
        collect(sweep, jobs)


def test_a_run_of_another_configuration_is_not_mixed_in(here):
    sweep, _ = finished(here)
    # It names what a sweep has: no --resume and no --run-dir.
    advice = r"change that back, or give another folder for all runs \(--output; --study of a search\)\.$"
    with pytest.raises(UserError, match=f"was made with --lr .*, not 0.9; {advice}"):
        collect(sweep, sweep.jobs(here / "out", {"lr": "0.9"}))


def test_epochs_of_the_forward_weights_are_those_of_the_report(here):
    # 30 batches in epochs of 10, of which the first 12 train the feedback alone.
    folder = here / "run"
    make_run(folder, epochs=3, algo="drl", feedback_warmup=12, batches=10)
    run = read_run(folder)
    assert run.passes == 1.8
    assert list(run.course("val/accuracy", "epochs")) == [0.0, 0.8, 1.8]


def test_angles_of_layers_are_kept_with_the_accuracies(here):
    """Whatever the figure shows, for runs are not kept as long as their results are."""
    sweep = sweep_of(here)
    jobs = sweep.jobs(here / "out")
    for seed in (0, 1):
        angles = {f"update_angle/layer{n}": {10: 60.0, 20: 10.0 * n + seed} for n in (1, 2)}
        angles["feedback_angle/layer2"] = {20: 4.0 + seed}
        made_up(jobs[sweep.points[0].name, seed], {"val/accuracy": {20: 0.5}, "test/accuracy": {20: 0.4}, **angles})
    draw_sweep(sweep, here / "out", jobs, "dtp sweep tiny")
    last = json.loads((here / "out" / "results.json").read_text())["settings"][0]["last"]
    assert last["update_angle/layer1"]["values"] == [10, 11] and last["update_angle/layer2"]["mean"] == 20.5
    assert last["feedback_angle/layer2"]["values"] == [4, 5] and "feedback_angle/layer1" not in last


def test_the_files_say_what_was_measured_and_how(here):
    sweep, jobs = finished(here)
    command = "dtp sweep tiny --data-dir DIR"
    draw_sweep(sweep, here / "out", jobs, command)
    content = json.loads((here / "out" / "results.json").read_text())
    assert (content["sweep"], content["command"], content["seeds"]) == ("tiny", command, [0, 1])
    assert content["runs"] == {"finished": 2, "missing": 6} and content["device"] == "abacus"
    setting, unfinished = content["settings"][:2]
    assert setting["last"]["test/accuracy"] == {"values": [0.4, 0.6], "mean": 0.5, "deviation": 0.14142}
    assert setting["curves"]["val/accuracy"]["batches"] == [0, 10]
    assert (setting["epochs"], setting["epochs_of_forward_weights"], setting["batches"]) == (2, 1, 20)
    assert setting["command"].startswith("dtp train --data digits") and "--widths 8" in setting["command"]
    assert unfinished["missing"] == {"0": "not begun", "1": "not begun"} and unfinished["last"] == {}
    table = (here / "out" / "results.md").read_text()
    assert "| dtp, widths 8 | 0, 1 | 1 | 60.00 ± 14.14 | 50.00 ± 14.14 |" in table
    assert "- bp, widths 2 x 8, seed 1: not begun" in table


def test_no_folder_of_this_machine_is_written_down(here):
    sweep = sweep_of(here)
    jobs = sweep.jobs(here / "out", {"data_dir": str(here / "secret")})
    for job in jobs.values():
        made_up(job, {"test/accuracy": {20: 0.4}})
    draw_sweep(sweep, here / "out", jobs, "c")
    for name in ("results.json", "results.md"):
        text = (here / "out" / name).read_text()
        assert str(here) not in text and "secret" not in text
    assert "--data-dir DIR" in (here / "out" / "results.json").read_text()


def test_a_table_without_deviations_for_a_single_seed(here):
    sweep = sweep_of(here, "base: {algo: bp, max_epochs: 2}\nfigure: {metric: [val/accuracy, val/loss]}\n")
    jobs = sweep.jobs(here / "out")
    made_up(jobs["all", 0], {"val/accuracy": {20: 0.25}, "val/loss": {20: 1.5}})
    assert "| all | 0 | 2 | 25.00 | 1.5000 |" in as_table(sweep, collect(sweep, jobs), "c")


def test_a_setting_with_a_bar_in_its_name_stays_one_cell(here):
    sweep = sweep_of(here, "base: {algo: bp, max_epochs: 2}\nvariants: {a|b: {}}\n")
    jobs = sweep.jobs(here / "out")
    made_up(jobs["a|b", 0], {"val/accuracy": {20: 0.25}})
    assert "| a\\|b | 0 | 2 | 25.00 |" in as_table(sweep, collect(sweep, jobs), "c")


@pytest.mark.parametrize(
    "metric, name",
    [
        ("train/accuracy", "training accuracy (%)"),
        ("val/loss", "validation loss"),
        ("train/loss_epoch", "training loss"),
        ("update_angle/layer3", "update angle, layer 3 (degrees)"),
        ("test/purity", "test purity (%)"),
    ],
)
def test_metrics_in_words(metric, name):
    assert metric_name(metric) == name
