"""What a run has measured, read back."""

import json
import subprocess
import sys

import pytest

from dtp.errors import UserError
from dtp.experiments.search.study import best_value
from dtp.run.reading import read_metrics, read_rows, read_summary, thinned

TEXT = "epoch,step,train/loss,val/accuracy\n0,1,2.5,\n0,2,nan,0.25\n,2,,0.5\n1,4,1.5,\n"


def test_a_metrics_file_by_column_and_by_row(tmp_path):
    path = tmp_path / "metrics.csv"
    # Of step 2 the later accuracy counts; what is not finite is none; the last line may have lost digits.
    path.write_text(TEXT + "1,5,0.5,0.9")
    assert read_metrics(path) == {
        "epoch": {1: 0, 2: 0, 4: 1},
        "train/loss": {1: 2.5, 4: 1.5},
        "val/accuracy": {2: 0.5},
    }
    assert read_rows(path) == [
        {"epoch": 0, "step": 1, "train/loss": 2.5},
        {"epoch": 0, "step": 2, "val/accuracy": 0.5},
        {"epoch": 1, "step": 4, "train/loss": 1.5},
    ]
    assert best_value(tmp_path, "val/accuracy") == 0.5


def test_without_files_nothing_is_read(tmp_path):
    assert read_metrics(tmp_path / "metrics.csv") == {} and read_rows(tmp_path / "metrics.csv") == []
    assert read_summary(tmp_path / "summary.json") is None


def test_a_summary_says_what_is_needed(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text(json.dumps({"epochs": 1, "steps": 2}))
    assert read_summary(path, ("epochs", "steps")) == {"epochs": 1, "steps": 2}
    with pytest.raises(UserError, match="summary.json: is not a summary .* its epochs, steps, test_loss, found"):
        read_summary(path)


def test_it_needs_no_torch():
    code = "import sys, dtp.run.reading; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_series_are_thinned_to_means_of_neighbours():
    assert thinned({1: 1.0, 2: 3.0, 3: 5.0}, most=2) == {2: 2.0, 3: 5.0}
    assert thinned({}, most=2) == {} and thinned({4: 2.0}, most=2) == {4: 2.0}
    assert len(thinned(dict.fromkeys(range(1001), 1.0), most=40)) <= 40
