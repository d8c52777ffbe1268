"""Runs of other tasks than classification: how they train, are judged, chosen and continued."""

import json
import shutil

import pytest
import torch
import yaml

from dtp.algorithms import ALGORITHMS
from dtp.cli.arguments import parse
from dtp.cli.train import main
from dtp.run.building import build
from tests.algorithms.rules import facts
from tests.runs import SHORT, contents, fails, rows

pytestmark = pytest.mark.usefixtures("here")

# These train networks of their own alone, and are tested with them.
OWN_NETWORKS = ("gait", "dtp-dae")
AUTOENCODER = ["--task", "autoencoder", *SHORT]


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", [name for name in ALGORITHMS.names() if name not in OWN_NETWORKS])
def test_every_rule_for_it_trains_an_autoencoder(algo, here):
    tasks = ALGORITHMS.resolve(algo).load_options().tasks
    if "autoencoder" not in tasks:
        pytest.skip(f"{algo} is for {', '.join(tasks)}")
    # Networks in time take long for a batch, and show it after few.
    epochs = "1" if "dfc" in algo else "4"
    words = ["--algo", algo, *AUTOENCODER, "--max-epochs", epochs, "--run-dir", "run", "--normalisation", "unit"]
    words += facts(algo).shorter.split()
    words += ["--activation", "sigmoid"] if algo in ("chl", "generec") else []
    if algo in ("delta",):
        words[words.index("--widths") + 1 : words.index("--widths") + 2] = []
    # What the first weights give.
    data, algorithm = build(parse(words))
    x, y = next(iter(data.val_dataloader()))
    goal = algorithm.task.goal(x, y)
    with torch.no_grad():
        untrained = float((algorithm.task.view(algorithm(x)) - goal).square().mean())
    assert main(words) == 0
    summary = json.loads((here / "run" / "summary.json").read_text())
    assert summary["task"] == "autoencoder" and "test_accuracy" not in summary
    errors = [float(row["val/mse"]) for row in rows(here / "run") if row["val/mse"]]
    assert min(errors) < 0.99 * untrained and summary["val_loss"] > 0


@pytest.mark.parametrize("algo", ["bp", "dtp", "sdtp"])
def test_an_autoencoder_learns_to_reconstruct(algo, here):
    # An epoch that trains feedback alone changes no loss.
    words = ["--algo", algo, *AUTOENCODER, "--widths", "32", "--max-epochs", "12", "--normalisation", "unit"]
    words += ["--optimizer", "adam", "--lr", "3e-3", "--run-dir", "run", *(["--beta", "1"] if algo != "bp" else [])]
    assert main(words) == 0
    errors = [float(row["val/mse"]) for row in rows(here / "run") if row["val/mse"]]
    assert errors[-1] < 0.6 * errors[0]


def test_the_weights_of_the_lowest_validation_loss_are_tested(here, capsys):
    assert main(["--algo", "bp", *AUTOENCODER, "--max-epochs", "4", "--run-dir", "run"]) == 0
    losses = [float(row["val/loss"]) for row in rows(here / "run") if row["val/loss"]]
    summary = json.loads((here / "run" / "summary.json").read_text())
    assert summary["val_loss"] == pytest.approx(min(losses))
    assert summary["tested_weights"] == f"epoch {losses.index(min(losses)) + 1}, best on validation"
    assert "reconstruction error" in capsys.readouterr().out


