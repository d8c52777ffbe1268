"""Files that are damaged, of others, or cannot be read: one sentence, whoever reads them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dtp.cli import commands
from dtp.errors import UserError
from dtp.experiments.report.command import main as report_on
from dtp.experiments.report.reading import read_run
from dtp.experiments.search.study import best_value, read_study
from dtp.run.folder import Run
from dtp.run.loggers import MetricsCSV
from dtp.run.reading import read_metrics
from tests.runs import ROOT

GOOD = {"epochs": 1, "steps": 2, "test_loss": 0.5}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1, 2]",
        "{",
        "\xff",
        100_000 * "[",
        json.dumps({**GOOD, "epochs": "many"}),
        json.dumps({**GOOD, "steps": None}),
        json.dumps({**GOOD, "test_loss": []}),
        json.dumps({**GOOD, "wall_seconds": "long"}),
        json.dumps({**GOOD, "algo": 3}),
    ],
)
def test_a_damaged_summary_is_told(tmp_path, text):
    (tmp_path / "summary.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="summary.json: is not a summary"):
        _ = Run(tmp_path).summary


CONFIG = {"algo": "bp", "model": "mlp", "data": "digits", "seed": 0, "max_epochs": 1, "batch_size": 8}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("summary", {"versions": "1"}),
        ("summary", {"versions": {"commit": 1}}),
        ("summary", {"wall_seconds": "long"}),
        ("summary", {"test_accuracy": [1]}),
        ("summary", {"test_top5": "high"}),
        ("config", {"max_epochs": "many"}),
        ("config", {"batch_size": None}),
        ("config", {"seed": [1]}),
        ("config", {"extra_feedback_epochs": -1}),
        ("config", {"feedback_warmup_epochs": "x"}),
    ],
)
def test_a_report_of_a_damaged_run_is_one_sentence(tmp_path, capsys, name, change):
    def report(summary, config):
        (tmp_path / "summary.json").write_text(json.dumps(summary))
        (tmp_path / "config.yaml").write_text(json.dumps(config))
        return report_on([str(tmp_path), "--no-figures"])

    assert report(GOOD, CONFIG) == 0
    capsys.readouterr()
    changed = {"summary": GOOD, "config": CONFIG}
    assert report(**{**changed, name: {**changed[name], **change}}) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / name}") and "expected" in line


@pytest.mark.parametrize("read", [read_metrics, lambda path: MetricsCSV(path.parent).resume_at(9)])
def test_damaged_metrics_are_told(tmp_path, read):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,val/accuracy\n0,1," + 200_000 * "9" + "\n")
    with pytest.raises(UserError, match="metrics.csv: is not a metrics file"):
        read(path)
    with pytest.raises(UserError, match="metrics.csv: is not a metrics file"):
        read_run(tmp_path)
    with pytest.raises(UserError, match="metrics.csv: is not a metrics file"):
        best_value(tmp_path, "val/accuracy")


SETTINGS = {"options": {}, "space": {}, "objective": "val/accuracy", "sampler": "random"}
STUDY = {"id": "a", "command": "b", "store": "c", "settings": SETTINGS, "trials": []}
TRIAL = {"number": 0, "state": "finished", "value": 0.5, "options": {}, "why": "", "folder": "trial-0000"}


@pytest.mark.parametrize(
    "change",
    [
        {"id": None},
        {"settings": []},
        {"settings": {}},
        {"settings": {**SETTINGS, "objective": "loss"}},
        {"trials": {}},
        {"trials": [1]},
        {"trials": [{}]},
        {"trials": [{**TRIAL, "value": "high"}]},
        {"trials": [{**TRIAL, "more": 1}]},
    ],
)
def test_a_foreign_study_is_told(tmp_path, change):
    path = tmp_path / "study.json"
    path.write_text(json.dumps({**STUDY, "trials": [TRIAL]}))
    assert read_study(path)["id"] == "a"
    path.write_text(json.dumps({**STUDY, **change}))
    with pytest.raises(UserError, match="does not describe a study"):
        read_study(path)


def test_what_the_system_refuses_is_one_sentence(tmp_path, capsys):
    def command(argv):
        raise PermissionError(13, "Permission denied", "colleague/run")

    assert commands.run_command(command, []) == 2
    assert capsys.readouterr().err == (
        "error: colleague/run: cannot be read or written (Permission denied); fix its permissions or give another "
        "path.\n"
    )


@pytest.mark.slow
def test_a_user_without_a_name_or_a_home_can_train(tmp_path):
    """As in a container that is started for a user whom it does not know."""
    code = (
        "import getpass, os, pathlib, sys\n"
        "def unknown(*_): raise KeyError('uid not found')\n"
        "def homeless(*_): raise RuntimeError('Could not determine home directory.')\n"
        "getpass.getuser, pathlib.Path.home = unknown, homeless\n"
        "from dtp.cli.train import main\n"
        "sys.exit(main('--max-epochs 1 --limit-train-batches 2 --run-dir run'.split()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLCONFIGDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert Path(tmp_path, "run", "summary.json").is_file()
