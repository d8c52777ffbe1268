"""The way back: from run folders and checkpoints, of this version and earlier ones, to the trained rule."""

import io
import json
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dtp
from dtp.algorithms import BP, DTP, FA
from dtp.algorithms.base import Algorithm
from dtp.cli.train import main
from dtp.data.options import DataOptions
from dtp.data.small import Digits
from dtp.errors import UserError
from dtp.models import LeNet
from dtp.models.options import LeNetOptions
from dtp.run.building import build
from dtp.run.checkpoints import read_checkpoint
from dtp.run.loading import described
from dtp.run.sealed import save_sealed
from tests.algorithms.rules import facts
from tests.runs import SHORT, fails

pytestmark = pytest.mark.usefixtures("here")

OWN = """
from torch import nn
from dtp.algorithms import DTP
from dtp.models import Network

class Mine(DTP):
    pass

class Net(Network):
    def make_layers(self):
        yield nn.Sequential(nn.Flatten(), nn.Linear(self.features, 7), nn.ELU())
        yield nn.Sequential(nn.Linear(7, self.num_classes))
"""


def trained(*words, folder="run"):
    assert main([*SHORT, *words, "--run-dir", folder]) == 0
    return folder


def saved_again(path, change, target="changed.ckpt"):
    """A checkpoint with another content."""
    content = read_checkpoint(path)
    change(content)
    with open(target, "w+b") as file:
        save_sealed(content, file)
    return target


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of dtp on digits, three epochs, the second of which need not be the best."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main([*SHORT, "--max-epochs", "3", "--seed", "3", "--run-dir", str(folder)]) == 0
    return folder


def test_a_loaded_rule_has_the_accuracy_that_the_run_has_tested(run):
    rule = dtp.load(run)
    assert type(rule) is DTP and not rule.training and rule.noise_streams.seed == 3
    # The images are those of scikit-learn, read and normalised here by the run's own options.
    from dtp.cli.arguments import parse

    data, _ = build(parse(["--config", str(run / "config.yaml")]))
    with torch.no_grad():
        right = sum((rule(x).argmax(1) == y).sum().item() for x, y in data.test_dataloader())
    assert right / 360 == pytest.approx(json.loads((run / "summary.json").read_text())["test_accuracy"])


def test_the_summary_says_how_images_were_normalised(run):
    rule, summary = dtp.load(run), json.loads((run / "summary.json").read_text())
    images, labels = Digits(DataOptions()).load_test()
    mean, std = (torch.tensor(summary[name])[:, None, None] for name in ("pixel_mean", "pixel_std"))
    with torch.no_grad():
        found = rule.network((torch.tensor(images) / 255 - mean) / std).argmax(1)
    assert (found == torch.tensor(labels)).float().mean().item() == pytest.approx(summary["test_accuracy"])


def test_its_weights_and_options_are_those_of_the_checkpoint(run):
    saved = read_checkpoint(run / "checkpoints" / "best.ckpt")
    for rule in (dtp.load(run), dtp.load(str(run / "checkpoints" / "best.ckpt")), DTP.load_from_checkpoint(run)):
        assert all(torch.equal(value, saved["state_dict"][name]) for name, value in rule.state_dict().items())
        assert {name: saved["config"][name] for name in vars(rule.options)} == vars(rule.options)
        assert rule.network.options.widths == [16] and rule.task.name == "classification"
    newest = DTP.load_from_checkpoint(run / "checkpoints" / "step=00000030.ckpt", beta=0.25)
    assert newest.options.beta == 0.25 and newest.options.lr == rule.options.lr


def test_of_a_run_that_has_tested_its_last_weights_those_are_loaded(run):
    trained("--max-steps", "13")
    last = read_checkpoint(Path("run/checkpoints/step=00000013.ckpt"))["state_dict"]
    assert all(torch.equal(value, last[name]) for name, value in dtp.load("run").state_dict().items())


