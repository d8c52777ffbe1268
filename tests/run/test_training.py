"""Whole runs on the embedded digits: what they write, what they count, and how they fail."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.accelerators import CPUAccelerator

from dtp.algorithms import DTP
from dtp.algorithms.base import Algorithm
from dtp.cli.arguments import parse
from dtp.cli.train import main
from dtp.errors import UserError
from dtp.run.building import build
from dtp.run.folder import _new_folder, newest_checkpoint
from dtp.run.training import _choose_algorithms, _title, tf32_advice
from dtp.system.signals import stop_request
from tests.runs import ROOT, SHORT, contents, fails, rows

pytestmark = pytest.mark.usefixtures("here")


def test_a_run_folder_holds_what_it_promises(tmp_path):
    folder = tmp_path / "run"
    command = ["--algo", "dtp", *SHORT, "--seed", "4", "--run-dir", str(folder)]
    assert main(command) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert {name: summary[name] for name in ("algo", "model", "data", "seed", "epochs", "steps")} == {
        "algo": "dtp",
        "model": "mlp",
        "data": "digits",
        "seed": 4,
        "epochs": 2,
        "steps": 20,
    }
    assert 0 < summary["feedback_seconds"] < summary["wall_seconds"]
    assert 0 < summary["test_accuracy"] <= summary["test_top5"] <= 1 and 0 < summary["val_accuracy"] <= 1
    assert summary["versions"]["torch"] == torch.__version__ and summary["command"].startswith("dtp train --algo dtp")
    # The saved configuration is one that --config takes, and it means the same.
    again = parse(["--config", str(folder / "config.yaml")])
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved.items() <= again.as_dict().items() and saved["seed"] == 4
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "metrics.csv",
        "summary.json",
        "training.png",
        "weights.safetensors",
        "checkpoints",
        ".lock",
    }
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {
        "best.ckpt",
        "step=00000010.ckpt",
        "step=00000020.ckpt",
    }
    found = rows(folder)
    for name in ("train/loss", "val/accuracy", "test/accuracy", "feedback_angle/layer2", "update_angle/layer1"):
        assert [row[name] for row in found if row[name]], name


@pytest.mark.parametrize("steps, counts", [(1, "mlp digits, 0 epochs, 1 batch, "), (13, ", 1 epoch, 13 batches, ")])
def test_max_steps_counts_batches(steps, counts, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([*SHORT, "--feedback-iterations", "7", "--max-steps", str(steps), "--run-dir", str(folder)]) == 0
    assert json.loads((folder / "summary.json").read_text())["steps"] == steps
    assert counts in capsys.readouterr().out


@pytest.mark.parametrize("algo, ending", [("bp", r" s\.$"), ("dtp", r" s, feedback phase [1-9]\d*%\.$")])
def test_the_result_names_a_feedback_phase_where_there_is_one(algo, ending, tmp_path, capsys):
    assert main([*SHORT, "--algo", algo, "--run-dir", str(tmp_path / "run")]) == 0
    assert re.search(rf"; {algo} mlp digits, 2 epochs, .*{ending}", capsys.readouterr().out, re.MULTILINE)


def test_learning_rate_follows_its_schedule_once_per_epoch(tmp_path):
    command = "--algo bp --model mlp --max-epochs 4 --lr 0.1 --lr-schedule cosine --lr-min 0 --log-every 5".split()
    assert main([*command, "--run-dir", str(tmp_path / "run")]) == 0
    rates = {int(row["epoch"]): float(row["train/lr"]) for row in rows(tmp_path / "run") if row["train/lr"]}
    for epoch, rate in rates.items():
        assert rate == pytest.approx(0.05 * (1 + math.cos(math.pi * epoch / 4)))


def test_first_weights_and_first_batches_depend_on_the_seed_alone(tmp_path):
    def first(seed, algo):
        data, algorithm = build(parse(["--seed", str(seed), "--algo", algo, "--batch-size", "32"]))
        return algorithm.network.state_dict(), next(iter(data.train_dataloader()))

    weights, (x, y) = first(1, "dtp")
    again, (x_again, y_again) = first(1, "bp")
    other, (x_other, _) = first(2, "dtp")
    assert torch.equal(x, x_again) and torch.equal(y, y_again) and not torch.equal(x, x_other)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert not torch.equal(weights["layers.0.1.weight"], other["layers.0.1.weight"])


@pytest.mark.parametrize("precision", ["64", "bf16-mixed"])
def test_other_precisions_train(precision, tmp_path):
    assert main([*SHORT, "--precision", precision, "--run-dir", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test_accuracy"] > 0.5


@pytest.fixture
def algorithms_as_before(monkeypatch):
    """What a run chooses for its whole process, put back."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    monkeypatch.setitem(os.environ, "CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.use_deterministic_algorithms(False)


