"""Every command that the documentation or the README names is run: as it stands there, cut short by further options.

Data are a few made-up images in the files of the real datasets. A block whose commands cannot be run says so in the
line before it: ``% not run: reason``.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.run as torchrun

from dtp.algorithms.feedback_schedule import FeedbackSchedule
from dtp.cli.arguments import parse
from dtp.cli.program import COMMANDS, console
from dtp.cli.train import main as train
from dtp.experiments.report.command import make_parser as report_parser
from dtp.experiments.search.command import make_parser as search_parser
from dtp.experiments.sweep.command import extra_options
from dtp.experiments.sweep.command import make_parser as sweep_parser
from dtp.experiments.sweep.plan import read_sweep, sweep_path
from dtp.experiments.theory.command import make_parser as theory_parser
from tests.data import files
from tests.experiments.report.folders import make_run
from tests.experiments.theory.studies import SMALL
from tests.pages import OWN_NETWORK_AND_DATA, OWN_RULE, OWN_SWEEPS, PAGES, RESULTS, ROOT, blocks, commands

SHOWN = commands()
# Sweeps of which the runs are listed, each with its configuration, and not trained.
LISTED = {
    "dtp sweep ghawade-depth --data-dir ~/data": "trains what dtp sweep ghawade-depth does",
    **dict.fromkeys(
        (
            "dtp sweep lag --data imagefolder --data-dir DIR --tf32 --seeds 0",
            "dtp sweep lag-lenet --data imagefolder --data-dir DIR --seeds 0",
            "dtp sweep lag-lenet-90 --data imagefolder --data-dir DIR --seeds 0",
            "dtp sweep lag-lenet-tracking --data imagefolder --data-dir DIR",
            "dtp sweep lag-tracking --data imagefolder --data-dir DIR",
            "dtp sweep tracking-mlp-mnist --data-dir ~/data",
        ),
        "some of its settings differ only in the batches that train the feedback first, or are refused without any; no "
        "option of all settings makes them fewer",
    ),
}


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """What stands for the home folder of the commands, with its datasets."""
    home = tmp_path_factory.mktemp("home")
    files.write_idx(home / "data", test=10)
    files.write_cifar10(home / "data")
    files.write_imagenet32(home / "data")
    (home / "imagenet32").symlink_to("data")
    for part in ("train", "test"):
        files.write_folder(home / "photos" / part, count=8, size=(32, 32))
    return home


@pytest.fixture
def here(home, here, monkeypatch):
    """The current folder, with the files that pages tell to write; DIR is any folder of images."""
    monkeypatch.setenv("DTP_DATA_DIR", str(home / "data"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    files.accept_any_checksum(monkeypatch)
    monkeypatch.syspath_prepend(here)
    (here / "my_rule.py").write_text(OWN_RULE)
    (here / "my_file.py").write_text(OWN_NETWORK_AND_DATA)
    (here / "DIR").symlink_to(home / "photos")
    (here / "runs").mkdir()
    for path, text in OWN_SWEEPS.items():
        (here / path).write_text(text)
    # Runs of sweeps and searches, which are processes of their own (test_jobs.py), are trained in this one.
    in_process = SimpleNamespace(Popen=Process, run=subprocess.run, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr("dtp.experiments.jobs.subprocess", in_process)
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    yield here
    if wandb := sys.modules.get("wandb"):
        wandb.finish()
    # What --tf32 sets is set for the process.
    for place, allowed in zip(places, before, strict=True):
        place.allow_tf32 = allowed


class Process:
    """In the place of one that runs ``python -m dtp WORDS``, which has ended when it has begun."""

    def __init__(self, command, **_):
        self.returncode = train(command[command.index("dtp") + 1 :])

    def poll(self):
        return self.returncode


def shorter(*configs):
    """Options that leave one batch of eight images, after epochs of feedback alone, two maps a layer, one device."""
    epochs = 1 + max(FeedbackSchedule.of(config.algo).first_epoch for config in configs)
    words = f"--max-epochs {epochs} --limit-train-batches 1 --limit-val-batches 1 --batch-size 8 --devices 1".split()
    channels = getattr(configs[0].model, "channels", [])
    if channels:
        words += ["--channels", *["2"] * len(channels)]
    if any(getattr(config.algo, "feedback_warmup", 0) for config in configs):
        words += ["--feedback-warmup", "0"]
    if any((config.data.val_size or 0) > 1 for config in configs):
        words += ["--val-size", "8"]
    return words


def trained(folder="runs"):
    """Summaries of the runs below a folder that have trained."""
    found = {path.parent: json.loads(path.read_text()) for path in Path(folder).rglob("summary.json")}
    return {path: summary for path, summary in found.items() if summary["steps"] > 0}


def call(name, words):
    """What a command prints before it ends with status 0."""
    main = importlib.import_module(COMMANDS[name][0]).main
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            status = main(words)
        except SystemExit as ended:
            status = ended.code or 0
    assert status == 0
    return said.getvalue()


def check_train(words):
    if "--resume" in words:
        check_train(words[: words.index("--resume")])
    if "--init-weights" in words:
        weights = words[words.index("--init-weights") + 1]
        check_train(next(list(made[2:]) for made in SHOWN if made[-2:] == ("--run-dir", weights)))
    before, config = trained(), parse(words)
    call("train", [*words, *shorter(config)])
    new = [summary["algo"] for path, summary in trained().items() if path not in before]
    # The run that is resumed has finished already.
    assert new == ([] if "--resume" in words else [config.run.algo])


def check_sweep(words, listed=False):
    options, of_train = sweep_parser().parse_known_args(words)
    plan = replace(read_sweep(sweep_path(options.sweep)), seeds=[0])
    configs = [job.config() for job in plan.jobs(Path("planned"), extra_options(of_train)).values()]
    if listed:
        assert call("sweep", [*words, "--seeds", "0", "--list"]).count(": dtp train ") == len(configs)
        return
    call("sweep", [*words, "--seeds", "0", *shorter(*configs)])
    folder = Path("runs") / "sweeps" / plan.name
    assert len(trained(folder)) == len(configs)
    assert len(json.loads((folder / "results.json").read_text())["settings"]) == len(configs)
    assert (folder / f"{plan.name}.png").is_file()


def check_search(words):
    _, of_train = search_parser().parse_known_args(words)
    call("search", [*words, "--trials", "2", *shorter(parse(of_train))])
    assert len(trained()) == (0 if "--wandb-sweep" in words else 2)
    if "--write-preset" in words:
        assert parse(["--config", words[words.index("--write-preset") + 1]]).run.algo == "sdtp"


def check_theory(words):
    call("theory", [*words, *SMALL[words[0]].split()])
    assert json.loads(Path("runs", "theory", f"{words[0]}.json").read_text())["values"]


def check_report(words):
    for algo in ("bp", "dtp"):
        make_run(Path(words[0]) / algo, algo)
    call("report", words)
    assert Path(words[0], "report.md").is_file()


def check_slurm(words):
    if ">" in words:
        parses_in_bash(call("slurm", words[: words.index(">")]))
        return
    Path("sbatch").write_text('#!/bin/sh\nprintf "%s\\n" "$@" > submitted\n')
    Path("sbatch").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path.cwd()), prepend=os.pathsep)
        call("slurm", words)
    check_submitted(Path("submitted").read_text().splitlines())


def check_completion(words):
    pytest.importorskip("shtab")
    parses_in_bash(call("completion", words))


def parses_in_bash(text):
    assert text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


CHECKS = {
    "train": check_train,
    "sweep": check_sweep,
    "search": check_search,
    "theory": check_theory,
    "report": check_report,
    "slurm": check_slurm,
    "completion": check_completion,
}


def shown(of_dtp):
    """Of dtp, or of other programs."""
    found = [(words, page) for words, page in SHOWN.items() if (words[0] == "dtp") == of_dtp]
    return [pytest.param(list(words), id=f"{page}: {' '.join(words)}") for words, page in found]


@pytest.mark.parametrize("words", shown(of_dtp=True))
def test_every_command_of_dtp_does_what_it_is_for(words, home, here, capsys):
    listed = " ".join(words) in LISTED
    _, name, *words = [word.replace("~", str(home), 1) if word.startswith("~/") else word for word in words]
    if name == "--help":
        assert console([name]) == 0 and "usage: dtp COMMAND" in capsys.readouterr().out
    elif "--help" in words:
        assert f"usage: dtp {name} " in call(name, words)
    elif listed:
        check_sweep(words, listed=True)
    else:
        CHECKS[name](words)


def check_submitted(words):
    """The script is there, and dtp train takes the arguments that it is given."""
    at = next(at for at, word in enumerate(words) if word.endswith(".sh"))
    script = (ROOT / "slurm" / Path(words[at]).name).read_text()
    parse([*re.search(r'^dtp_train (.*) -- "\$@"$', script, re.MULTILINE)[1].split(), *words[at + 1 :]])


def check_torchrun(words):
    given = torchrun.get_args_parser().parse_args([word for word in words if word != "..."])
    assert (given.module, given.training_script, given.training_script_args[0]) == (True, "dtp", "train")
    parse(given.training_script_args[1:])


def check_engines(words, script, monkeypatch):
    monkeypatch.setattr(script, "peaks", lambda device: {"float32": 1.0})
    monkeypatch.setattr(sys, "argv", [*words, "--rounds", "1", "--batch-size", "2", "--", "--channels", *"22222"])
    script.main()


def check_rules(words, script, monkeypatch):
    def run(command, **_):
        return subprocess.CompletedProcess(command, train(command[2:]), "", "")

    monkeypatch.setattr(script, "subprocess", SimpleNamespace(run=run))
    more = ["--rules", "--mnist", os.environ["DTP_DATA_DIR"], "--output", "rules.json"]
    monkeypatch.setattr(sys, "argv", [*words, *more])
    script.main()
    assert json.loads(Path("rules.json").read_text())["bp"]["times_bp"] == 1


def test_what_is_only_listed_is_named_somewhere():
    assert {*LISTED} <= {" ".join(words) for words in SHOWN}


@pytest.mark.parametrize("words", shown(of_dtp=False))
def test_every_other_command_is_understood(words, here, monkeypatch):
    """By torch's launcher and dtp train, by scripts for SLURM and dtp train; the scripts that measure run."""
    if words[0] == "python":
        monkeypatch.syspath_prepend(ROOT / "benchmarks")
        name = Path(words[1]).stem
        {"engines": check_engines, "rules": check_rules}[name](words[1:], importlib.import_module(name), monkeypatch)
    else:
        {"sbatch": check_submitted, "torchrun": check_torchrun}[words[0]](words[1:])