@pytest.mark.parametrize("algo", ["bp", "fa", "dfa", "kp", "sdtp", "ao-sdtp", "drl", "ddtp-rhl", "gait", "chl", "hebb"])
def test_every_kind_of_rule_and_network_is_described(algo):
    words = ["--algo", algo, *facts(algo).network.split(), "--batch-size", "128", "--max-epochs", "2"]
    assert main([*words, "--run-dir", "run"]) == 0
    rule = dtp.load("run")
    saved = read_checkpoint(Path("run/checkpoints/best.ckpt"))["state_dict"]
    assert set(saved) == set(rule.state_dict())
    assert all(torch.equal(value, saved[name]) for name, value in rule.state_dict().items())


@pytest.mark.parametrize(
    "words", ["--task autoencoder --widths 8", "--algo competitive --task clustering --clusters 6 --widths"]
)
def test_other_tasks_come_back_too(words):
    assert main([*words.split(), "--batch-size", "128", "--max-epochs", "1", "--run-dir", "run"]) == 0
    rule, saved = dtp.load("run"), json.loads(Path("run/summary.json").read_text())
    assert rule.task.name == saved["task"] != "classification"
    if rule.task.name == "autoencoder":
        # The statistics of digits, with which the pixels are got back from the images.
        assert (rule.task.mean.item(), rule.task.std.item()) == (0.3054, 0.3761)


def test_a_seed_below_0_of_earlier_versions_comes_back(run):
    def changed(checkpoint):
        checkpoint["description"]["seed"] = checkpoint["noise"][0]["seed"] = -1

    assert dtp.load(saved_again(run / "checkpoints" / "best.ckpt", changed)).noise_streams.seed == -1


def test_a_network_that_a_checkpoint_does_not_describe_is_asked_for(run):
    def change(content):
        content["description"]["network"] = None

    path = saved_again(run / "checkpoints" / "best.ckpt", change)
    with pytest.raises(UserError, match="does not describe its network.*give network="):
        dtp.load(path)
    given = dtp.load(run).network
    assert dtp.load(path, network=given).network is given


def test_classes_of_the_users_own_are_imported_with_trust_alone(monkeypatch, tmp_path):
    (tmp_path / "way_back.py").write_text(OWN)
    words = "--algo way_back:Mine --model way_back:Net --batch-size 128 --max-epochs 1 --run-dir run"
    assert main(words.split()) == 0
    rule = dtp.load("run", trust=True)
    mine = type(rule)
    assert (mine.__name__, type(rule.network).__name__) == ("Mine", "Net")
    monkeypatch.delitem(sys.modules, "way_back")
    with pytest.raises(UserError, match="names the class way_back:Mine, a program.*trust=True"):
        dtp.load("run")
    # Of one's own rule one has the class; the network is another program.
    with pytest.raises(UserError, match="names the class way_back:Net"):
        mine.load_from_checkpoint("run")
    assert "way_back" not in sys.modules
    assert type(mine.load_from_checkpoint("run", network=rule.network)) is mine


KINDS = """
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from dtp.algorithms import BP

class Color(Enum):
    RED = "red"
    BLUE = "blue"

class Mine(BP):
    @dataclass
    class Options(BP.Options):
        "Of all kinds."
        color: Color = Color.RED
        colors: list[Color] = field(default_factory=lambda: [Color.RED])
        other: Color | None = None
        where: Path = Path("there")
        pair: tuple[int, int] = (1, 2)
        number: complex = 1j

class Odd(Mine):
    @dataclass
    class Options(Mine.Options):
        "Of more."
        table: dict = field(default_factory=dict)
        score: Callable = len
        count: object = None

        def __post_init__(self):
            self.lr = 2 * self.lr
"""


