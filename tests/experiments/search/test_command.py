"""``python -m dtp.search`` from its words to run folders, figure and preset, with trials that are trained."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from dtp.cli.arguments import parse
from dtp.cli.config import read_yaml
from dtp.cli.train import main as train
from dtp.experiments.search.command import _conclude, main
from dtp.experiments.search.study import read_study
from tests.experiments.search.helpers import open_study
from tests.experiments.search.helpers import train as write
from tests.runs import ROOT, contents

pytestmark = pytest.mark.usefixtures("preloaded", "here")

SMALL = "--algo bp --data digits --widths 8 --max-epochs 1 --limit-train-batches 4 --diagnostics-every 0".split()
SEARCH = [*SMALL, "--study", "study"]
# Two processes of two threads would disturb each other and whoever else is at work.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def fails(capsys, words, *expected):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    for text in expected:
        assert text in error


def begin(*words, new=False):
    """``new``: as users do, with its command line where the system tells it."""
    return subprocess.Popen(
        [sys.executable, "-m", "dtp", "search", *words],
        executable=sys.executable if new else None,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(*processes):
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(found, process=None, seconds=120):
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.05)
    return value


def trainers(folder):
    """Ids of the processes that train in a folder, given from the current one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words, where = path.read_bytes().decode().split("\0"), (path.parent / "cwd").readlink()
        except OSError:
            continue
        # Other checkouts test beside this one.
        if where == Path.cwd() and "dtp" in words and any(word.startswith(str(folder)) for word in words):
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
def test_an_option_of_ones_own_that_a_resumed_run_may_change_is_part_of_what_is_found(here, capsys):
    Path("mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from dtp.algorithms import BP\n"
        "from dtp.algorithms.options import AlgorithmOptions\n"
        "from dtp.fields import option\n"
        "class Mine(BP):\n"
        "    @dataclass\n"
        "    class Options(AlgorithmOptions):\n"
        "        alpha: float = option(0.5, varies='resumed', search={'uniform': [0, 1]})\n"
        "        gamma: float = option(0.5, varies='resumed')\n"
    )
    words = [*SEARCH, "--algo", "mine:Mine", "--trials", "1"]
    assert main([*words, "--gamma", "0.25", "--write-preset", "my best.yaml"]) == 0
    assert "train with: dtp train --config 'my best.yaml' --trust\n" in capsys.readouterr().out
    (trial,) = read_study(Path("study"))["trials"]
    comment = " ".join(Path("my best.yaml").read_text().partition("\nalgo:")[0].replace("\n#", "").split())
    assert comment.endswith("Domain: what the options of mine:Mine say.")
    assert read_yaml(Path("my best.yaml"))["alpha"] == trial["options"]["alpha"] != 0.5
    assert read_study(Path("study"))["settings"]["options"]["gamma"] == 0.25


@pytest.mark.slow
def test_a_search_ends_with_the_best_trial_a_figure_and_a_preset_that_trains(here, capsys):
    Path("space.yaml").write_text("# Mine: for a test.\nlr: {choice: [0.05, 1.0e+30]}\nmomentum: {uniform: [0, 0.5]}\n")
    words = [*SEARCH, "--space", "space.yaml", "--trials", "2", "--sampler-seed", "3", "--jobs", "2"]
    assert main([*words, "--write-preset", "best.yaml"]) == 0
    said = capsys.readouterr().out
    trials = read_study(Path("study"))["trials"]
    states = {trial["state"]: trial for trial in trials}
    assert len(trials) == 2 and set(states) == {"finished", "diverged"}
    assert states["diverged"]["options"]["lr"] == 1e30 and "Training diverged" in states["diverged"]["why"]
    assert "2 trials: " in said and " diverged: Training diverged" in said
    best = Path("study") / states["finished"]["folder"]
    assert f"Best: {best}, test accuracy" in said
    # Of the tests nothing is said but the one of the best.
    assert said.count("test accuracy") == 1
    assert Path("study/distribution.png").stat().st_size > 1000
    assert len(json.loads(Path("study/distribution.json").read_text())["studies"][0]["trials"]) == 2

    preset = read_yaml(Path("best.yaml"))
    trained = read_yaml(best / "config.yaml")
    # The trials were short; what is trained with the values may be as long as with the preset that they build on.
    assert {**{name: trained[name] for name in preset}, "max_epochs": 30} == preset
    assert preset["lr"] == 0.05 and preset["widths"] == [8] and preset["algo"] == "bp"
    assert not {"limit_train_batches", "seed", "study", "diagnostics_every"} & set(preset)
    text = Path("best.yaml").read_text()
    assert text.startswith("# Ours: best of 2 trials of a random search (seed 3), by val/accuracy")
    assert "in runs of 1 epoch of 4 batches" in text.replace("\n# ", " ")
    assert train("--config best.yaml --max-epochs 1 --limit-train-batches 4 --run-dir again".split()) == 0
    found = json.loads(Path("again/summary.json").read_text())
    assert found["val_accuracy"] == states["finished"]["value"]

    # Once more: nothing is trained, and what is there stays as it is.
    capsys.readouterr()
    before = contents(best)
    assert main(words) == 0
    assert "trial-0000 of" not in capsys.readouterr().out and contents(best) == before
    fails(capsys, [*words, "--write-preset", "best.yaml"], "--write-preset best.yaml: exists already")