def test_an_autoencoder_resumes_to_the_same_weights(here):
    words = ["--algo", "dtp", *AUTOENCODER]
    assert main([*words, "--run-dir", "whole"]) == 0
    assert main([*words, "--run-dir", "part", "--max-steps", "7"]) == 0
    assert main([*words, "--run-dir", "part", "--resume", "auto"]) == 0
    whole, part = (
        torch.load(here / name / "checkpoints" / "step=00000020.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "part")
    )
    assert all(torch.equal(whole[name], part[name]) for name in whole)


def test_the_task_is_part_of_the_saved_configuration(here):
    assert main(["--algo", "bp", *AUTOENCODER, "--run-dir", "run"]) == 0
    saved = yaml.safe_load((here / "run" / "config.yaml").read_text())
    assert (saved["task"], saved["loss"]) == ("autoencoder", "squared")
    assert parse(["--config", "run"]).run.task == "autoencoder"
    assert parse(["--algo", "bp"]).run.task == "classification"


def test_a_loss_of_ones_own_beats_the_usual_one(here):
    found = parse(["--algo", "bp", *AUTOENCODER, "--loss", "binary-cross-entropy"])
    assert found.algo.loss == "binary-cross-entropy"


def test_a_run_made_before_there_were_tasks_goes_on(here):
    words = ["--algo", "bp", *SHORT, "--run-dir", "run"]
    assert main([*words, "--max-steps", "7"]) == 0
    config = here / "run" / "config.yaml"
    new = ("task:", "clusters:", "init_weights:", "pca:", "pca_scale:")
    assert all(f"\n{name}" in config.read_text() for name in new)
    old = [line for line in config.read_text().splitlines() if not line.startswith(new)]
    config.write_text("\n".join(old) + "\n")
    assert main([*words, "--resume", "auto"]) == 0
    assert json.loads((here / "run" / "summary.json").read_text())["steps"] == 20


# --- first weights of another run -------------------------------------------------------------------------------------


def test_layers_of_the_same_shape_start_from_another_runs_weights(here, capsys):
    assert main(["--algo", "bp", *AUTOENCODER, "--run-dir", "first"]) == 0
    before = contents(here / "first")
    again = ["--algo", "bp", *SHORT, "--max-epochs", "1", "--max-steps", "1", "--run-dir", "second", "--lr", "1e-12"]
    assert main([*again, "--lr-schedule", "constant", "--weight-decay", "0", "--init-weights", "first"]) == 0
    assert "layers 1 start from" in capsys.readouterr().out
    first = torch.load(here / "first" / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    (newest,) = (here / "second" / "checkpoints").glob("step=*.ckpt")
    second = torch.load(newest, weights_only=True)["state_dict"]
    name = "network.layers.0.1.weight"
    torch.testing.assert_close(second[name], first[name])
    assert second["network.layers.1.0.weight"].shape != first["network.layers.1.0.weight"].shape
    assert contents(here / "first") == before


def test_a_run_goes_on_when_the_weights_it_began_with_are_gone(here):
    assert main(["--algo", "bp", *SHORT, "--max-epochs", "1", "--run-dir", "first"]) == 0
    words = ["--algo", "bp", *SHORT, "--init-weights", "first", "--run-dir", "second"]
    assert main([*words, "--max-steps", "7"]) == 0
    shutil.rmtree(here / "first")
    assert main([*words, "--resume", "auto"]) == 0
    assert json.loads((here / "second" / "summary.json").read_text())["steps"] == 20


@pytest.mark.parametrize("algo", ["hebb", "competitive"])
def test_clusters_do_not_depend_on_the_labels_of_the_training_images(algo, here, monkeypatch):
    from dtp.data.small import Digits

    words = [
        "--algo",
        algo,
        "--task",
        "clustering",
        "--model",
        "mlp",
        "--widths",
        "--max-epochs",
        "2",
        "--val-size",
        "0",
    ]
    assert main([*words, "--run-dir", "true"]) == 0
    load = Digits.load_train
    monkeypatch.setattr(Digits, "load_train", lambda self: (load(self)[0], load(self)[1][::-1].copy()))
    assert main([*words, "--run-dir", "permuted"]) == 0
    found = [
        torch.load(next((here / name / "checkpoints").glob("step=*.ckpt")), weights_only=True)["state_dict"]
        for name in ("true", "permuted")
    ]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0] if name.startswith("network."))


def test_mistakes_are_told_in_one_sentence(here, capsys):
    bp = ["--algo", "bp", *SHORT]
    fails(capsys, [*bp, "--task", "clustering"], "--task clustering", "classification or autoencoder")
    fails(capsys, [*bp, "--task", "autoencoder", "--loss", "cross-entropy"], "--loss cross-entropy", "squared")
    fails(capsys, ["--algo", "sdtp", *SHORT, "--loss", "squared"], "--loss squared", "cross-entropy")
    fails(capsys, [*bp, "--clusters", "12"], "--clusters", "--task clustering")
    fails(capsys, ["--algo", "hebb", "--task", "clustering", "--clusters", "0"], "--clusters", "at least 1")
    fails(capsys, [*bp, "--init-weights", "nowhere"], "--init-weights nowhere", "run folder")
    (here / "file.ckpt").write_text("nothing")
    fails(capsys, [*bp, "--init-weights", "file.ckpt"], "damaged or no checkpoint")
    assert main([*bp, "--max-epochs", "1", "--run-dir", "run"]) == 0
    fails(capsys, [*bp, "--widths", "5", "--init-weights", "run"], "expected at least one layer")