def test_options_of_kinds_that_files_do_not_have_come_back(monkeypatch, tmp_path, capsys):
    (tmp_path / "way_kinds.py").write_text(KINDS)
    words = "--algo way_kinds:Mine --color BLUE --colors BLUE RED --other BLUE --where here --pair 3 4 --number 2j"
    trained(*words.split(), "--max-epochs", "2", "--max-steps", "3")
    import way_kinds

    blue, red = way_kinds.Color.BLUE, way_kinds.Color.RED
    expected = [blue, [blue, red], blue, Path("here"), (3, 4), 2j]
    names = ["color", "colors", "other", "where", "pair", "number"]
    found = dtp.load("run", trust=True).options
    assert [getattr(found, name) for name in names] == expected
    assert main(["--resume", "run", "--trust", "--max-steps", "-1"]) == 0 and "warning" not in capsys.readouterr().err
    network = dtp.load("run", trust=True).network
    made = [way_kinds.Mine(network, color=name, pair=[5, 6]).options for name in ("BLUE", "blue", blue)]
    assert [(o.color, o.pair) for o in made] == [(blue, (5, 6))] * 3
    with pytest.raises(UserError, match="--color: expected one of RED, BLUE; found 'GREEN'"):
        way_kinds.Mine(network, color="GREEN")


def test_what_describes_a_rule_keeps_no_password_however_deep(monkeypatch, tmp_path):
    (tmp_path / "way_kinds.py").write_text(KINDS)
    monkeypatch.syspath_prepend(tmp_path)
    import way_kinds

    network = LeNet(LeNetOptions(channels=[2, 3], hidden=5), (1, 12, 12), 4)
    rule = way_kinds.Odd(network, table={"from": ["https://me:secret@host"]})
    assert described(rule)["options"]["table"] == {"from": ["https://me:***@host"]}


def test_an_option_of_a_kind_that_no_checkpoint_has_must_be_given(monkeypatch, tmp_path):
    (tmp_path / "way_kinds.py").write_text(KINDS)
    monkeypatch.syspath_prepend(tmp_path)
    import way_kinds

    rule = way_kinds.Odd(LeNet(LeNetOptions(channels=[2, 3], hidden=5), (1, 12, 12), 4), lr=0.02, table={"a": [1]})
    settings = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1}
    batches = DataLoader(TensorDataset(torch.randn(8, 1, 12, 12), torch.randint(4, (8,))), 4)
    trainer = pl.Trainer(accelerator="cpu", default_root_dir=".", **settings)
    trainer.fit(rule, batches)
    trainer.save_checkpoint("default.ckpt")
    rule.options.count = torch.ones(2)
    trainer.save_checkpoint("given.ckpt")
    found = way_kinds.Odd.load_from_checkpoint("default.ckpt").options
    assert (found.lr, found.table, found.score) == (0.04, {"a": [1]}, len)
    with pytest.raises(UserError, match=r"does not say what count of Odd was.*give count=\.\.\."):
        way_kinds.Odd.load_from_checkpoint("given.ckpt")
    assert way_kinds.Odd.load_from_checkpoint("given.ckpt", count=3).options.count == 3


def test_a_checkpoint_of_a_stock_trainer_is_loaded_without_a_network():
    rule = FA(LeNet(LeNetOptions(channels=[2, 3], hidden=5), (1, 12, 12), 4), FA.Options(lr=0.02), seed=9)
    batches = DataLoader(TensorDataset(torch.randn(8, 1, 12, 12), torch.randint(4, (8,))), 4)
    settings = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, default_root_dir=".", **settings)
    trainer.fit(rule, batches)
    trainer.save_checkpoint("stock.ckpt")
    back = FA.load_from_checkpoint("stock.ckpt")
    x = torch.randn(2, 1, 12, 12)
    assert torch.equal(back(x), rule.eval()(x)) and back.options == rule.options and back.noise_streams.seed == 9
    assert isinstance(Algorithm.load_from_checkpoint("stock.ckpt"), FA)
    with pytest.raises(UserError, match="is of the rule FA, not BP; use dtp.load"):
        BP.load_from_checkpoint("stock.ckpt")


