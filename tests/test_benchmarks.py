"""What the scripts in benchmarks/ write of what they measured, and what they say where they cannot."""

import json
import subprocess
import sys

import pytest

from tests.runs import ROOT


def engines(monkeypatch, capsys, *words):
    """What engines.py prints of a tiny network."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import engines as script

    tiny = "--model mlp --data digits --shape 1 8 8 --batch-size 4 --rounds 1".split()
    monkeypatch.setattr(sys, "argv", ["engines.py", *tiny, *words])
    monkeypatch.setattr(script, "peaks", lambda device: {"matrix_product": 1.0})
    script.main()
    return json.loads(capsys.readouterr().out)


def test_no_engine_is_compared_with_a_literal_form_that_was_not_measured(monkeypatch, capsys):
    alone = engines(monkeypatch, capsys, "--engines", "reduced", "expected")
    assert "speedup_over_literal" not in alone and alone["ratio_to_bp"].keys() == {"bp", "reduced", "expected"}
    beside = engines(monkeypatch, capsys, "--engines", "reduced", "literal")
    assert beside["speedup_over_literal"]["literal"] == {"step": 1.0, "feedback": 1.0}


def test_the_limit_of_many_iterations_is_measured_too(monkeypatch, capsys):
    found = engines(monkeypatch, capsys, "--engines", "expected", "--", "--feedback-iterations", "inf")
    assert found["arithmetic"]["expected"]["formula_tflop"] == 0.0 and found["milliseconds"]["expected"]["step"] > 0


def mistaken(name, *words):
    """What a script says that cannot go on."""
    command = [sys.executable, ROOT / "benchmarks" / name, *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode
    return ended.stderr.strip()


def test_the_sentence_of_a_run_that_fails_is_shown(tmp_path):
    for said in (
        mistaken("sync.py", "--seeds", "0", "--data", "nosuch"),
        mistaken("rules.py", "--rules", "bp", "--mnist", tmp_path, "--output", tmp_path / "rules.json"),
    ):
        assert "error: " in said and "Traceback" not in said


def test_where_the_data_lie_is_not_written(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import sync

    found = dict.fromkeys(("val_accuracy", "test_accuracy", "feedback_angle", "update_angle"), 0.5)
    monkeypatch.setattr(sync, "train", lambda *words: found)
    for words in (["--data-dir", "/at/home"], ["--data-dir=/at/home"]):
        output = tmp_path / "sync.json"
        monkeypatch.setattr(sys, "argv", ["sync.py", "--data", "digits", *words, "--output", str(output)])
        sync.main()
        assert json.loads(output.read_text())["command"] == "benchmarks/sync.py --data digits --data-dir DIR"


def test_the_command_of_a_rule_names_the_data_and_not_their_folder(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import rules

    failed = subprocess.CompletedProcess([], 2, "", "error: no such folder")
    monkeypatch.setattr(rules.subprocess, "run", lambda *words, **settings: failed)
    found = rules.measure("bp", "mnist", seed=0)["command"]
    assert "--data mnist" in found and "--data-dir DIR" in found


def cheapest(monkeypatch, *words):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import cheapest as script

    monkeypatch.setattr(sys, "argv", ["cheapest.py", "--study", "mnist", *words])
    return script


def test_jobs_at_a_time_keep_the_results_of_each_other(monkeypatch, tmp_path):
    script = cheapest(monkeypatch, "--jobs", "8", "--seeds", *"01234567", "--output", str(tmp_path / "results.json"))
    diverged = subprocess.CompletedProcess([], 2, "", "error: Training diverged")
    monkeypatch.setattr(script.subprocess, "run", lambda *words, **settings: diverged)
    script.main()
    found = json.loads((tmp_path / "results.json").read_text())
    assert len({(r["setting"], r["seed"]) for r in found}) == 8 * len(script.MNIST)


def test_what_stops_a_job_stops_the_script(monkeypatch, tmp_path):
    script = cheapest(monkeypatch, "--settings", "bp", "--runs", str(tmp_path), "--output", str(tmp_path / "found"))
    done = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(script.subprocess, "run", lambda *words, **settings: done)
    (tmp_path / "found").write_text("[]")
    with pytest.raises(KeyError):
        # The run has no metrics.
        script.main()


def test_a_setting_that_is_none_is_refused():
    assert "--settings: expected some of bp, preset" in mistaken("cheapest.py", "--study", "mnist", "--settings", "no")
