"""A study: what is drawn, what becomes of trials, and that several processes share it without loss."""

import errno
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from dtp.errors import UserError
from dtp.experiments.jobs import FAILURE_FILE, try_claim
from dtp.experiments.search.space import Parameter, Space
from dtp.experiments.search.study import best_trial, best_value, described_trials, read_study
from dtp.run.folder import IMAGES
from tests.experiments.search.helpers import SPACE, accuracy, fail, open_study, train, write_metrics

pytestmark = pytest.mark.usefixtures("here")

DIVERGED = "Training diverged: loss is not a finite number by batch 3."


def drawn(study):
    return [trial.options for trial in study.trials()]


def finish(study, total):
    for job in study.jobs(total):
        train(study, job)
    return study


def states(study):
    return [trial.state for trial in study.trials()]


def test_trials_vary_what_the_domain_says_and_nothing_else():
    study = open_study()
    jobs = list(study.jobs(12))
    assert [job.folder.name for job in jobs] == [f"trial-{i:04d}" for i in range(12)]
    assert {tuple(job.options["widths"]) for job in jobs} == {(8,), (8, 8)}
    assert len({job.options["lr"] for job in jobs}) == 12
    assert all({**job.options, "lr": 0, "widths": 0} == {**jobs[0].options, "lr": 0, "widths": 0} for job in jobs)
    assert jobs[0].options["optimizer"] == "adam" and jobs[0].options["max_epochs"] == 2


def test_random_draws_are_those_of_the_seed_whoever_draws_them():
    alone = drawn(finish(open_study("alone"), 6))
    first, second = open_study("shared"), open_study("shared")
    one, other = first.jobs(6), second.jobs(6)
    for jobs, study in [(one, first), (other, second), (other, second), (one, first), (one, first), (other, second)]:
        train(study, next(jobs))
    assert list(one) == list(other) == []
    assert drawn(first) == drawn(second) == alone
    assert drawn(finish(open_study("else", sampler_seed=1), 6)) != alone


def test_the_sequential_search_finds_better_values_than_the_random_one():
    random = finish(open_study("random"), 40).trials()
    sequential = finish(open_study("sequential", sampler="sequential"), 40).trials()
    # The first are random ones.
    assert [trial.value for trial in sequential[:4]] == [trial.value for trial in random[:4]]
    means = [sum(trial.value for trial in trials[20:]) / 20 for trials in (random, sequential)]
    assert means[1] > means[0] + 0.03


def test_the_sequential_search_keeps_away_from_where_trials_diverge():
    study = open_study(sampler="sequential")
    for job in study.jobs(40):
        if job.options["lr"] > 0.01:
            fail(study, job, DIVERGED)
        else:
            # Nothing else tells one rate from another.
            train(study, job, 0.5)
    diverged = [state == "diverged" for state in states(study)]
    assert sum(diverged[:8]) >= 3 and sum(diverged[8:]) <= 10


def test_the_best_is_the_best_epoch_of_the_best_trial():
    study = open_study()
    for job, value in zip(study.jobs(3), (0.5, 0.9, 0.9), strict=True):
        train(study, job, value)
    assert [trial.value for trial in study.trials()] == [0.5, 0.9, 0.9]
    assert best_trial(study.trials(), "val/accuracy").number == 1
    assert best_value(Path("study/trial-0001"), "val/loss") == 0.5


def test_a_loss_is_minimised():
    study = open_study(objective="val/loss", sampler="sequential")
    jobs = list(study.jobs(2))
    train(study, jobs[0])
    write_metrics(jobs[1], 0.9)
    metrics = jobs[1].folder / "metrics.csv"
    metrics.write_text(metrics.read_text().replace("0.5\n", "0.1\n"))
    study.ended(jobs[1], "finished")
    assert best_trial(study.trials(), "val/loss").number == 1


def test_diverged_and_failed_trials_count_and_are_never_best():
    study = open_study()
    jobs = list(study.jobs(3))
    train(study, jobs[0], 0.2)
    fail(study, jobs[1], DIVERGED)
    fail(study, jobs[2], "out of memory (12 GiB).")
    assert list(study.jobs(3)) == []
    assert states(study) == ["finished", "diverged", "failed"]
    assert [trial.why for trial in study.trials()] == ["", DIVERGED, "out of memory (12 GiB)."]
    assert best_trial(study.trials(), "val/accuracy").number == 0
    assert best_trial(study.trials()[1:], "val/accuracy") is None