def test_a_loss_of_ones_own_is_given_again():
    network = LeNet(LeNetOptions(channels=[2, 3], hidden=5), (1, 12, 12), 4)
    loss = torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0, 4.0]))
    batches = DataLoader(TensorDataset(torch.randn(8, 1, 12, 12), torch.randint(4, (8,))), 4)
    settings = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, default_root_dir=".", **settings)
    rule = BP(network, loss=loss)
    trainer.fit(rule, batches)
    trainer.save_checkpoint("loss.ckpt")
    with pytest.raises(UserError, match="has weights of a loss of your own; give loss="):
        BP.load_from_checkpoint("loss.ckpt")
    back = BP.load_from_checkpoint("loss.ckpt", loss=torch.nn.CrossEntropyLoss(weight=torch.ones(4)))
    logits, labels = torch.randn(4, 4), torch.arange(4)
    assert torch.equal(back.task_loss(logits, labels), loss(logits, labels))


def test_another_network_than_the_trained_one_is_told(run):
    network = LeNet(LeNetOptions(channels=[2, 3], hidden=5), (1, 12, 12), 4)
    with pytest.raises(UserError, match="its weights are not those of the network.*layers.0"):
        dtp.load(run, network=network)


@pytest.mark.parametrize("place", ["gpu", "cuda:99", nn.Linear(1, 1)])
def test_a_device_that_is_not_there_is_told(run, place):
    with pytest.raises(UserError, match="map_location: expected a device that this machine has, found .*network=..."):
        dtp.load(run, place)


def test_what_is_no_run_is_told_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="nothing: no checkpoint there; give a run folder"):
        dtp.load("nothing")
    with pytest.raises(UserError, match="Expected a path, found NoneType"):
        dtp.load(None)
    with pytest.raises(UserError, match="cannot be read .File name too long.; give a run folder"):
        dtp.load("a" * 300)
    (tmp_path / "a.ckpt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is damaged or no checkpoint"):
        dtp.load("a.ckpt")
    torch.save({"state_dict": {}}, "b.ckpt")
    with pytest.raises(UserError, match="does not say what rule it is of.* of version 0.1.0 or later"):
        dtp.load("b.ckpt")
    with pytest.raises(UserError, match="holds the weights of a network alone"):
        dtp.load("weights.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"algo": 3},
        {"network": {"input_shape": "ab"}},
        {"network": {"task": None}},
        {"network": {"options": {"activation": "none such"}}},
    ],
)
def test_a_description_of_another_kind_is_told(run, change):
    def changed(checkpoint):
        said = checkpoint["description"]
        checkpoint["description"] = {**said, **change, "network": {**said["network"], **change.get("network", {})}}

    with pytest.raises(UserError, match="changed.ckpt: nothing can be made of what it says"):
        dtp.load(saved_again(run / "checkpoints" / "best.ckpt", changed))


@pytest.mark.parametrize(
    "change", [{"state_dict": [1]}, {"state_dict": {"a": 1}}, {"noise": [3]}, {"description": [1]}]
)
def test_a_checkpoint_of_another_kind_is_told(run, change):
    source = saved_again(run / "checkpoints" / "best.ckpt", lambda checkpoint: checkpoint.update(change))
    with pytest.raises(UserError, match="changed.ckpt: "):
        dtp.load(source)


def test_a_damaged_checkpoint_of_a_run_is_passed_over(capsys):
    folder = trained()
    best = open(f"{folder}/checkpoints/best.ckpt", "r+b")
    best.seek(1000)
    best.write(b"\xff" * 8)
    best.close()
    assert type(dtp.load(folder)) is DTP
    assert "best.ckpt: is damaged; taking another one of the run" in capsys.readouterr().err


def test_precision_comes_back():
    trained("--precision", "64", "--max-epochs", "1")
    assert {value.dtype for value in dtp.load("run").network.parameters()} == {torch.float64}


# --- weights.safetensors ----------------------------------------------------------------------------------------------