def test_a_deterministic_run_uses_deterministic_algorithms_and_the_same_numbers(tmp_path, algorithms_as_before):
    used = {}
    for name in ("yes", "no"):
        command = [*SHORT, "--max-epochs", "1", "--run-dir", str(tmp_path / name)]
        assert main([*command, *(["--deterministic"] if name == "yes" else [])]) == 0
        used[name] = torch.are_deterministic_algorithms_enabled()
    assert used == {"yes": True, "no": False} and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    yes, no = (
        torch.load(newest_checkpoint(tmp_path / name), map_location="cpu", weights_only=True)["state_dict"]
        for name in used
    )
    assert all(torch.equal(yes[name], no[name]) for name in no)


@pytest.mark.parametrize(
    ("words", "channels_last"),
    [
        ("--model lenet --channels 2 3 --hidden 4", True),
        ("--model resnet18 --channels 8 8 8 8 9", True),
        # A strided 1x1 convolution that reads fewer than eight channels, in the second stage or in the last.
        ("--model resnet18 --channels 4 4 8 8 8", False),
        ("--model resnet18 --channels 8 8 8 4 8", False),
        ("--model resnet18 --channels 4 4 8 8 8 --memory-format channels-last", True),
        ("--model lenet --channels 2 3 --hidden 4 --memory-format contiguous", False),
    ],
)
def test_maps_have_their_channels_innermost_unless_torch_may_crash_with_it(words, channels_last):
    _, rule = build(parse(["--algo", "bp", *words.split()]))
    weight = next(module.weight for module in rule.network.modules() if isinstance(module, torch.nn.Conv2d))
    strides = [weight.stride(), torch.empty_like(weight, memory_format=torch.contiguous_format).stride()]
    assert (strides[0] != strides[1]) == channels_last


@pytest.mark.parametrize(
    ("accelerator", "deterministic", "benchmark"), [("gpu", False, True), ("gpu", True, False), ("cpu", False, False)]
)
def test_convolutions_are_tried_out_on_a_gpu_only(accelerator, deterministic, benchmark, algorithms_as_before):
    _choose_algorithms(accelerator, deterministic)
    assert torch.backends.cudnn.benchmark is benchmark
    assert torch.are_deterministic_algorithms_enabled() is deterministic


def test_what_torch_cannot_do_deterministically_is_said_in_one_sentence(monkeypatch, capsys, algorithms_as_before):
    def refuse(self, x, y):
        raise RuntimeError("some_backward_cuda does not have a deterministic implementation, but you set 'torch...'")

    monkeypatch.setattr(DTP, "training_batch", refuse)
    fails(capsys, [*SHORT, "--deterministic"], "--deterministic: torch has no deterministic some_backward_cuda; leave")


def test_a_device_that_fails_as_the_trainer_tidies_up_hides_no_mistake(monkeypatch, capsys):
    """As one does where a capture has failed: emptying its cache raises."""

    def mistake(self, x, y):
        raise UserError("A batch could not be captured; go on without.")

    def broken(self):
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    monkeypatch.setattr(DTP, "training_batch", mistake)
    monkeypatch.setattr(CPUAccelerator, "teardown", broken)
    fails(capsys, SHORT, "A batch could not be captured; go on without.")


