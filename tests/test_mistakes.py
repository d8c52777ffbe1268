"""Mistakes of the user in whole runs: one sentence, status 2, nothing lost."""

import json
import os
import socket
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch

from dtp.cli.train import main
from dtp.data import DATA
from dtp.run.checkpoints import Checkpoints
from dtp.run.folder import Run, newest_checkpoint
from dtp.system.files import write_atomically
from dtp.system.signals import Interrupted
from tests.runs import ROOT, SHORT, contents, fails, rows

pytestmark = pytest.mark.usefixtures("here")


def test_options_that_a_resumed_run_cannot_change_are_refused(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([*SHORT, "--run-dir", str(folder)]) == 0
    before = contents(folder)
    fails(capsys, ["--resume", str(folder), "--lr", "0.5"], "made with --lr 0.05, not 0.5")
    fails(capsys, ["--resume", str(folder), "--algo", "bp"], "was made with --algo dtp, not bp")
    fails(capsys, [*SHORT, "--run-dir", str(folder), "--resume", "auto", "--seed", "3"], "made with --seed 0, not 3")
    assert contents(folder) == before


@pytest.mark.parametrize("other", ["--algo bp", "--model lenet --hidden 8"])
def test_a_checkpoint_of_another_rule_or_network_is_refused(other, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([*SHORT, "--run-dir", str(folder)]) == 0
    lone = tmp_path / "lone.ckpt"
    newest_checkpoint(folder).rename(lone)
    flag, value = other.split()[:2]
    command = [*other.split(), "--max-epochs", "2", "--resume", str(lone), "--run-dir", str(tmp_path / "new")]
    fails(capsys, command, "lone.ckpt was made with", f"{flag} ", f", not {value}")


@pytest.mark.parametrize("damage", ["truncated", "foreign", "text"])
def test_a_damaged_or_foreign_checkpoint_is_refused(damage, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([*SHORT, "--run-dir", str(folder)]) == 0
    path = tmp_path / "broken.ckpt"
    whole = newest_checkpoint(folder).read_bytes()
    if damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "foreign":
        torch.save({"weights": torch.zeros(3)}, path)
    else:
        path.write_text("hello")
    fails(capsys, [*SHORT, "--resume", str(path), "--run-dir", str(tmp_path / "new")], "broken.ckpt: is")


def test_a_checkpoint_of_another_width_is_refused(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([*SHORT, "--run-dir", str(folder)]) == 0
    lone = tmp_path / "lone.ckpt"
    newest_checkpoint(folder).rename(lone)
    command = [*SHORT, "--widths", "17", "--resume", str(lone), "--run-dir", str(tmp_path / "new")]
    fails(capsys, command, "lone.ckpt was made with --widths 16, not 17")


def test_divergence_is_one_sentence_and_keeps_the_good_checkpoints(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([*SHORT, "--run-dir", str(folder)]) == 0
    before = {path.name for path in (folder / "checkpoints").iterdir()}
    command = [*SHORT, "--max-epochs", "4", "--lr", "1e30", "--run-dir", str(tmp_path / "diverged")]
    fails(capsys, command, "Training diverged", "--lr")
    assert list((tmp_path / "diverged" / "checkpoints").iterdir()) == []
    assert {path.name for path in (folder / "checkpoints").iterdir()} == before


@pytest.mark.parametrize("too_short", ["--max-epochs 1", "--max-steps 3", "--feedback-warmup 99"])
def test_a_run_too_short_for_its_rule_is_refused_before_there_is_a_folder(too_short, capsys, tmp_path):
    command = ["--algo", "vanilla-dtp", "--schedule", "alternating", *SHORT, *too_short.split()]
    fails(capsys, command, "the forward weights would never be trained")
    assert list(tmp_path.iterdir()) == []


def test_images_too_small_for_the_network(capsys, tmp_path):
    fails(capsys, ["--model", "vgg"], "Images of 8x8 pixels do not fit VGG")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [name for name in DATA.names() if name != "digits"])
def test_missing_data_says_what_to_do(data, capsys, tmp_path):
    fails(capsys, ["--data", data, "--data-dir", str(tmp_path / "nothing")], "--data-dir")
    assert list(tmp_path.iterdir()) == []


def test_foreign_data(capsys, tmp_path):
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(b"not an image at all" * 10)
    fails(capsys, ["--data", "mnist", "--data-dir", str(tmp_path / "data")], "-ubyte")


def test_truncated_data(capsys, tmp_path):
    import pickle

    data = {"data": np.zeros((5, 3072), np.uint8), "labels": [1, 2, 3, 4, 5]}
    for number in range(1, 11):
        (tmp_path / f"train_data_batch_{number}").write_bytes(pickle.dumps(data))
    (tmp_path / "val_data").write_bytes(pickle.dumps(data)[:-100])
    fails(capsys, ["--data", "imagenet32", "--model", "mlp", "--data-dir", str(tmp_path)], "val_data")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_by_permissions(capsys, tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        fails(capsys, [*SHORT, "--run-dir", str(tmp_path / "run")], "cannot be written")
    finally:
        tmp_path.chmod(stat.S_IRWXU)


def test_an_unwritable_folder(capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    fails(capsys, [*SHORT, "--run-dir", str(tmp_path / "file" / "run")], "cannot be written")
    fails(capsys, [*SHORT, "--run-dir", str(tmp_path / "file")], "is a file")


def test_more_devices_than_there_are(capsys):
    fails(capsys, [*SHORT, "--devices", "4096"], "--devices 4096: this machine has")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_where_there_is_none(capsys):
    fails(capsys, [*SHORT, "--accelerator", "gpu"], "no usable GPU")


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ("--noise 0.1 0.2 0.3", "--noise: expected 2 values"),
        ("--feedback-iterations 1 2 3 4", "--feedback-iterations: expected 2 values"),
        ("--feedback-lr 1 2 3", "(layers 2, 3)"),
        ("--beta -1", "--beta: expected a number above 0"),
        ("--batch-size 0", "--batch-size"),
        ("--val-size 5000", "--val-size"),
        ("--widths 3 0", "--widths: expected values of at least 1"),
        ("--lr 0", "--lr: expected a number above 0"),
        ("--num-workers -1", "--num-workers"),
        ("--noise inf", "--noise: expected finite values"),
        ("--limit-train-batches 0.0001", "--limit-train-batches 0.0001: less than one of"),
    ],
)
def test_values_out_of_range(arguments, expected, capsys, tmp_path):
    fails(capsys, arguments.split(), expected)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_sentence(tmp_path, capsys, monkeypatch):
    def full(checkpoint, file):
        """As torch.save fails: with an error of its own, in the middle of the file."""
        file.write(b"part")
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904

    monkeypatch.setattr(torch, "save", full)
    fails(capsys, [*SHORT, "--run-dir", str(tmp_path / "run")], "No space left on device")
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("resume", [[], ["--resume", "auto"]])
def test_a_start_that_came_to_nothing_is_begun_anew_in_its_folder(resume, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    command = [*SHORT, "--run-dir", str(folder), *resume]
    with monkeypatch.context() as patch:

        def full(*args):
            raise OSError(28, "No space left on device")

        patch.setattr("dtp.run.folder.write_atomically", full)
        fails(capsys, command, "No space left on device")
    assert {path.name for path in folder.iterdir()} == {".lock", "checkpoints"}
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_save", full)
        assert main([*command, "--log-every", "1", "--checkpoint-every", "3", "--seed", "5"]) == 2
    assert "config.yaml" in {path.name for path in folder.iterdir()} and len(rows(folder)) == 4
    assert main(command) == 0
    saved = (folder / "config.yaml").read_text()
    assert "seed: 0" in saved and "# resumed" not in saved
    assert len([row for row in rows(folder) if row["train/loss"]]) == 2
    before = contents(folder)
    capsys.readouterr()
    if not resume:
        fails(capsys, command, "is not empty")
    assert contents(folder) == before


def test_a_folder_with_epochs_or_another_process_in_it_is_not_begun_anew(tmp_path, capsys):
    folder = tmp_path / "run"
    command = [*SHORT, "--run-dir", str(folder)]
    assert main(command) == 0
    for path in (
        *(folder / "checkpoints").iterdir(),
        folder / "summary.json",
        folder / "training.png",
        folder / "weights.safetensors",
    ):
        path.unlink()
    before = contents(folder)
    fails(capsys, command, "is not empty")
    assert contents(folder) == before
    (folder / "metrics.csv").unlink()
    with Run(folder).locked():
        before = contents(folder)
        fails(capsys, command, "another process is training in it")
        assert contents(folder) == before
    assert main(command) == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.yaml", "lr: 0.1\n"),
        ("metrics.csv", "lr: 0.1\n"),
        ("metrics.csv", "no line that has ended"),
        ("metrics.csv", "epoch,step,train/loss\n1,7,0.5\n"),
        ("metrics.csv/notes.txt", "a folder of that name\n"),
        ("checkpoints/step=1.damaged", "lr: 0.1\n"),
        ("notes.txt", "lr: 0.1\n"),
    ],
)
def test_files_of_other_hands_are_no_start_that_came_to_nothing(name, text, tmp_path, capsys):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    before = contents(folder)
    fails(capsys, [*SHORT, "--run-dir", str(folder)], "is not empty")
    assert contents(folder) == before


def test_a_run_folder_within_a_run_is_refused(tmp_path, capsys):
    """Reports look for nothing in the folder of a run."""
    folder = tmp_path / "run"
    assert main([*SHORT, "--run-dir", str(folder)]) == 0
    fails(capsys, [*SHORT, "--run-dir", str(folder / "further" / "run")], "lies within the run", "a folder beside it")
    assert not (folder / "further").exists()


def test_what_killed_writers_left_goes(tmp_path):
    folder = tmp_path / "run"
    assert main([*SHORT, "--max-steps", "5", "--run-dir", str(folder)]) == 0
    host = socket.gethostname()
    left = ["checkpoints/step=00000005.tmp", "checkpoints/best.tmp", f".metrics.csv.{host}.999999999.tmp"]
    left += [".other.png.elsewhere.7.tmp", "training.png.tmp", ".config.yaml.4711"]
    for name in left:
        (folder / name).touch()
    (folder / "mine.tmp").touch()
    assert main(["--resume", str(folder), "--max-steps", "-1"]) == 0
    assert [name for name in left if (folder / name).exists()] == [] and (folder / "mine.tmp").exists()


def test_what_a_dead_process_left_of_a_file_goes_when_it_is_written(tmp_path):
    host, dead = socket.gethostname(), subprocess.Popen(["true"])
    dead.wait()
    names = [f".a.json.{host}.{dead.pid}.tmp", f".a.json.{host}.{os.getppid()}.tmp", f".a.json.other.{dead.pid}.tmp"]
    for name in names:
        (tmp_path / name).touch()
    write_atomically(tmp_path / "a.json", "{}")
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", *names[1:]}


def test_an_interrupted_checkpoint_leaves_no_part(tmp_path, monkeypatch):
    def interrupted(checkpoint, file):
        file.write(b"part")
        raise Interrupted

    monkeypatch.setattr(torch, "save", interrupted)
    assert main([*SHORT, "--run-dir", str(tmp_path / "run")]) == 130
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_a_mistake_in_a_users_file_is_told_as_theirs(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "with_syntax_error.py").write_text("class Rule(:\n")
    fails(capsys, ["--algo", "with_syntax_error:Rule"], "with_syntax_error:Rule: could not be imported (SyntaxError")
    (tmp_path / "that_raises.py").write_text(
        "from dtp.algorithms import DTP\n"
        "class Rule(DTP):\n"
        "    'Mine.'\n"
        "    def lower_target(self, n, targets, activations):\n"
        "        return targets[n + 7]\n"
    )
    assert main([*SHORT, "--algo", "that_raises:Rule", "--run-dir", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "that_raises.py, line 5, raised KeyError" in error and "defect" not in error


OWN = {
    "network without layers": (
        "class Own(Network):\n    'Mine.'",
        "--model own_part:Own",
        "Own does not say what its layers are; define make_layers",
    ),
    "network with other outputs": (
        "class Own(Network):\n    'Mine.'\n    def make_layers(self):\n"
        "        yield nn.Sequential(nn.Flatten(), nn.Linear(self.features, 7))",
        "--model own_part:Own",
        "Own must end in 10 values, one for each class (or pixel, or cluster); found 7",
    ),
    "network with an unknown type in layer 1": (
        "class Own(Network):\n    'Mine.'\n    def make_layers(self):\n"
        "        yield nn.Sequential(nn.Flatten(), nn.Linear(self.features, 7), nn.PReLU())\n"
        "        yield nn.Sequential(nn.Linear(7, 10))",
        "--model own_part:Own",
        "Layer 1: No feedback is known for the layer type PReLU",
    ),
    "rule with a target of another shape": (
        "class Own(DTP):\n    'Mine.'\n    def lower_target(self, n, targets, activations):\n"
        "        return activations.s[n - 1][:, :1]",
        "--algo own_part:Own",
        "The target of layer 1 has shape (128, 1)",
    ),
    "options without the decorator": (
        "class Own(DTP):\n    'Mine.'\n    class Options(DTP.Options):\n        alpha: float = 1.0",
        "--algo own_part:Own",
        "its class Options must be decorated with @dataclass",
    ),
    "option set without its type": (
        "from dataclasses import dataclass\nclass Own(DTP):\n    'Mine.'\n    @dataclass\n"
        "    class Options(DTP.Options):\n        beta = 0.3",
        "--algo own_part:Own",
        "its class Own.Options sets beta and does not declare it",
    ),
    "option set in a class beside that is no dataclass": (
        "from dataclasses import dataclass\nclass Usual:\n    beta: float = 0.3\nclass Own(DTP):\n    'Mine.'\n"
        "    @dataclass\n    class Options(Usual, DTP.Options):\n        alpha: float = 0.3",
        "--algo own_part:Own",
        "its class Usual sets beta and does not declare it",
    ),
    "options of a rule that extend none": (
        "from dataclasses import dataclass\nclass Own(DTP):\n    'Mine.'\n    @dataclass\n"
        "    class Options:\n        alpha: float = 1.0",
        "--algo own_part:Own",
        "its class Options must extend that of DTP, found one without 'loss'; write class Options(DTP.Options)",
    ),
    "options of a rule that extend those of another": (
        "from dataclasses import dataclass\nfrom dtp.algorithms import BP\nclass Own(DTP):\n    'Mine.'\n"
        "    @dataclass\n    class Options(BP.Options):\n        alpha: float = 1.0",
        "--algo own_part:Own",
        "its class Options must extend that of DTP, found one without 'beta'; write class Options(DTP.Options)",
    ),
    "options of a network that extend none": (
        "from dataclasses import dataclass\nclass Own(Network):\n    'Mine.'\n    @dataclass\n"
        "    class Options:\n        width: int = 8",
        "--model own_part:Own",
        "its class Options must extend that of Network, found one without 'activation'",
    ),
    "options of a dataset that extend none": (
        "class Own(ImageData):\n    'Mine.'\n    class Options:\n        shift = 1",
        "--data own_part:Own",
        "its class Options must extend that of ImageData, found one without 'data_dir'",
    ),
    "option that no file can hold": (
        "from dataclasses import dataclass, field\nclass Own(DTP):\n    'Mine.'\n    @dataclass\n"
        "    class Options(DTP.Options):\n        table: dict = field(default_factory=dict)",
        "--algo own_part:Own",
        "a run with its option table, '{}', could not be resumed",
    ),
    "option that is computed": (
        "from dataclasses import dataclass, field\nclass Own(DTP):\n    'Mine.'\n    @dataclass\n"
        "    class Options(DTP.Options):\n        made: int = field(default=3, init=False)",
        "--algo own_part:Own",
        "a run with its option made, '3', could not be resumed",
    ),
    "option that changes each time it is read": (
        "from dataclasses import dataclass\nclass Own(DTP):\n    'Mine.'\n    @dataclass\n"
        "    class Options(DTP.Options):\n        def __post_init__(self):\n            self.lr *= 2",
        "--algo own_part:Own --lr 0.25",
        "a run with its option lr, '0.5', could not be resumed, for read from a configuration that is not the same, "
        "but '1.0'",
    ),
    "dataset without images": (
        "class Own(ImageData):\n    'Mine.'\n    name, num_classes = 'own', 2",
        "--data own_part:Own",
        "define load_train",
    ),
    "dataset of floats": (
        "class Own(ImageData):\n    'Mine.'\n    name, num_classes = 'own', 2\n"
        "    def load_train(self):\n        return np.zeros((8, 1, 4, 4)), np.zeros(8)\n    load_test = load_train",
        "--data own_part:Own",
        "expected training images as uint8",
    ),
}


@pytest.mark.parametrize("part", OWN)
def test_what_is_wrong_with_a_part_of_the_users_own_is_told(part, tmp_path, monkeypatch, capsys):
    code, arguments, expected = OWN[part]
    imports = ["numpy as np"], ["torch import nn", "dtp.algorithms import DTP", "dtp.models import Network"]
    lines = [f"import {name}" for name in imports[0]] + [f"from {name}" for name in imports[1]]
    lines.append("from dtp.data.base import ImageData")
    (tmp_path / "own_part.py").write_text("\n".join([*lines, code]) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_part", raising=False)
    sizes = ["--widths", "16"] if "--model" not in arguments else []
    short = [*sizes, "--batch-size", "128", "--max-epochs", "1", "--run-dir", str(tmp_path / "run")]
    fails(capsys, [*arguments.split(), *short], expected)


def test_the_newest_checkpoint_being_damaged_the_one_before_is_used(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([*SHORT, "--max-epochs", "3", "--max-steps", "25", "--run-dir", str(folder)]) == 0
    whole = tmp_path / "whole"
    assert main([*SHORT, "--max-epochs", "3", "--run-dir", str(whole)]) == 0
    newest_checkpoint(folder).write_bytes(b"torn")
    assert main(["--resume", str(folder), "--max-steps", "-1"]) == 0
    captured = capsys.readouterr()
    assert "goes on from batch 20" in captured.out and "warning:" in captured.err
    a, b = (torch.load(newest_checkpoint(f), weights_only=True)["state_dict"] for f in (folder, whole))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (folder / "checkpoints" / "step=00000025.damaged").read_bytes() == b"torn"


def flip_a_weight(path):
    """Flip one bit of the first weights in a checkpoint, which becomes a file of its own."""
    whole = bytearray(path.read_bytes())
    weights = next(iter(torch.load(path, weights_only=True)["state_dict"].values())).numpy().tobytes()
    whole[whole.index(weights) + 7] ^= 4
    path.unlink()
    path.write_bytes(whole)


def test_one_flipped_bit_in_the_newest_checkpoint_is_noticed(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([*SHORT, "--max-steps", "15", "--run-dir", str(folder)]) == 0
    flip_a_weight(newest_checkpoint(folder))
    assert main(["--resume", str(folder), "--max-steps", "-1"]) == 0
    captured = capsys.readouterr()
    assert "goes on from batch 10" in captured.out
    assert "step=00000015.ckpt: is damaged" in captured.err and "digest" in captured.err
    # One that was asked for by its name has none before it.
    flip_a_weight(newest_checkpoint(folder))
    lone = newest_checkpoint(folder).rename(tmp_path / "lone.ckpt")
    fails(capsys, ["--config", str(folder), "--resume", str(lone), "--run-dir", "new"], "lone.ckpt: is damaged")


def test_damaged_best_weights_are_not_tested(tmp_path, capsys, monkeypatch):
    whole = tmp_path / "whole"
    assert main([*SHORT, "--run-dir", str(whole), "--test-weights", "last"]) == 0
    on_train_end = Checkpoints.on_train_end

    def damage(self, trainer, module):
        on_train_end(self, trainer, module)
        # Not the link that the last epoch shares with its own checkpoint.
        for path in {self.best, self.run.checkpoints / f"step={self.best_step:08d}.ckpt"}:
            flip_a_weight(path)

    monkeypatch.setattr(Checkpoints, "on_train_end", damage)
    assert main([*SHORT, "--run-dir", str(tmp_path / "run")]) == 0
    captured = capsys.readouterr()
    assert "warning:" in captured.err and "best.ckpt: is damaged" in captured.err
    found, expected = (json.loads((f / "summary.json").read_text()) for f in (tmp_path / "run", whole))
    assert found["tested_weights"] == "last" and found["test_loss"] == expected["test_loss"]


def test_damaged_best_weights_are_replaced_where_the_run_has_them_twice(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([*SHORT, "--run-dir", str(folder)]) == 0
    before = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").unlink()
    flip_a_weight(folder / "checkpoints" / "best.ckpt")
    assert main(["--resume", str(folder)]) == 0
    assert "best.ckpt: is damaged or cannot be read; " in capsys.readouterr().err
    after = json.loads((folder / "summary.json").read_text())
    assert all(after[name] == before[name] for name in ("tested_weights", "test_loss", "test_accuracy"))


def test_weights_to_start_from_are_whole(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([*SHORT, "--run-dir", str(folder)]) == 0
    flip_a_weight(folder / "checkpoints" / "best.ckpt")
    words = [*SHORT, "--max-epochs", "1", "--init-weights"]
    assert main([*words, str(folder), "--run-dir", "second"]) == 0
    captured = capsys.readouterr()
    assert "best.ckpt: is damaged" in captured.err and "start from" in captured.out and "step=" in captured.out
    fails(capsys, [*words, str(folder / "checkpoints" / "best.ckpt"), "--run-dir", "third"], "is damaged")


def test_a_run_killed_before_its_first_checkpoint_starts_again_in_its_folder(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([*SHORT, "--run-dir", str(folder)]) == 0
    for path in (*(folder / "checkpoints").iterdir(), folder / "summary.json"):
        path.unlink()
    assert main(["--resume", str(folder)]) == 0
    assert json.loads((folder / "summary.json").read_text())["steps"] == 20
    steps = [int(row["step"]) for row in rows(folder)]
    assert steps == sorted(set(steps))


def test_processes_that_a_launcher_started_must_be_as_many_as_the_devices(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    fails(capsys, [*SHORT, "--run-dir", "run"], "The launcher started 2 processes", "means 1")
    monkeypatch.delenv("WORLD_SIZE")
    fails(capsys, [*SHORT, "--num-nodes", "2", "--run-dir", "run"], "--num-nodes 2", "srun or torchrun")


def test_a_closed_output_pipe_is_no_defect(tmp_path):
    command = f"{sys.executable} {ROOT / 'main.py'} --help | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--feedback-warmup 40", "--feedback-warmup: expected fewer than the"),
        ("--feedback-warmup -1", "--feedback-warmup: expected 0 or more"),
        ("--feedback-warmup-epochs 2 --max-epochs 2", "--max-epochs: expected at least 3, found 2; the feedback"),
        ("--schedule alternating --max-epochs 1", "--max-epochs: expected at least 2, found 1; the feedback"),
        ("--extra-feedback-epochs 1 --feedback-warmup 12", "--max-epochs: expected a run of more than the 20 batches"),
        ("--layer-lr 0.1 1e-6", "--lr-min: expected at most the lowest of --layer-lr, 1e-06"),
        ("--layer-lr 0.1 0.1 0.1", "--layer-lr: expected 2 values, one for each layer with"),
        ("--eps 0", "--eps: expected values above 0"),
        ("--noise-decay -1", "--noise-decay: expected 0 or more"),
        (
            "--extra-feedback-epochs 1 --schedule alternating",
            "--extra-feedback-epochs: --schedule alternating says itself when",
        ),
        ("--schedule warmup", "--schedule warmup: expected --feedback-warmup or --feedback-warmup-epochs above 0"),
        (
            "--extra-feedback-epochs 1 --schedule warmup --feedback-warmup 1",
            "--extra-feedback-epochs: --schedule warmup says itself when",
        ),
        ("--feedback-memory -1", "--feedback-memory: expected 0 or more (MiB)"),
        ("--feedback-stop-distance 0.3 --engine graph", "--engine graph: how many iterations"),
        ("--engine graph --accelerator cpu", "--engine graph: expected a GPU"),
        ("--feedback-stop-distance 0.3 --engine literal", "which does not tell the distance"),
        ("--feedback-stop-distance -1", "--feedback-stop-distance: expected 0 or more"),
    ],
)
def test_settings_of_the_feedback_phase_that_cannot_be_are_refused(words, expected, tmp_path, capsys):
    fails(capsys, [*SHORT, "--run-dir", str(tmp_path / "run"), *words.split()], expected)


def test_a_distance_that_moving_maxima_hide_is_refused(tmp_path, capsys):
    words = "--model vgg --channels 4 4 --feedback-stop-distance 0.3 --run-dir".split()
    fails(capsys, [*words, str(tmp_path / "run")], "maxima that move with noise", "--routing fixed")


def test_a_run_made_before_an_option_existed_is_not_resumed(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([*SHORT, "--run-dir", str(folder)]) == 0
    config = folder / "config.yaml"
    config.write_text("".join(line for line in config.read_text().splitlines(True) if not line.startswith("engine:")))
    command = [*SHORT, "--max-epochs", "3", "--run-dir", str(folder), "--resume", "auto"]
    fails(capsys, command, "made before --engine existed")


def test_a_run_made_before_an_option_whose_value_is_known_is_told_that_value(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([*SHORT, "--run-dir", str(folder)]) == 0
    config = folder / "config.yaml"
    lines = config.read_text().splitlines(True)
    config.write_text("".join(line for line in lines if not line.startswith(("probes:", "lr_milestones:"))))
    command = [*SHORT, "--run-dir", str(folder), "--resume", "auto"]
    fails(capsys, [*command, "--probes", "expected"], "was made with --probes sampled, not expected")
    words = "--lr-schedule step --lr-milestones 1".split()
    config.write_text(config.read_text().replace("lr_schedule: constant", "lr_schedule: step"))
    fails(capsys, [*command, *words], "was made with --lr-milestones (nothing), not 1")