def test_a_run_leaves_the_tested_weights_for_other_programs(run):
    weights = load_file(run / "weights.safetensors")
    state = dtp.load(run).network.state_dict()
    assert weights.keys() == state.keys() and all(torch.equal(weights[name], state[name]) for name in state)


def test_convolutions_in_other_orders_of_memory_are_written_as_they_are():
    assert main("--algo bp --model lenet --channels 3 4 --hidden 5 --max-steps 2 --run-dir run".split()) == 0
    state = dtp.load("run").network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in load_file("run/weights.safetensors").items())


@pytest.mark.parametrize("source", ["run/weights.safetensors", "run", "run/checkpoints/best.ckpt"])
def test_the_next_run_starts_from_them(run, source, capsys):
    saved = load_file(run / "weights.safetensors")
    from dtp.cli.arguments import parse

    config = parse([*SHORT, "--init-weights", str(run.parent / source)])
    _, rule = build(config)
    assert all(torch.equal(value, saved[name]) for name, value in rule.network.state_dict().items())
    assert f"layers 1, 2 start from {run.parent / source}" in capsys.readouterr().out


def test_a_folder_with_the_weights_alone_will_do(tmp_path, capsys, run):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "weights.safetensors").write_bytes((run / "weights.safetensors").read_bytes())
    assert main([*SHORT, "--max-epochs", "1", "--init-weights", "kept", "--run-dir", "next"]) == 0
    with pytest.raises(UserError, match="no checkpoint there, though weights.safetensors is there"):
        dtp.load("kept")


def test_a_bit_that_flips_in_the_weights_is_noticed(run, capsys):
    content = bytearray((run / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    Path("flipped.safetensors").write_bytes(content)
    expected = "--init-weights flipped.safetensors: is damaged or no safetensors file"
    fails(capsys, [*SHORT, "--init-weights", "flipped.safetensors", "--run-dir", "next"], expected)


def test_weights_of_other_programs_start_a_run_and_are_said_to_be_unchecked(run, capsys):
    save_file(load_file(run / "weights.safetensors"), "theirs.safetensors")
    assert main([*SHORT, "--max-epochs", "1", "--init-weights", "theirs.safetensors", "--run-dir", "next"]) == 0
    assert "theirs.safetensors: carries no digest" in capsys.readouterr().err


def test_damaged_weights_are_told(tmp_path, capsys):
    (tmp_path / "weights.safetensors").write_bytes(b"nothing of the kind")
    expected = "--init-weights weights.safetensors: is damaged or no safetensors file"
    fails(capsys, [*SHORT, "--init-weights", "weights.safetensors", "--run-dir", "run"], expected)


# --- the network elsewhere --------------------------------------------------------------------------------------------


@pytest.fixture(params=["mlp", "lenet", "vgg", "resnet18", "lc"])
def loaded(request):
    small = {
        "mlp": "--widths 8",
        "lenet": "--channels 2 3 --hidden 4",
        "vgg": "--channels 2 3",
        "resnet18": "--channels 2 2 2 3 3 --batch-norm true --lr 0.001",
        "lc": "--kernels 3 3 --channels 2 3 --strides 2 1 --hidden 4",
    }
    words = ["--algo", "bp", "--model", request.param, *small[request.param].split(), "--max-steps", "2"]
    assert main([*words, "--run-dir", "run"]) == 0
    return dtp.load("run")


def test_its_network_is_exported_by_torch(loaded):
    x = torch.randn(3, 1, 8, 8)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(loaded.network, (x,), dynamic_shapes=({0: batch},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    x = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(torch.export.load(file).module()(x), loaded(x))


def test_its_network_goes_to_onnx(loaded, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    x = torch.randn(3, 1, 8, 8)
    torch.onnx.export(loaded.network, (x,), tmp_path / "network.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(str(tmp_path / "network.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), loaded(x).detach(), atol=1e-5, rtol=1e-4)