@pytest.mark.parametrize(
    ("arguments", "accelerator", "capability", "said"),
    [
        ([], "gpu", (8, 0), True),
        ([], "gpu", (7, 5), False),
        (["--tf32"], "gpu", (9, 0), False),
        (["--precision", "64"], "gpu", (9, 0), False),
        (["--precision", "bf16-mixed"], "gpu", (9, 0), True),
        ([], "cpu", (9, 0), False),
    ],
)
def test_tf32_is_advised_where_the_gpu_has_it(arguments, accelerator, capability, said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert ("--tf32" in tf32_advice(parse(arguments).run, accelerator)) is said


def test_tf32_only_on_request():
    build(parse([]))
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    build(parse(["--tf32"]))
    assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
    build(parse([]))


def test_clipping_bounds_the_forward_gradient(tmp_path, monkeypatch):
    norms = []
    original = Algorithm.on_before_optimizer_step

    def watch(self, optimizer):
        original(self, optimizer)
        if optimizer is self.forward_optimizer:
            norms.append(torch.stack([p.grad.norm() for p in self.forward_parameters]).norm().item())

    monkeypatch.setattr(Algorithm, "on_before_optimizer_step", watch)
    assert main([*SHORT, "--clip-norm", "0.01", "--run-dir", str(tmp_path / "run")]) == 0
    assert len(norms) == 20 and max(norms) <= 0.01 * (1 + 1e-4)


def test_test_set_is_used_once_and_on_the_weights_of_the_best_validation(tmp_path, monkeypatch):
    tested = []
    original = Algorithm.on_test_epoch_end

    def watch(self):
        tested.append({name: value.clone() for name, value in self.network.state_dict().items()})
        original(self)

    monkeypatch.setattr(Algorithm, "on_test_epoch_end", watch)
    folder = tmp_path / "run"
    assert main([*SHORT, "--run-dir", str(folder)]) == 0
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert len(tested) == 1
    assert all(torch.equal(value, best[f"network.{name}"]) for name, value in tested[0].items())
    accuracies = {int(row["epoch"]): float(row["val/accuracy"]) for row in rows(folder) if row["val/accuracy"]}
    assert json.loads((folder / "summary.json").read_text())["val_accuracy"] == max(accuracies.values())


def test_without_validation_images_the_last_weights_are_tested(tmp_path):
    assert main([*SHORT, "--val-size", "0", "--run-dir", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["tested_weights"] == "last" and summary["val_accuracy"] is None and summary["val_images"] == 0


def test_a_users_rule_network_and_dataset_train(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine_to_train.py").write_text(
        "import numpy as np\n"
        "from torch import nn\n"
        "from dtp.algorithms import DTP\n"
        "from dtp.data.base import ImageData\n"
        "from dtp.models import Network\n"
        "class Rule(DTP):\n"
        "    'Mine.'\n"
        "class Net(Network):\n"
        "    'Mine.'\n"
        "    def make_layers(self):\n"
        "        yield nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), self.activation(), nn.AvgPool2d(2))\n"
        "        yield nn.Sequential(nn.Flatten(), nn.Linear(self.features, self.num_classes))\n"
        "class Data(ImageData):\n"
        "    'Mine.'\n"
        "    name, num_classes = 'stripes', 2\n"
        "    def load_train(self):\n"
        "        labels = np.arange(256) % 2\n"
        "        images = np.zeros((256, 1, 8, 8), np.uint8)\n"
        "        images[labels == 0, :, ::2] = 255\n"
        "        images[labels == 1, :, :, ::2] = 255\n"
        "        return images, labels\n"
        "    load_test = load_train\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    names = "--algo mine_to_train:Rule --model mine_to_train:Net --data mine_to_train:Data".split()
    assert main([*names, "--max-epochs", "3", "--batch-size", "32", "--run-dir", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test_accuracy"] > 0.95 and "test_top5" not in summary


@pytest.mark.parametrize(
    ("own", "result"),
    [
        ("metrics={'f1': F1Score('multiclass', num_classes=10)}", "test loss {test_loss:.4g}, test f1 {test_f1:.4g}"),
        ("loss=multi_margin_loss", "test loss {test_loss:.4g}"),
    ],
)
def test_a_users_rule_with_metrics_or_a_loss_of_its_own_has_a_summary(own, result, tmp_path, here):
    name = f"judged_by_{own.partition('=')[0]}"
    (here / f"{name}.py").write_text(
        "from torch.nn.functional import multi_margin_loss\n"
        "from torchmetrics import F1Score\n"
        "from dtp.algorithms import BP\n"
        "class Rule(BP):\n"
        "    def __init__(self, *args, **options):\n"
        "        super().__init__(*args, **options)\n"
        f"        self.use({own})\n"
    )
    assert main(["--algo", f"{name}:Rule", *SHORT, "--run-dir", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["result"] == result.format(**summary)


def test_whatever_normalises_the_images_of_a_user_can_be_written_down(here, monkeypatch):
    Path("half_precise.py").write_text(
        "import torch\nfrom dtp.data.small import Digits\nfrom dtp.data.statistics import Statistics\n\n\n"
        "class Own(Digits):\n    def own_statistics(self, train):\n"
        "        return Statistics((torch.tensor(0.5, dtype=torch.bfloat16),), 0.25)\n"
    )
    monkeypatch.syspath_prepend(str(here))
    assert main([*SHORT, "--data", "half_precise:Own", "--run-dir", "run"]) == 0
    summary = json.loads(Path("run/summary.json").read_text())
    assert (summary["pixel_mean"], summary["pixel_std"]) == ([0.5], [0.25])


def test_a_users_rule_without_gradients_trains_where_no_angles_are_measured(here, capsys, monkeypatch):
    Path("step_alone.py").write_text(
        "from dtp import Algorithm\n\n\nclass Still(Algorithm):\n    def training_batch(self, x, y):\n"
        "        return self.network(x).detach(), {}\n\n\n"
        "class Stepping(Algorithm):\n    def training_batch(self, x, y):\n        return super().training_batch(x, y)\n"
    )
    monkeypatch.syspath_prepend(str(here))
    command = [*SHORT, "--algo", "step_alone:Still"]
    fails(capsys, command, "Still has no forward_gradients", "--diagnostics-every 0")
    assert main([*command, "--diagnostics-every", "0"]) == 0
    command = [*SHORT, "--algo", "step_alone:Stepping", "--diagnostics-every", "0"]
    fails(capsys, command, "Stepping has no forward_gradients, on which training_batch of Algorithm steps")


def test_a_run_named_by_its_seed_has_its_setting_in_its_title_from_wherever_it_is_begun(tmp_path, monkeypatch):
    (tmp_path / "no-lag").mkdir()
    monkeypatch.chdir(tmp_path / "no-lag")
    for folder in ("seed1", "../no-lag/seed1", "./seed1", str(tmp_path / "no-lag" / "seed1")):
        assert _title(Path(folder)) == "no-lag/seed1"
    assert _title(Path("mine")) == "mine"


# --- what exists is never overwritten ---------------------------------------------------------------------------------


def test_a_folder_that_is_not_empty_is_refused(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    fails(capsys, [*SHORT, "--run-dir", str(folder)], "is not empty", "--resume auto")
    assert contents(folder) == {folder / "thesis.tex": b"years of work"}


def test_two_runs_of_one_command_have_two_folders(tmp_path):
    assert main(SHORT) == 0 and main(SHORT) == 0
    assert len(list((tmp_path / "runs" / "dtp_mlp_digits").iterdir())) == 2


def test_runs_that_begin_at_once_have_folders_of_their_own(here):
    """Each looks for a free name before any of the others has written into its folder."""
    folders = [_new_folder(parse(SHORT)) for _ in range(4)]
    assert len(set(folders)) == 4 and all(folder.is_dir() for folder in folders)


def test_resuming_a_finished_run_says_so_and_changes_nothing(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([*SHORT, "--run-dir", str(folder)]) == 0
    before = contents(folder)
    assert main(["--resume", str(folder)]) == 0
    assert "This run has finished" in capsys.readouterr().out
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--max-epochs", "1"], "has finished after 2 epochs (20 batches), more than are asked for"),
        (["--max-steps", "19"], "has finished after 2 epochs (20 batches), more than are asked for"),
        (["--test-weights", "last"], "has finished with --test-weights best, found last"),
        (["--limit-val-batches", "1"], "has finished with --limit-val-batches 1.0, found 1;"),
    ],
)
def test_a_finished_run_that_was_asked_for_otherwise_is_no_answer(more, told, tmp_path, capsys):
    command = [*SHORT, "--lr-schedule", "constant"]
    assert main(command) == 0
    (folder,) = (tmp_path / "runs" / "dtp_mlp_digits").iterdir()
    before = contents(folder)
    for place in (["--resume", str(folder)], ["--resume", "auto", "--run-dir", str(folder)]):
        fails(capsys, [*command, *more, *place], told, "start a new run with another --run-dir")
    assert main([*command, *more, "--resume", "auto"]) == 0
    assert "begins anew" in capsys.readouterr().err and contents(folder) == before


@pytest.mark.parametrize("schedule", ["constant", "step --lr-milestones 1 2 --lr-gamma 0.5"])
def test_a_finished_run_goes_on_when_it_is_given_more_epochs(schedule, tmp_path):
    folder = tmp_path / "run"
    command = [*SHORT, "--lr-schedule", *schedule.split()]
    assert main([*command, "--run-dir", str(folder)]) == 0
    assert main(["--resume", str(folder), "--max-epochs", "3"]) == 0
    assert main([*command, "--max-epochs", "3", "--run-dir", str(tmp_path / "whole")]) == 0
    a, b = (torch.load(newest_checkpoint(f), weights_only=True)["state_dict"] for f in (folder, tmp_path / "whole"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert json.loads((folder / "summary.json").read_text())["epochs"] == 3


def test_resume_auto_takes_the_run_of_the_same_configuration(tmp_path, capsys):
    assert main([*SHORT, "--lr", "0.01", "--max-steps", "3"]) == 0
    assert main([*SHORT, "--lr", "0.02", "--max-steps", "3"]) == 0
    capsys.readouterr()
    assert main([*SHORT, "--lr", "0.01", "--resume", "auto"]) == 0
    assert "goes on from batch 3" in capsys.readouterr().out
    assert len(list((tmp_path / "runs" / "dtp_mlp_digits").iterdir())) == 2
    assert main([*SHORT, "--lr", "0.03", "--resume", "auto"]) == 0
    assert "goes on" not in capsys.readouterr().out
    assert len(list((tmp_path / "runs" / "dtp_mlp_digits").iterdir())) == 3


def test_resuming_from_a_checkpoint_file_into_a_new_folder_leaves_the_old_run_alone(tmp_path):
    folder = tmp_path / "run"
    assert main([*SHORT, "--run-dir", str(folder)]) == 0
    before = contents(folder)
    checkpoint = folder / "checkpoints" / "step=00000010.ckpt"
    assert main(["--resume", str(checkpoint), "--run-dir", str(tmp_path / "branch")]) == 0
    assert contents(folder) == before
    assert json.loads((tmp_path / "branch" / "summary.json").read_text())["steps"] == 20


def test_going_back_to_the_best_checkpoint_makes_a_new_run_and_keeps_the_old(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([*SHORT, "--max-epochs", "4", "--run-dir", str(folder)]) == 0
    before = contents(folder)
    assert main(["--resume", str(folder / "checkpoints" / "step=00000030.ckpt")]) == 0
    assert contents(folder) == before
    (branch,) = (tmp_path / "runs" / "dtp_mlp_digits").iterdir()
    # The branch ends as the run did, and tests the same best weights.
    whole, again = (json.loads((f / "summary.json").read_text()) for f in (folder, branch))
    same = ("steps", "epochs", "val_accuracy", "test_accuracy", "tested_weights")
    assert {name: whole[name] for name in same} == {name: again[name] for name in same}


def test_a_kill_between_a_checkpoint_and_its_name_as_the_best_is_mended(tmp_path):
    folder = tmp_path / "run"
    assert main([*SHORT, "--run-dir", str(folder)]) == 0
    expected = json.loads((folder / "summary.json").read_text())
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["global_step"]
    # As if killed before best.ckpt was renamed: an older file, and no summary yet.
    other = 10 if best == 20 else 20
    (folder / "checkpoints" / "best.ckpt").unlink()
    (folder / "checkpoints" / "best.ckpt").write_bytes((folder / "checkpoints" / f"step={other:08d}.ckpt").read_bytes())
    (folder / "summary.json").unlink()
    assert main(["--resume", str(folder)]) == 0
    again = json.loads((folder / "summary.json").read_text())
    assert (again["tested_weights"], again["test_accuracy"]) == (expected["tested_weights"], expected["test_accuracy"])


def test_more_epochs_are_refused_where_the_schedule_spans_them(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([*SHORT, "--run-dir", str(folder)]) == 0
    fails(capsys, ["--resume", str(folder), "--max-epochs", "3"], "--max-epochs 2, not 3", "schedule")


def test_a_stopped_extension_goes_on_with_the_command_that_is_printed(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    assert main([*SHORT, "--lr-schedule", "constant", "--run-dir", str(folder)]) == 0
    with monkeypatch.context() as patch:
        original, seen = Algorithm.training_step, []

        def training_step(self, batch, batch_idx):
            seen.append(batch_idx)
            if len(seen) == 3:
                signal.raise_signal(signal.SIGTERM)
            return original(self, batch, batch_idx)

        patch.setattr(Algorithm, "training_step", training_step)
        assert main(["--resume", str(folder), "--max-epochs", "3"]) == 75
    stop_request.signum = None
    printed = capsys.readouterr().err.rpartition("dtp train ")[2].split()
    assert main(printed) == 0
    assert json.loads((folder / "summary.json").read_text())["epochs"] == 3


def test_a_run_ended_by_max_steps_tests_its_last_weights_and_goes_on_when_given_more(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([*SHORT, "--max-steps", "13", "--run-dir", str(folder)]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["epochs"], summary["steps"], summary["tested_weights"]) == (1, 13, "last")
    assert main(["--resume", str(folder), "--max-steps", "-1"]) == 0
    assert json.loads((folder / "summary.json").read_text())["steps"] == 20


def test_a_signal_during_the_final_test_lets_it_finish(tmp_path, monkeypatch):
    original = Algorithm.test_step

    def test_step(self, batch, batch_idx):
        signal.raise_signal(signal.SIGTERM)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Algorithm, "test_step", test_step)
    assert main([*SHORT, "--run-dir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "summary.json").is_file()


def test_ctrl_c_outside_training_and_a_second_one_within_end_with_130(tmp_path, monkeypatch, capsys):
    def interrupt(times):
        def step(self, batch, batch_idx):
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(Algorithm, "test_step", interrupt(1))
        assert main([*SHORT, "--run-dir", str(tmp_path / "tested")]) == 130
    with monkeypatch.context() as patch:
        patch.setattr(Algorithm, "training_step", interrupt(2))
        assert main([*SHORT, "--run-dir", str(tmp_path / "trained")]) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.usefixtures("preloaded")
def test_a_second_process_in_the_same_folder_is_refused(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    refused = []
    original = Algorithm.on_train_epoch_end

    def again(self):
        code = "import sys; from dtp.cli.train import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", code, *SHORT, "--run-dir", str(folder), "--resume", "auto"]
        if not refused:
            refused.append(subprocess.run(command, capture_output=True, text=True, cwd=ROOT))
        original(self)

    monkeypatch.setattr(Algorithm, "on_train_epoch_end", again)
    assert main([*SHORT, "--run-dir", str(folder)]) == 0
    assert refused[0].returncode == 2 and "another process is training in it" in refused[0].stderr