def of_results():
    """The words of the commands on the pages of results, as bash reads them; of those for a GPU see the last test."""
    text = "\n".join(RESULTS.values())
    lines = [block for _, block in blocks(text, "bash")] + re.findall(
        r"`(python (?:benchmarks/|main\.py )[^`]+)`", text
    )
    say = 'say() { printf \'%s\\0\' "$@"; echo; }\ndtp() { say dtp "$@"; }\npython() { say python "$@"; }\n'
    script = say + "benchmarks/gpu.sh() { :; }\n" + "\n".join(lines)
    # Restricted and without a path: nothing else that stands there is run, and no file is written.
    bash = shutil.which("bash")
    done = subprocess.run([bash, "-rec", script], capture_output=True, text=True, env={"PATH": ""})
    assert done.returncode == 0 and not done.stderr, done.stderr
    return dict.fromkeys(tuple(line.strip("\0").split("\0")) for line in done.stdout.splitlines())


class UnderstoodError(Exception):
    """What was to be seen of a script has been: the words that it hands on to dtp train."""


def handed_on(words):
    """Of the words of a script, by its own parser, those that are options of dtp train; it goes no further."""

    def read_known(parser, *given):
        raise UnderstoodError(*read(parser, *given)[1:])

    def read_all(parser, *given):
        assert read(parser, *given)[1] == []
        raise UnderstoodError([])

    read = argparse.ArgumentParser.parse_known_args
    module, words = (f"{words[1]}.__main__", words[2:]) if words[0] == "-m" else (Path(words[0]).stem, words[1:])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        script = importlib.import_module(module)
        patch.setattr(argparse.ArgumentParser, "parse_known_args", read_known)
        patch.setattr(argparse.ArgumentParser, "parse_args", read_all)
        patch.setattr(sys, "argv", [module, *words])
        with pytest.raises(UnderstoodError) as understood:
            script.main()
    return understood.value.args[0]


