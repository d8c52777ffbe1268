"""The command: real runs, interrupted, shared, drawn."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from dtp.experiments.sweep.command import main
from dtp.experiments.sweep.plan import read_sweep
from dtp.run.folder import checkpoint_step, newest_checkpoint
from tests.experiments.sweep.helpers import made_up, sweep_file
from tests.runs import ROOT

pytestmark = pytest.mark.usefixtures("preloaded", "here")

QUICK = """
base: {algo: bp, data: digits, widths: [8], max_epochs: 1, lr_schedule: constant, diagnostics_every: 0}
grid: {lr: [0.01, 0.1]}
figure: {kind: final, metric: test/accuracy}
"""
NOT_VALIDATED = (
    "tiny.yaml: figure, metric: expected one that its runs measure, found val/accuracy, and none of them validates"
)


def command(*words):
    return subprocess.Popen(
        [sys.executable, "-m", "dtp", "sweep", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process, seconds=120):
    try:
        return *process.communicate(timeout=seconds), process.returncode
    finally:
        process.kill()


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_an_interrupted_sweep_goes_on_and_leaves_what_has_finished_alone(here):
    text = "base: {algo: bp, data: digits, widths: [8], lr_schedule: constant}\n"
    text += "variants: {short: {max_epochs: 2}, long: {max_epochs: 5000}}\n"
    text += "figure: {kind: final, metric: test/accuracy}\n"
    words = sweep_file(here, text), "--output", "out", "--jobs", 1
    short, long = here / "out" / "short" / "seed0", here / "out" / "long" / "seed0"
    made_up(read_sweep(words[0]).jobs(here / "out")["short", 0], {"test/accuracy": {20: 0.5}})
    before = times(short)
    process = command(*words)
    try:
        deadline = time.monotonic() + 120
        while newest_checkpoint(long) is None:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "1 of 2 runs have finished. The same command goes on." in error
    assert not (long / "summary.json").exists() and not (here / "out" / "tiny.png").exists()
    reached = checkpoint_step(newest_checkpoint(long))
    output, error, status = ended(command(*words, "--max-steps", reached + 5))
    assert status == 0, error
    assert times(short) == before
    summary = json.loads((long / "summary.json").read_text())
    assert summary["steps"] == reached + 5 and "# resumed: " in (long / "config.yaml").read_text()
    assert "[2/2] long/seed0 begins" in output and "short/seed0" not in output
    assert (here / "out" / "tiny.png").is_file()


def test_two_processes_share_a_sweep_and_do_each_run_once(here):
    words = sweep_file(here, QUICK), "--output", "out", "--jobs", 1
    processes = [command(*words) for _ in range(2)]
    try:
        said = [ended(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [status for *_, status in said] == [0, 0], said
    begun = [line for output, *_ in said for line in output.splitlines() if line.endswith("begins")]
    assert len(begun) == len(set(begun)) == 2
    # Whoever ended last drew all of it.
    assert json.loads((here / "out" / "results.json").read_text())["runs"] == {"finished": 2, "missing": 0}
    for config in (here / "out").rglob("config.yaml"):
        assert "# resumed: " not in config.read_text()


def test_drawing_alone_runs_nothing(here, capsys):
    words = [str(sweep_file(here, QUICK)), "--output", "out", "--draw"]
    assert main(words) == 0
    assert "there is nothing to draw" in capsys.readouterr().out and not (here / "out").exists()


def test_the_list_is_of_commands_that_can_be_typed(here, capsys):
    path = sweep_file(here, QUICK)
    assert main([str(path), "--list", "--data-dir", "my data", "--seeds", "3", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and not (here / "runs").exists()
    assert lines[0].startswith("runs/sweeps/tiny/lr=0.01/seed3: dtp train --algo bp --data digits --widths 8")
    assert "--data-dir 'my data'" in lines[0] and lines[-1].endswith("--seed 4")


@pytest.mark.parametrize(
    "words, expected",
    [
        ([], "A sweep is missing; expected a YAML file, or one of comparison, "),
        (["nothing"], "nothing: no such sweep; expected a YAML file, or one of comparison, "),
        (["tiny.yaml", "--jobs", "-1"], "--jobs: expected a number from 0 to 1000, found -1."),
        (["tiny.yaml", "--jobs", "1000000000"], "--jobs: expected a number from 0 to 1000, found 1000000000."),
        (["tiny.yaml", "--jobs", "x"], "--jobs: expected a whole number, found 'x'"),
        (["tiny.yaml", "--seeds", "1", "1"], "--seeds: expected each number once, found [1, 1]."),
        (["tiny.yaml", "--seeds", "-1"], "--seeds: expected a list of whole numbers from 0 to 4294967295, found [-1]."),
        (["tiny.yaml", "stray"], "Unexpected word 'stray'"),
        (["tiny.yaml", "--seed", "1"], "--seed: is not allowed here"),
        (["tiny.yaml", "--lr", "0.1"], "found 'lr 0.01' and 'lr 0.1' the same"),
        (["tiny.yaml", "--widhts", "3"], "Unknown option --widhts; did you mean --widths?"),
        (["tiny.yaml", "--jbos", "3"], "Unknown option --jbos; did you mean --jobs? (dtp sweep --help and dtp train "),
    ],
)
def test_mistakes_are_one_sentence_and_nothing_begins(here, capsys, words, expected):
    sweep_file(here, QUICK)
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and expected.lower() in line.lower()
    assert [path.name for path in here.iterdir()] == ["tiny.yaml"]


@pytest.mark.parametrize(
    "text, words, expected",
    [
        ("base: {algo: bp}", ["--val-size", "0"], NOT_VALIDATED),
        ("base: {algo: bp}", ["--limit-val-batches", "0"], NOT_VALIDATED),
        ("base: {max_epoch: 3}", [], "tiny.yaml: Unknown option --max-epoch; did you mean --max-epochs?"),
        ("grid: {lr: [0.1, fast]}", [], "tiny.yaml, lr fast: --lr: expected a number, found 'fast'"),
        ("variants: {a: {algo: bp}, b: {algo: bbp}}", [], "tiny.yaml, b: --algo bbp: no such choice"),
        (
            "figure: {metric: [train/loss, test/acuracy]}",
            [],
            "tiny.yaml: figure, metric: expected columns of metrics.csv of its runs, found test/acuracy; did you mean "
            "test/accuracy?",
        ),
        ("grid: {lr: [0.1, 0.2]}", ["--noise", "much"], "--noise: expected a number, found 'much'"),
    ],
)
@pytest.mark.parametrize("list_", [[], ["--list"]], ids=["run", "list"])
def test_a_mistake_in_the_options_of_the_file_names_it_and_the_setting(here, capsys, text, words, expected, list_):
    sweep_file(here, text + "\n")
    assert main(["tiny.yaml", *words, *list_]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {expected}")
    assert [path.name for path in here.iterdir()] == ["tiny.yaml"]


def test_what_a_rule_of_ones_own_measures_is_not_known(here, capsys):
    (here / "own.py").write_text("from dtp.algorithms import BP\nclass Own(BP): pass\n")
    sweep_file(here, "figure: {metric: [train/acuracy, mine/acuracy]}\n")
    assert main(["tiny.yaml", "--algo", "own:Own", "--list"]) == 0
    assert "--algo own:Own" in capsys.readouterr().out


def test_what_failed_before_it_was_trained_is_tried_again(here, capsys):
    text = "base: {algo: bp, data: mnist, widths: [8], max_epochs: 1}\nvariants: {one: {}}\n"
    words = [str(sweep_file(here, text)), "--output", "out"]
    folder = here / "out" / "one" / "seed0"
    folder.mkdir(parents=True)
    # Without --again, as the data may be there now; here they are not.
    (folder / "failed.txt").write_text("An older reason.\n")
    assert main(words) == 1
    said = capsys.readouterr().out
    assert "[1/1] one/seed0 begins" in said and "[1/1] one/seed0 failed: mnist: expected" in said
    assert "nothing to draw" in said and "mnist: expected" in (folder / "failed.txt").read_text()


def test_the_manual_loads_no_torch():
    code = "import sys, dtp.experiments.sweep.command as it\ntry: it.main(['--help'])\nexcept SystemExit: pass\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"],
        executable=sys.executable,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and "ghawade-depth" in done.stdout.replace("\n", "").replace(" ", ""), done.stderr