@pytest.mark.slow
def test_two_processes_at_once_share_the_trials():
    words = [*SEARCH, "--trials", "3", "--jobs", "1"]
    processes = [begin(*words), begin(*words)]
    try:
        said = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        end(*processes)
    assert [process.returncode for process in processes] == [0, 0], said
    trials = read_study(Path("study"))["trials"]
    assert [trial["number"] for trial in trials] == [0, 1, 2]
    assert [trial["state"] for trial in trials] == ["finished"] * 3
    # Each is trained by one of them, and none by both.
    begun = [line.split()[0] for text in said for line in text.splitlines() if " of 3: " in line]
    assert sorted(begun) == [f"trial-{i:04d}" for i in range(3)]
    for i in range(3):
        assert Path(f"study/trial-{i:04d}.log").read_text().count("run folder") == 1


LONG = "--algo dtp --data digits --widths 64 --max-epochs 3000 --trials 1 --jobs 1 --study study".split()


def checkpoints():
    return list(Path("study/trial-0000/checkpoints").glob("step=*.ckpt"))


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on_where_its_trial_was():
    search = second = third = begin(*LONG, new=True)
    try:
        wait_for(checkpoints, search)
        search.kill()
        search.wait(30)
        # The trial lives on by itself, and nobody else begins it.
        (trial,) = trainers("study/trial-0000")
        second = begin(*LONG, new=True)
        said = second.communicate(timeout=120)[0]
        assert second.returncode == 0 and "trial-0000 is run elsewhere" in said and "1 of 1 trials are run" in said
        assert trainers("study/trial-0000") == [trial]
        os.kill(trial, signal.SIGKILL)
        wait_for(lambda: not trainers("study/trial-0000"))
        third = begin(*LONG, new=True)
        wait_for(lambda: "goes on from batch" in Path("study/trial-0000.log").read_text(), third)
        third.send_signal(signal.SIGTERM)
        said = third.communicate(timeout=120)[0]
        assert third.returncode == 75 and "trial-0000 is taken up again" in said, said
        assert read_study(Path("study"))["trials"][0]["state"] == "running"
        assert trainers("study/trial-0000") == []
    finally:
        end(*{search, second, third})
        for process in trainers("study/trial-0000"):
            os.kill(process, signal.SIGKILL)


def test_the_preset_is_written_by_the_process_that_ends_last(capsys):
    first, second, preset = open_study(), open_study(), Path("best.yaml")
    jobs = list(itertools.islice(first.jobs(2), 2))
    write(second, jobs[0], 0.5)
    assert _conclude(second, preset) == 0 and not preset.exists()
    assert "best.yaml is not written, for one of these may be the best" in capsys.readouterr().out
    write(first, jobs[1], 0.8)
    assert _conclude(first, preset) == 0 and read_yaml(preset)["lr"] == jobs[1].options["lr"]


@pytest.mark.slow
def test_a_mistake_that_only_training_finds_stops_the_search_at_the_first_trial(capsys):
    words = ["--algo", "bp", "--data", "mnist", "--data-dir", "nowhere", "--trials", "3", "--jobs", "1"]
    fails(capsys, [*words, "--study", "study"], "study/trial-0000: ", "nowhere")
    assert not Path("study/trial-0001").exists()


