"""Many runs: each once, several at a time, shared between processes, stopped without loss."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dtp.errors import UserError
from dtp.experiments.jobs import FAILURE_FILE, Job, run_jobs, try_claim, visible_gpus
from dtp.system.locks import try_lock
from tests.data.files import write_folder
from tests.runs import ROOT, contents

pytestmark = pytest.mark.usefixtures("preloaded", "here")

SMALL = {"algo": "bp", "data": "digits", "widths": [8], "max_epochs": 1, "diagnostics_every": 0}


def test_runs_are_done_once(here):
    jobs = [Job(Path("all") / f"seed{seed}", {**SMALL, "seed": seed}) for seed in (0, 1)]
    said = []
    assert set(run_jobs(jobs, 2, tell=said.append).values()) == {"finished"}
    assert [json.loads((job.folder / "summary.json").read_text())["seed"] for job in jobs] == [0, 1]
    assert any("[1/2] all/seed0" in line and "test accuracy" in line for line in said)
    before, said = contents(here), []
    assert set(run_jobs(jobs, 2, tell=said.append).values()) == {"finished"}
    assert contents(here) == before and said == []


def test_a_longer_sweep_of_the_same_goes_on(here):
    options = {**SMALL, "lr_schedule": "constant"}
    run_jobs([Job(Path("run"), options)], tell=lambda text: None)
    run_jobs([Job(Path("run"), {**options, "max_epochs": 2})], tell=lambda text: None)
    assert json.loads(Path("run/summary.json").read_text())["epochs"] == 2


def test_what_fails_by_its_own_fault_is_remembered_and_leaves_the_others_alone(here):
    jobs = [Job(Path("bad"), {**SMALL, "lr": 1e30}), Job(Path("good"), SMALL)]
    states = run_jobs(jobs, 1, tell=lambda text: None)
    assert states == {Path("bad"): "failed", Path("good"): "finished"}
    assert "diverged" in jobs[0].failure and jobs[1].failure == ""
    before = contents(here)
    assert run_jobs(jobs, 1, tell=lambda text: None)[Path("bad")] == "failed"
    assert contents(here) == before
    said = []
    run_jobs(jobs, 1, again=True, tell=said.append)
    assert any("bad begins" in line for line in said) and (jobs[0].folder / FAILURE_FILE).is_file()


def test_nobody_else_begins_a_run_before_its_end_has_been_told(here):
    jobs, held = [Job(Path("bad"), {**SMALL, "lr": 1e30}), Job(Path("good"), SMALL)], []
    for _ in range(2):
        # The second time both have ended before.
        run_jobs(jobs, 1, tell=lambda text: None, ended=lambda job, state: held.append(try_claim(job) is None))
    assert held == [True] * 4
    for job in jobs:
        claim = try_claim(job)
        assert claim is not None
        claim.close()


def test_a_disk_or_a_lock_in_the_way_is_not_the_runs_own_fault(here):
    job = Job(Path("run"), SMALL)
    run_jobs([Job(Path("run"), {**SMALL, "max_steps": 1, "lr_schedule": "constant"})], tell=lambda text: None)
    longer = Job(Path("run"), {**SMALL, "max_epochs": 2, "lr_schedule": "constant"})
    with try_lock(Path("run/.lock")):
        said = []
        assert run_jobs([longer], tell=said.append) == {Path("run"): "broken"}
    assert "another process" in said[-1] and job.failure == ""
    assert run_jobs([longer], tell=lambda text: None) == {Path("run"): "finished"}


def test_a_mistake_in_the_middle_leaves_the_others_their_checkpoints(here):
    """A summary that is damaged after the check, by then with a run under way."""
    long = Job(Path("long"), {**SMALL, "max_epochs": 4000})

    def jobs():
        yield long
        while not list(Path("long/checkpoints").glob("step=*.ckpt")):
            time.sleep(0.05)
        Path("bad").mkdir()
        Path("bad/summary.json").write_text("{")
        yield Job(Path("bad"), SMALL)

    with pytest.raises(UserError, match="summary"):
        run_jobs(jobs(), 2, tell=lambda text: None)
    assert "everything is in" in Path("long.log").read_text()


def test_a_damaged_summary_is_found_before_anything_begins(here):
    Path("bad").mkdir()
    Path("bad/summary.json").write_text("{")
    with pytest.raises(UserError, match="summary"):
        run_jobs([Job(Path("good"), SMALL), Job(Path("bad"), SMALL)])
    assert not Path("good").exists()


def test_a_run_that_finished_longer_or_was_chosen_otherwise_is_not_this_one(here):
    options = {**SMALL, "lr_schedule": "constant", "max_epochs": 2}
    run_jobs([Job(Path("run"), options)], tell=lambda text: None)
    with pytest.raises(UserError, match="after 2 epochs"):
        run_jobs([Job(Path("run"), {**options, "max_epochs": 1})])
    with pytest.raises(UserError, match="--test-weights best, found last"):
        run_jobs([Job(Path("run"), {**options, "test_weights": "last"})])


def test_what_none_could_begin_for_is_not_tried_with_all(here):
    missing = {"algo": "bp", "data": "mnist", "data_dir": "nowhere", "max_epochs": 1}
    jobs = [Job(Path(f"run{seed}"), {**missing, "seed": seed}) for seed in range(4)]
    said = []
    states = list(run_jobs(jobs, 1, tell=said.append).values())
    assert states == ["failed", "failed", "waiting", "waiting"] and "would fail alike" in said[-1]
    assert not Path("run2").exists()


def test_nothing_begins_where_one_is_a_mistake(here):
    jobs = [Job(Path("good"), SMALL), Job(Path("bad"), {**SMALL, "widhts": [3]})]
    with pytest.raises(UserError, match="--widhts"):
        run_jobs(jobs)
    assert not Path("good").exists()


def test_a_folder_with_another_run_is_refused(here):
    run_jobs([Job(Path("run"), SMALL)], tell=lambda text: None)
    before = contents(here)
    with pytest.raises(UserError, match="--lr"):
        run_jobs([Job(Path("run"), {**SMALL, "lr": 0.07})])
    assert contents(here) == before


def test_a_run_on_other_images_is_refused_and_the_same_ones_may_have_moved(here):
    write_folder(Path("flowers"))
    write_folder(Path("birds"), classes=("finch", "wren"))
    options = {**SMALL, "data": "imagefolder", "image_size": 8, "batch_size": 8}
    run_jobs([Job(Path("run"), {**options, "data_dir": "flowers"})], tell=lambda text: None)
    Path("flowers").rename("petals")
    before = contents(here / "run")
    assert run_jobs([Job(Path("run"), {**options, "data_dir": "petals"})]) == {Path("run"): "finished"}
    with pytest.raises(UserError, match="a --data-dir of 20 images.*not 20 images.*another folder for all runs"):
        run_jobs([Job(Path("run"), {**options, "data_dir": "birds"})])
    assert contents(here / "run") == before


def test_what_another_process_runs_is_left_to_it(here):
    with try_lock(here / ".run.claim"):
        assert run_jobs([Job(Path("run"), SMALL)], tell=lambda text: None) == {Path("run"): "elsewhere"}
    assert not Path("run").exists()


def test_what_another_process_has_finished_meanwhile_counts_as_finished(here):
    run_jobs([Job(Path("done"), SMALL)], tell=lambda text: None)
    with try_lock(here / ".run.claim"):
        states = run_jobs([Job(Path("run"), SMALL)], ended=lambda job, state: Path("done").rename("run"))
    assert states == {Path("run"): "finished"}


def test_a_run_that_ends_without_a_word_is_no_mistake_of_its_options(here, monkeypatch):
    # As where the disk has no room for what it says.
    monkeypatch.setattr("dtp.experiments.jobs.last_line", lambda log, begin: "")
    missing = Job(Path("run"), {**SMALL, "data": "mnist", "data_dir": "nowhere"})
    said = []
    assert run_jobs([missing], tell=said.append) == {Path("run"): "broken"}
    assert said[-1] == "[1/1] run ended with status 2: it said nothing (run.log)"
    # Nor is silence a reason that the others share.
    jobs = [Job(Path(f"run{i}"), {**missing.options, "seed": i}) for i in range(3)]
    assert set(run_jobs(jobs, 1, tell=said.append).values()) == {"broken"}


def test_gpus_are_those_of_the_environment(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert visible_gpus() == ["2", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


SCRIPT = """
import sys
from pathlib import Path
from dtp.cli.commands import run_command
from dtp.experiments.jobs import Job, run_jobs