def planned(words):
    options, of_train = sweep_parser().parse_known_args(words)
    plan = replace(read_sweep(sweep_path(options.sweep)), seeds=[0])
    assert next(iter(plan.jobs(Path("planned"), extra_options(of_train)).values())).config()


# As test_every_command_of_dtp_does_what_it_is_for, but for what takes hours.
READ = {
    "train": parse,
    "sweep": planned,
    "search": lambda words: parse(search_parser().parse_known_args(words)[1]),
    "theory": lambda words: theory_parser().parse_args(words),
    "report": lambda words: report_parser().parse_args(words),
}


@pytest.mark.parametrize("words", of_results(), ids=" ".join)
def test_commands_on_the_pages_of_results_are_understood(words, here, monkeypatch):
    """They took hours; they are read by what would run them, and no further."""
    program, name, *words = words
    if program == "dtp":
        READ[name](words)
    elif "--help" in words:
        with pytest.raises(SystemExit) as ended:
            parse(words) if name == "main.py" else handed_on([name, *words])
        assert not ended.value.code
    else:
        parse(words if name == "main.py" else handed_on([name, *words]))


def test_runs_that_pages_ask_of_the_script_for_a_gpu_are_known_to_it():
    known = re.findall(r"^ +\[([\w-]+)\]=", (ROOT / "benchmarks" / "gpu.sh").read_text(), re.MULTILINE)
    for text in (PAGES | RESULTS).values():
        for _, block in blocks(text, "bash"):
            if "benchmarks/gpu.sh" in block:
                assert set(re.findall(r" train (\S+)", block)) <= {*known, "NAME"}