@pytest.mark.parametrize(
    "words, expected",
    [
        ("--trials 0", "--trials: expected a whole number of at least 1, found 0"),
        ("--trials many", "--trials: expected a whole number, found 'many'"),
        ("--sampler best", "--sampler: expected one of random, sequential; found 'best'"),
        ("--jobs -1", "--jobs: expected a whole number of at least 0"),
        ("--sampler-seed -1", "--sampler-seed: expected a whole number of at least 0"),
        ("--trials 1000000000", "--trials: expected a whole number of at most 1000000, found 1000000000"),
        ("--jobs 1000000000", "--jobs: expected a whole number of at most 1000"),
        ("--sampler-seed 4294967296", "--sampler-seed: expected a whole number of at most 4294967295"),
        ("--random-first 0", "--random-first: expected a whole number of at least 1"),
        ("--widhts 3", "Unknown option --widhts; did you mean --widths?"),
        (
            "--trails 3",
            "Unknown option --trails; did you mean --trials? (dtp search --help and dtp train --help list all)",
        ),
        ("--algo sdpt", "--algo sdpt: no such choice; did you mean sdtp?"),
        ("--run-dir a", "--run-dir: is not allowed here, for each trial has a folder of its own"),
        ("--resume auto", "--resume: is not allowed here"),
        ("--limit-val-batches 0", "trials are judged by their validation"),
        ("--lr 0.1 --beta2 0 --eps 1e-8", "nothing is left to be searched: the command line sets lr, beta2, eps"),
        ("--space nowhere.yaml", "--space nowhere.yaml: no such file"),
        ("--space noisy.yaml", "noisy.yaml: --noise is an option of --algo"),
        ("--space damaged.yaml", "damaged.yaml: lr: expected one of log-uniform"),
        ("--space misspelt.yaml", "misspelt.yaml: --optimizer: expected one of sgd, adam, rmsprop"),
        ("--output a.png", "--output: expected --draw with it"),
        ("--draw nowhere --output a.png", "nowhere: no such study"),
        ("--draw nowhere --trials 3 --lr 3", "--draw: expected studies alone, found '--lr'"),
        ("--draw a b", "--draw: expected --output PNG with it"),
        ("--study noisy.yaml", "noisy.yaml"),
        ("--write-preset noisy.yaml", "--write-preset noisy.yaml: exists already, and nothing is overwritten"),
        ("--write-preset no/a.yaml", "--write-preset no/a.yaml: expected a folder no, found none; make it"),
        ("--wandb-sweep noisy.yaml", "--wandb-sweep noisy.yaml: exists already"),
        ("--store nosuch://a", "--store nosuch://a: cannot be opened"),
    ],
)
def test_mistakes_are_told_in_one_sentence(words, expected, capsys):
    Path("noisy.yaml").write_text("noise: {uniform: [0.1, 0.2]}\n")
    Path("damaged.yaml").write_text("lr: {unifrom: [0.1, 0.2]}\n")
    Path("misspelt.yaml").write_text("lr: {uniform: [0.1, 0.2]}\noptimizer: {choice: [sgd, adma, adam]}\n")
    fails(capsys, [*([] if "--algo" in words or "--draw" in words else ["--algo", "bp"]), *words.split()], expected)
    assert not list(Path().rglob("trial-*"))


def test_help_needs_neither_torch_nor_optuna():
    script = (
        "import sys\nfrom dtp.experiments.search.command import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'optuna', 'matplotlib'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        executable=sys.executable,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and "--sampler" in done.stdout, done.stderr


def test_without_optuna_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setitem(sys.modules, "optuna.distributions", None)
    fails(capsys, SEARCH, "pip install 'optuna")


def words_of_agent(path):
    """The words that a W&B agent calls main.py with, for each of two settings of the parameters, by W&B's own code."""
    from wandb.sdk.launch.sweeps import utils

    sweep = utils.load_sweep_config(str(path))
    assert sweep is not None
    for corner in (0, -1):
        values = {}
        for name, parameter in sweep["parameters"].items():
            ends = parameter.get("values") or [parameter.get("min"), parameter.get("max")]
            values[name] = {"value": parameter["value"] if "value" in parameter else ends[corner]}
        arguments = utils.create_sweep_command_args({"args": values})
        command = []
        for word in sweep["command"]:
            command += arguments["args"] if word == "${args}" else [str(word)]
        yield command


@pytest.mark.parametrize("rule", ["bp", "sdtp", "vanilla-dtp", "fw-dtp"])
def test_a_wandb_sweep_calls_main_with_values_of_the_domain(rule, here):
    words = f"--algo {rule} --data mnist --widths 8 8 --lr-schedule=constant --noverbose".split()
    assert main([*words, "--wandb-sweep", "sweep.yaml", "--sampler", "sequential", "--trials", "7"]) == 0
    content = yaml.safe_load(Path("sweep.yaml").read_text())
    assert (content["method"], content["run_cap"]) == ("bayes", 7)
    assert content["metric"] == {"name": "val/accuracy", "goal": "maximize"}
    assert content["parameters"]["lr"]["distribution"] == "log_uniform_values"
    low, high = (parse(command[3:]) for command in words_of_agent("sweep.yaml"))
    bounds = content["parameters"]["lr"]
    assert (low.algo.lr, high.algo.lr) == (bounds["min"], bounds["max"])
    for config in (low, high):
        assert (config.run.algo, config.run.data, config.model.widths) == (rule, "mnist", [8, 8])
        assert config.run.logger == "wandb" and config.algo.optimizer == content["parameters"]["optimizer"]["value"]
    assert not Path("runs").exists()


def test_a_wandb_sweep_has_whole_numbers_for_whole_numbers_and_refuses_lists(here, capsys):
    Path("a.yaml").write_text("batch_size: {log-integer: [16, 256]}\nlr_period: {integer: [1, 3]}\n")
    assert main(["--algo", "bp", "--space", "a.yaml", "--wandb-sweep", "sweep.yaml"]) == 0
    content = yaml.safe_load(Path("sweep.yaml").read_text())
    values = content["parameters"]["batch_size"]["values"]
    assert (values[0], values[-1]) == (16, 256) and all(isinstance(value, int) for value in values)
    assert content["parameters"]["lr_period"] == {"distribution": "int_uniform", "min": 1, "max": 3}
    low, high = (parse(command[3:]) for command in words_of_agent("sweep.yaml"))
    assert (low.data.batch_size, high.data.batch_size) == (16, 256)
    Path("b.yaml").write_text("widths: {choice: [[8], [8, 8]]}\n")
    fails(capsys, ["--algo", "bp", "--space", "b.yaml", "--wandb-sweep", "c.yaml"], "widths of the domain has lists")