def test_a_first_trial_that_fails_otherwise_than_by_divergence_stops_the_search_and_is_tried_again():
    study = open_study()
    with pytest.raises(UserError, match="study/trial-0000: --data-dir x: no such folder"):
        fail(study, next(study.jobs(3)), "--data-dir x: no such folder.")
    assert states(study) == ["running"]
    again = open_study()
    jobs = again.jobs(3)
    job = next(jobs)
    assert job.folder.name == "trial-0000" and not (job.folder / FAILURE_FILE).exists()
    # For a second time: it is the values.
    fail(again, job, "--noise: too large.")
    train(again, next(jobs))
    assert states(again) == ["failed", "finished"]


def test_a_trial_without_validation_is_a_mistake():
    study = open_study()
    job = next(study.jobs(3))
    job.folder.mkdir(parents=True)
    with pytest.raises(UserError, match="it has no val/accuracy; let trials validate"):
        study.ended(job, "finished")


def test_an_interrupted_trial_is_the_first_that_the_next_process_takes_up():
    jobs = open_study().jobs(4)
    old = [next(jobs), next(jobs)]
    study = open_study()
    now = study.jobs(4)
    assert [next(now), next(now)] == old
    assert [job.folder.name for job in now] == ["trial-0002", "trial-0003"]


def test_a_trial_that_finished_unheard_is_told_without_being_drawn_again():
    killed = next(open_study().jobs(2))
    write_metrics(killed, 0.8)
    study = open_study()
    jobs = study.jobs(2)
    train(study, next(jobs), 0.8)
    assert [job.folder.name for job in jobs] == ["trial-0001"]
    assert study.trials()[0].value == 0.8


def test_what_another_process_runs_is_left_to_it_until_the_end():
    first, second = open_study(), open_study()
    running = next(first.jobs(2))
    jobs = second.jobs(2)
    second.ended(next(jobs), "elsewhere")
    train(second, next(jobs))
    # Nothing is left but that, and its process may have been killed meanwhile.
    assert next(jobs) == running
    second.ended(running, "elsewhere")
    assert list(jobs) == [] and states(second) == ["running", "finished"]
    train(first, running)
    assert list(open_study().jobs(2)) == []


def test_a_trial_that_diverges_elsewhere_is_left_to_the_process_that_runs_it():
    first, second = open_study(), open_study()
    job = next(first.jobs(1))
    job.folder.mkdir(parents=True)
    claim = try_claim(job)
    (job.folder / FAILURE_FILE).write_text(DIVERGED)
    assert next(second.jobs(1)) == job
    second.ended(job, "elsewhere")
    assert job.failure == DIVERGED
    claim.close()


def test_a_trial_that_has_ended_elsewhere_meanwhile_is_not_taken_up():
    first, second = open_study(), open_study()
    one, other = itertools.islice(first.jobs(2), 2)
    jobs = second.jobs(2)
    assert next(jobs) == one
    fail(first, other, DIVERGED)
    assert list(jobs) == []


def test_two_that_end_one_trial_are_no_error():
    first, second = open_study(), open_study()
    job = next(first.jobs(1))
    assert next(second.jobs(1)) == job
    train(first, job, 0.7)
    second.ended(job, "finished")
    assert [trial.value for trial in second.trials()] == [0.7]


def test_a_trial_that_broke_off_goes_on_with_the_next_start():
    study = open_study()
    job = next(study.jobs(1))
    study.ended(job, "broken")
    assert study.broken == [job] and states(study) == ["running"]
    assert next(open_study().jobs(1)) == job


def test_a_trial_whose_process_was_killed_while_it_was_drawn_does_not_count():
    study = open_study()
    study._study.ask({"lr": SPACE.parameters["lr"].distribution()})
    study = finish(open_study(), 2)
    assert [trial.number for trial in study.trials()] == [1, 2]


def test_more_trials_continue_a_study():
    first = drawn(finish(open_study(), 2))
    assert drawn(finish(open_study(), 4))[:2] == first
    assert list(open_study().jobs(3)) == []


@pytest.mark.parametrize("store", ["", "elsewhere/a.log", "sqlite:///study.db"])
def test_every_store_holds_the_same(store):
    study = finish(open_study(store=store), 3)
    assert [trial.value for trial in open_study(store=store).trials()] == [trial.value for trial in study.trials()]
    content = read_study(Path("study"))
    assert described_trials(content) == study.trials()
    assert content["settings"]["space"] == json.loads(json.dumps(SPACE.as_dict()))