def command(argv):
    options = {"algo": "dtp", "data": "digits", "max_epochs": 400, "diagnostics_every": 0}
    run_jobs([Job(Path("short"), {**options, "max_epochs": 1}), Job(Path("long"), options)], 1)
    return 0

sys.exit(run_command(command, []))
"""


@pytest.mark.parametrize("signum, status", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_stops_all_with_checkpoints(here, signum, status):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    try:
        deadline = time.monotonic() + 90
        while not list(Path("long/checkpoints").glob("step=*.ckpt")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        process.send_signal(signum)
        error = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == status and "1 of 2 runs have finished" in error and "Traceback" not in error
    assert Path("short/summary.json").is_file() and not Path("long/summary.json").exists()
    assert "everything is in" in Path("long.log").read_text()


def test_jobs_may_be_made_up_from_what_has_ended(here):
    ended = []

    def jobs():
        yield Job(Path("bad"), {**SMALL, "lr": 1e30})
        # Asked for when there is a process for it.
        assert [(job.folder.name, state) for job, state in ended] == [("bad", "failed")]
        yield Job(Path("good"), SMALL)

    states = run_jobs(jobs(), 1, tell=lambda text: None, ended=lambda job, state: ended.append((job, state)))
    assert states == {Path("bad"): "failed", Path("good"): "finished"} == {job.folder: state for job, state in ended}


def test_a_run_whose_caller_was_killed_is_not_begun_twice(here):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert "begins" in process.stdout.readline()
        process.kill()
        process.wait(30)
        # The run itself lives on.
        job = Job(Path("short"), {"algo": "dtp", "data": "digits", "max_epochs": 1, "diagnostics_every": 0})
        assert run_jobs([job], tell=lambda text: None) == {Path("short"): "elsewhere"}
        deadline = time.monotonic() + 90
        while not Path("short/summary.json").is_file():
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.kill()
        process.communicate()