def test_two_studies_share_a_store():
    finish(open_study("one", "sqlite:///all.db"), 2)
    assert open_study("two", "sqlite:///all.db").trials() == []


def _opens(folder, start):
    start.wait(60)
    open_study(folder, "sqlite:///all.db")


def test_studies_that_begin_at_once_share_a_new_database():
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)
    processes = [context.Process(target=_opens, args=(f"study{i}", start), daemon=True) for i in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"sampler": "sequential"}, "begun with --sampler random, not sequential"),
        ({"sampler_seed": 3}, "begun with --sampler-seed 0, not 3"),
        ({"options": {"seed": 7}}, "begun with --seed 0, not 7"),
        ({"options": {"val_size": 0.2}}, "begun with --val-size nothing, not 0.2"),
        ({"objective": "val/loss"}, "begun with --objective val/accuracy, not val/loss"),
        ({"space": SPACE.without(["lr"])}, "begun with --lr of the domain {'log-uniform': [0.0001, 1.0]}, not nothing"),
    ],
)
def test_another_study_in_the_folder_is_left_alone(changes, expected):
    finish(open_study(), 1)
    before = Path("study/study.json").read_bytes()
    with pytest.raises(UserError, match="another --study") as error:
        open_study(**changes)
    assert expected in str(error.value)
    assert Path("study/study.json").read_bytes() == before


def test_a_study_that_has_recorded_its_images_goes_on_with_no_others():
    finish(open_study(options={"seed": 0}), 1)
    # One of an earlier version has not.
    open_study(options={"seed": 0, IMAGES: "9 images"})
    finish(open_study("new", options={"seed": 0, IMAGES: "9 images"}), 1)
    with pytest.raises(UserError, match="begun with a --data-dir of 9 images, not 8 images"):
        open_study("new", options={"seed": 0, IMAGES: "8 images"})


@pytest.mark.parametrize("store", ["", "sqlite:///all.db"])
def test_a_study_goes_on_in_a_folder_that_was_renamed(store):
    finish(open_study("a", store), 2)
    Path("a").rename("b")
    study = open_study("b", store)
    assert [trial.number for trial in study.trials()] == [0, 1]
    finish(study, 3)
    assert [trial.number for trial in open_study("b", store).trials()] == [0, 1, 2]


def test_a_copy_goes_on_by_itself_where_it_has_the_store_and_is_refused_where_it_shares_it():
    finish(open_study("a"), 2)
    shutil.copytree("a", "b")
    finish(open_study("b"), 3)
    assert [len(open_study(name).trials()) for name in ("a", "b")] == [2, 3]
    finish(open_study("e", "sqlite:///e/own.db"), 2)
    shutil.copytree("e", "f")
    assert len(finish(open_study("f", "sqlite:///f/own.db"), 3).trials()) == 3
    finish(open_study("c", "sqlite:///all.db"), 2)
    shutil.copytree("c", "d")
    with pytest.raises(UserError, match="d: is a copy of .*/c, whose trials --store sqlite:///all.db has; go on with"):
        open_study("d", "sqlite:///all.db")


def test_a_store_that_is_not_there_is_not_made_for_trials_that_are():
    finish(open_study("a"), 1)
    with pytest.raises(UserError, match="--store gone/j.log: no such file; leave --store out, for they are in the f"):
        open_study("a", "gone/j.log")
    assert not Path("gone").exists()
    finish(open_study("b", "kept.log"), 1)
    with pytest.raises(UserError, match="--store gone.log: no such file; give the store that they .* with, kept.log"):
        open_study("b", "gone.log")
    Path("kept.log").unlink()
    with pytest.raises(UserError, match="--store kept.log: no such file; it had the trials of this study; put it back"):
        open_study("b", "kept.log")


def test_a_folder_and_a_store_that_do_not_belong_together_are_told():
    finish(open_study("here/a", "sqlite:///all.db"), 1)
    with pytest.raises(UserError, match="has a study 'a' already, whose trials lie in .*/here/a; give that folder"):
        open_study("there/a", "sqlite:///all.db")
    with pytest.raises(UserError, match="knows no trials of here/a, which has some; .*made with, sqlite:///all.db"):
        open_study("here/a", "sqlite:///other.db")
    Path("there/b/trial-0000").mkdir(parents=True)
    with pytest.raises(UserError, match="holds trials but no study.json"):
        open_study("there/b")


@pytest.mark.parametrize("store", ["sqlite:////nowhere/study.db", "nosuch://a", "damaged.log"])
def test_a_store_that_cannot_be_opened_is_told(store):
    Path("damaged.log").write_text("hello\nworld\n")
    with pytest.raises(UserError, match="--store .*: cannot be opened"):
        open_study(store=store)


def test_a_password_is_written_nowhere():
    study = open_study()
    study._store = "postgresql://me:secret@host/db"
    study._write()
    assert read_study(Path("study"))["store"] == "postgresql://me:***@host/db"
    # What an earlier version has written is mended.
    study._command = "python -m dtp.search --store postgresql://me:secret@host/db"
    study._write()
    open_study()
    assert "secret" not in Path("study/study.json").read_text()


@pytest.mark.parametrize("text", ["", "[1]", '{"id": 3}'])
def test_a_description_that_is_damaged_is_told(text):
    Path("study.json").write_text(text)
    with pytest.raises(UserError, match="does not describe a study"):
        read_study(Path("study.json"))
    with pytest.raises(UserError, match="no such study"):
        read_study(Path("nowhere"))


def _work(store, total, seconds):
    study = open_study(store=store)
    for job in study.jobs(total):
        with (job.folder.parent / f"{job.folder.name}.runs").open("a") as file:
            file.write("run\n")
        time.sleep(seconds)
        train(study, job)


@pytest.mark.parametrize("store", ["", "sqlite:///study.db"])
def test_processes_at_once_draw_each_trial_once(store):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_work, args=(store, 20, 0.0)) for _ in range(3)]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(120)
        assert [worker.exitcode for worker in workers] == [0, 0, 0]
    finally:
        for worker in workers:
            worker.kill()
    study = open_study(store=store)
    assert [trial.number for trial in study.trials()] == list(range(20))
    alone = finish(open_study("alone"), 20)
    assert drawn(study) == drawn(alone)


def test_a_process_killed_while_it_writes_leaves_a_store_that_goes_on():
    context = multiprocessing.get_context("fork")
    for pause in (0.05, 0.1, 0.2):
        worker = context.Process(target=_work, args=("", 60, 0.0))
        worker.start()
        deadline = time.monotonic() + 30
        while not any(Path("study").glob("trial-*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(pause)
        os.kill(worker.pid, signal.SIGKILL)
        worker.join(30)
        # Whoever finds its lock waits half a minute before it takes it away.
        Path("study/journal.log.lock").unlink(missing_ok=True)
    study = finish(open_study(), 60)
    assert states(study) == ["finished"] * 60
    assert [trial.value for trial in study.trials()] == [pytest.approx(accuracy(study._job(t))) for t in _stored(study)]


def _stored(study):
    return [trial for trial in study._study.get_trials() if study._is_whole(trial)]


def test_a_search_over_whole_numbers_and_one_choice():
    space = Space("a", "", {"batch_size": Parameter("integer", (4, 6)), "clip_norm": Parameter("choice", (1,))}, {})
    study = open_study(space=space)
    jobs = list(study.jobs(10))
    assert {job.options["batch_size"] for job in jobs} == {4, 5, 6} and {job.options["clip_norm"] for job in jobs} == {
        1
    }


def test_a_study_goes_on_after_a_full_disk_has_cut_the_last_line_of_its_store(monkeypatch):
    first = open_study()
    train(first, next(first.jobs(3)), 0.5)
    before = Path("study/journal.log").read_bytes()

    class Full:
        """A file on a disk that takes a part of what is written, and fails."""

        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, content):
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

    usual = open
    with monkeypatch.context() as patched:
        patched.setattr(
            "optuna.storages.journal._file.open",
            lambda name, mode: Full(usual(name, mode)) if mode == "ab" else usual(name, mode),
            raising=False,
        )
        with pytest.raises(OSError, match="No space left"):
            next(first.jobs(3))
    assert Path("study/journal.log").read_bytes() == before
    # A process that was killed there leaves it to the next one that writes.
    with usual("study/journal.log", "ab") as file:
        file.write(b'{"op_code": 6, "worker_id": "a')
    again = open_study()
    for job in again.jobs(3):
        train(again, job)
    values = [(trial.number, trial.state) for trial in open_study().trials()]
    assert values == [(0, "finished"), (1, "finished"), (2, "finished")] and again.trials()[0].value == 0.5
