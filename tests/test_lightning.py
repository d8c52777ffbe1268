"""The table of docs/lightning.md, row by row."""

import importlib.util
import re
import warnings
from pathlib import Path

import lightning as L
import pytest
import torch
import torchmetrics
from lightning.pytorch import callbacks as C
from lightning.pytorch import loggers
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import lr_scheduler
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import dtp
from dtp.data.options import DataOptions
from dtp.data.small import Digits
from dtp.errors import UserError

TABLE = (Path(__file__).parent.parent / "docs" / "lightning.md").read_text()
ROWS: dict[str, str] = {}
BATCHES = 4


def row(name: str, holds: str = "works"):
    """Says which row of the table a test is."""

    def register(test):
        assert ROWS.setdefault(name, holds) == holds
        return test

    return register


def network() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ELU(), nn.Linear(8, 5))


def rule(cls=dtp.DTP, **options):
    torch.manual_seed(0)
    return cls(network(), **({"feedback_iterations": 2} if issubclass(cls, dtp.DTP) else {}), **options)


def images(shape=(1, 4, 4)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(6 * BATCHES) % 5
    # Images of a class are alike, so that there is something to learn.
    means = torch.randn(5, *shape, generator=generator)
    return means[y] + 0.1 * torch.randn(len(y), *shape, generator=generator), y


def loader(**settings) -> DataLoader:
    return DataLoader(TensorDataset(*images()), batch_size=6, **settings)


def trainer(folder, **settings) -> L.Trainer:
    usual = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return L.Trainer(**{**usual, **settings})


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def loss_of(module) -> float:
    x, y = images()
    with torch.no_grad():
        return float(nn.functional.cross_entropy(module(x), y))


def accuracy_of(module) -> float:
    x, y = images()
    with torch.no_grad():
        return float((module(x).argmax(1) == y).float().mean())


def test_every_row_has_a_test_and_every_test_a_row():
    lines = [line for line in TABLE.splitlines() if line.startswith("| ") and not line.startswith(("| ---", "| What"))]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {name: holds for name, holds, _ in cells} == ROWS
    assert all(why for _, holds, why in cells if holds == "refused")


# --- data -------------------------------------------------------------------------------------------------------------


@row("`fit` with a `DataLoader`")
@pytest.mark.parametrize("cls", [dtp.DTP, dtp.BP, dtp.FA, dtp.DRL], ids=lambda cls: cls.__name__)
def test_fit_learns(cls, tmp_path):
    module = rule(cls, lr=0.02 if cls is dtp.DRL else 0.3)
    before = loss_of(module)
    trainer(tmp_path, max_epochs=10).fit(module, loader(), loader())
    assert loss_of(module) < 0.8 * before


@row("`fit` with a `DataLoader`")
@pytest.mark.parametrize("names", [("image", "label"), ("x", "y"), ("pixel_values", "labels")])
def test_dictionaries_give_the_same_as_pairs(names, tmp_path):
    x, y = images()
    named = DataLoader([dict(zip(names, pair, strict=True)) for pair in zip(x, y, strict=True)], batch_size=6)
    a, b = rule(), rule()
    trainer(tmp_path).fit(a, loader(), loader())
    trainer(tmp_path).fit(b, named, named)
    assert same(weights(a), weights(b))


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return loader()

    def val_dataloader(self):
        return loader()


@row("`fit` with a `LightningDataModule`")
def test_a_data_module_gives_the_same_as_its_loaders(tmp_path):
    a, b = rule(), rule()
    trainer(tmp_path).fit(a, loader(), loader())
    trainer(tmp_path).fit(b, datamodule=Data())
    assert same(weights(a), weights(b))


@row("batches of another form")
def test_a_function_or_a_method_takes_batches_apart(tmp_path):
    class Mine(dtp.DTP):
        def batch(self, batch):
            return batch[1], batch[2]

    x, y = images()
    three = DataLoader(TensorDataset(torch.arange(len(x)), x, y), batch_size=6)
    plain, given, own = rule(), rule(batch=lambda batch: batch[1:]), rule(Mine)
    trainer(tmp_path).fit(plain, loader(), loader())
    for module in (given, own):
        trainer(tmp_path).fit(module, three, three)
        assert same(weights(plain), weights(module))
    with pytest.raises(UserError, match="A batch must be a pair .* found a list of 3; give DTP"):
        trainer(tmp_path).fit(rule(), three)


def test_labels_that_are_none_are_refused(tmp_path):
    x, y = images()
    with pytest.raises(UserError, match=r"Expected labels for classification, int64 of shape \(6,\), found float32"):
        trainer(tmp_path).fit(rule(), DataLoader(TensorDataset(x, y.float()), batch_size=6))


# --- methods ----------------------------------------------------------------------------------------------------------


@row("`validate` and `test`")
def test_validate_and_test_return_and_log_the_metrics(tmp_path):
    module, logger = rule(), loggers.CSVLogger(tmp_path)
    run = trainer(tmp_path, logger=logger)
    (val,), (test,) = run.validate(module, loader(), verbose=False), run.test(module, loader(), verbose=False)
    assert val == pytest.approx({"val/loss": loss_of(module), "val/accuracy": accuracy_of(module)})
    assert test == pytest.approx({"test/loss": loss_of(module), "test/accuracy": accuracy_of(module)})
    logger.finalize("success")
    assert "test/accuracy" in Path(logger.log_dir, "metrics.csv").read_text()


def test_without_a_logger_nothing_is_given_to_one(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*have no logger configured")
        assert trainer(tmp_path).test(rule(), loader(), verbose=False)[0]["test/loss"] > 0


@row("several loaders in `validate` and `test`")
@pytest.mark.filterwarnings("ignore:Found 8 module")
def test_several_loaders_have_metrics_of_their_own(tmp_path):
    module, (x, _) = rule(), images()
    wrong = (module(x).argmax(1) + 1) % 5
    other = DataLoader(TensorDataset(x, wrong), batch_size=6)
    first, second = trainer(tmp_path).test(module, [loader(), other], verbose=False)
    assert first["test/accuracy/dataloader_idx_0"] == pytest.approx(accuracy_of(module))
    assert second["test/accuracy/dataloader_idx_1"] == 0
    run = trainer(tmp_path)
    run.fit(module, loader(), [loader(), other])
    assert {"val/loss/dataloader_idx_0", "val/accuracy/dataloader_idx_1"} <= run.callback_metrics.keys()


def test_an_evaluation_that_was_stopped_halfway_leaves_nothing_behind(tmp_path):
    class Stops(C.Callback):
        def on_validation_batch_end(self, *_):
            raise RuntimeError("stopped")

    module = rule()
    (whole,) = trainer(tmp_path).validate(module, loader())
    with pytest.raises(RuntimeError, match="stopped"):
        trainer(tmp_path, callbacks=[Stops()]).validate(module, loader())
    assert trainer(tmp_path).validate(module, loader()) == [whole]


@row("`predict`")
def test_predict_gives_outputs_of_batches_with_and_without_goals(tmp_path):
    module, (x, y) = rule(), images()
    with torch.no_grad():
        expected = module(x)
    for data in (TensorDataset(x, y), TensorDataset(x), x, [{"image": image} for image in x]):
        found = trainer(tmp_path).predict(module, DataLoader(data, batch_size=6))
        torch.testing.assert_close(torch.cat(found), expected)


@row("`predict`")
@pytest.mark.parametrize("labelled", [True, False])
def test_predict_with_a_data_module_of_ours_takes_the_test_images_in_order(tmp_path, labelled):
    class Own(Digits):
        def predict_dataloader(self):
            found = super().predict_dataloader()
            return found if labelled else DataLoader(torch.cat([x for x, _ in found]), batch_size=100)

    module = dtp.BP(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), seed=0)
    data = Own(DataOptions(batch_size=100))
    found = trainer(tmp_path).predict(module, datamodule=data)
    with torch.no_grad():
        expected = [module(x) for x, _ in data.test_dataloader()]
    torch.testing.assert_close(found, expected)


@row("`fit(ckpt_path=...)`")
def test_a_run_that_is_continued_has_the_weights_of_one_that_was_not_stopped(tmp_path):
    whole, first, second = rule(), rule(), rule(seed=9)
    trainer(tmp_path, max_epochs=4).fit(whole, loader())
    # The first half of the same schedule.
    half = trainer(tmp_path, max_epochs=4, limit_train_batches=BATCHES, callbacks=[StopAfter(2)])
    half.fit(first, loader())
    half.save_checkpoint(tmp_path / "half.ckpt")
    trainer(tmp_path, max_epochs=4).fit(second, loader(), ckpt_path=tmp_path / "half.ckpt")
    assert same(weights(whole), weights(second)) and not same(weights(whole), weights(first))


@row("`fit(ckpt_path=...)`")
@pytest.mark.parametrize("epoch", [1, 3])
def test_a_checkpoint_of_the_last_batch_of_an_epoch_has_the_rate_of_the_next(tmp_path, epoch):
    whole, again = rule(), rule(seed=9)
    first, second = EachEpoch(tmp_path), EachEpoch(tmp_path / "again")
    trainer(tmp_path, max_epochs=4, callbacks=[first]).fit(whole, loader())
    assert len({*first.rates}) == 4
    trainer(tmp_path, max_epochs=4, callbacks=[second]).fit(again, loader(), ckpt_path=tmp_path / f"{epoch}.ckpt")
    assert second.rates == first.rates[epoch:]
    assert same(weights(whole), weights(again))


class Uncounted(IterableDataset):
    """Batches whose number nothing tells."""

    def __iter__(self):
        return iter(loader())


class Skips(dtp.DTP):
    """Leaves out the rest of each epoch after its second batch."""

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == 2 else None


@row("`configure_optimizers`")
@pytest.mark.parametrize(
    "kind, data, limit",
    [(dtp.DTP, DataLoader(Uncounted(), batch_size=None), 30), (Skips, loader(), None)],
    ids=["data that end early", "a hook that ends the epoch"],
)
def test_rates_fall_after_epochs_whose_last_batch_is_not_told(tmp_path, kind, data, limit):
    usual, found = EachEpoch(tmp_path), EachEpoch(tmp_path)
    trainer(tmp_path, max_epochs=4, callbacks=[usual]).fit(rule(), loader())
    trainer(tmp_path, max_epochs=4, limit_train_batches=limit, callbacks=[found]).fit(rule(kind), data)
    assert found.rates == usual.rates


class EachEpoch(C.Callback):
    """Notes the forward rate of its first batch, and saves a checkpoint after its last."""

    def __init__(self, folder):
        self.folder, self.rates = folder, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.rates.append(pl_module.forward_optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.is_last_batch:
            trainer.save_checkpoint(self.folder / f"{trainer.current_epoch + 1}.ckpt")


class StopAfter(C.Callback):
    def __init__(self, epochs: int):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


@row("`load_from_checkpoint`")
def test_a_checkpoint_has_the_options(tmp_path):
    module, run = rule(beta=0.3, lr=0.2), trainer(tmp_path)
    run.fit(module, loader())
    run.save_checkpoint(tmp_path / "rule.ckpt")
    found = dtp.DTP.load_from_checkpoint(tmp_path / "rule.ckpt", network=network())
    assert found.options == module.options and same(weights(found), weights(module))
    assert found.noise_streams.seed == module.noise_streams.seed


# --- loss, metrics, optimizers ----------------------------------------------------------------------------------------


@row("`loss=`")
def test_a_loss_of_ones_own_is_minimised(tmp_path):
    x, _ = images()
    goals = x.flatten(1)[:, :5]
    data = DataLoader(TensorDataset(x, goals), batch_size=6)
    module, run = rule(loss=nn.functional.mse_loss, lr=0.02), trainer(tmp_path, max_epochs=20)
    before = nn.functional.mse_loss(module(x), goals).item()
    run.fit(module, data, data)
    assert nn.functional.mse_loss(module(x), goals).item() < 0.8 * before
    assert "val/loss" in run.callback_metrics and "val/accuracy" not in run.callback_metrics
    with pytest.raises(UserError, match="SDTP is made for a loss of its own"):
        rule(dtp.SDTP, loss=nn.functional.mse_loss)


@row("`metrics=`")
def test_metrics_of_ones_own_are_computed_in_all_splits(tmp_path):
    collection = torchmetrics.MetricCollection(
        {"f1": torchmetrics.F1Score("multiclass", num_classes=5, average="macro")}
    )
    module, run = rule(metrics=collection), trainer(tmp_path)
    run.fit(module, loader(), loader())
    x, y = images()
    expected = torchmetrics.functional.f1_score(module(x), y, "multiclass", num_classes=5, average="macro")
    assert float(run.callback_metrics["val/f1"]) == pytest.approx(float(expected))
    assert {"train/f1", "train/accuracy"} <= run.callback_metrics.keys()
    assert "val/accuracy" not in run.callback_metrics
    (found,) = run.test(module, loader(), verbose=False)
    assert found["test/f1"] == pytest.approx(float(expected))


def adamw(module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=0.01)


def split(module) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in module.network]


FORMS = {
    "one": adamw,
    "a list, one for each layer": split,
    "lists of both": lambda m: ([o := adamw(m)], [lr_scheduler.ExponentialLR(o, 0.5)]),
    "a dictionary": lambda m: {"optimizer": (o := adamw(m)), "lr_scheduler": lr_scheduler.ExponentialLR(o, 0.5)},
    "dictionaries": lambda m: [
        {"optimizer": o, "lr_scheduler": {"scheduler": lr_scheduler.ExponentialLR(o, 0.5)}} for o in split(m)
    ],
}


def own(configure, cls=dtp.DTP):
    return type("Own", (cls,), {"configure_optimizers": configure})


@row("`configure_optimizers`")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cls", [dtp.DTP, dtp.BP], ids=["DTP", "BP"])
def test_all_forms_of_configure_optimizers_train_every_layer(form, cls, tmp_path):
    module = rule(own(FORMS[form], cls))
    before, run = weights(module), trainer(tmp_path)
    run.fit(module, loader())
    assert not any(torch.equal(a, b) for a, b in zip(before, weights(module), strict=True))
    forward = [o for o in run.optimizers if any(p is module.network[1][1].weight for p in o.param_groups[0]["params"])]
    rate = {"one": 0.01, "a list, one for each layer": 0.1, "dictionaries": 0.025}.get(form, 0.0025)
    assert forward[0].param_groups[0]["lr"] == pytest.approx(rate)


def test_a_forward_optimizer_of_ones_own_steps_as_it_would_alone(tmp_path):
    """Backprop by hand with AdamW is the oracle."""
    module = rule(own(adamw, dtp.BP))
    alone = network()
    alone.load_state_dict(dict(zip(alone.state_dict(), weights(module.network), strict=True)))
    optimizer = torch.optim.AdamW(alone.parameters(), lr=0.01)
    trainer(tmp_path, max_epochs=1).fit(module, loader())
    for x, y in loader():
        optimizer.zero_grad()
        nn.functional.cross_entropy(alone(x), y).backward()
        optimizer.step()
    for a, b in zip(weights(module.network), weights(alone), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("cls", [dtp.DTP, dtp.BP], ids=["DTP", "BP"])
def test_a_fused_optimizer_of_ones_own_learns_as_the_unfused_one_from_images_of_either_layout(cls):
    """Autograd gives a convolution's gradient the layout of its images, and fused steps go by memory order."""

    def learned(fused, layout):
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 3), nn.Tanh(), nn.Flatten())
        plain = nn.Sequential(*layers, nn.Linear(5 * 16, 3))
        module = own(lambda m: torch.optim.AdamW(m.network.parameters(), lr=0.01, fused=fused), cls)(
            plain, input_shape=(3, 8, 8), seed=0
        )
        module.configure_optimizers()
        x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(memory_format=layout)
        for _ in range(2):
            module.training_batch(x, torch.tensor([0, 1, 2, 0, 1, 2]))
        return weights(module.network)

    for layout in (torch.contiguous_format, torch.channels_last):
        for a, b in zip(learned(fused=True, layout=layout), learned(fused=False, layout=layout), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "configure, message",
    [
        (lambda m: None, "configure_optimizers of Own must return an optimizer, .* found None"),
        (lambda m: torch.optim.SGD(m.feedback.parameters(), lr=1), "without any weight of the network"),
        (
            lambda m: {"optimizer": (o := adamw(m)), "lr_scheduler": lr_scheduler.ReduceLROnPlateau(o)},
            "expected a monitor for ReduceLROnPlateau",
        ),
        (
            lambda m: {"optimizer": adamw(m), "lr_scheduler": {"scheduler": None, "intervall": "step"}},
            "expected a schedule, or a dictionary with",
        ),
        (
            lambda m: {
                "optimizer": (o := adamw(m)),
                "lr_scheduler": {"scheduler": lr_scheduler.StepLR(o, 1), "frequency": 0},
            },
            "expected a whole number of at least 1 as frequency of a schedule, found 0",
        ),
    ],
)
def test_what_configure_optimizers_may_not_return_is_told(configure, message, tmp_path):
    with pytest.raises(UserError, match=message):
        trainer(tmp_path).fit(rule(own(configure)), loader())


def inheriting(change):
    """Takes what the class above configures, with ``change`` to the dictionary of its schedule."""

    def configure(module):
        optimizers, schedules = super(type(module), module).configure_optimizers()
        return optimizers, [{**schedule, **change} for schedule in schedules]

    return configure


@row("`ReduceLROnPlateau`")
def test_a_class_goes_on_with_the_metric_that_the_class_above_watches(tmp_path):
    def configure(module):
        o = torch.optim.SGD(module.network.parameters(), lr=1e-12)
        schedule = lr_scheduler.ReduceLROnPlateau(o, factor=0.1, patience=0, threshold=0.5, eps=0)
        return {"optimizer": o, "lr_scheduler": schedule, "monitor": "train/loss"}

    run = trainer(tmp_path, max_epochs=3)
    run.fit(rule(own(inheriting({}), own(configure))), loader())
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-14)


@row("schedules with `interval: step`")
@pytest.mark.parametrize("change, steps", [({}, 3), ({"interval": "step"}, 3 * BATCHES), ({"frequency": 2}, 1)])
def test_a_class_may_step_the_schedule_of_the_class_above_at_other_times(change, steps, tmp_path):
    module = rule(own(inheriting(change), dtp.BP), lr=0.1, lr_schedule="step", lr_period=1, lr_gamma=0.9)
    run = trainer(tmp_path, max_epochs=3)
    run.fit(module, loader())
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.9**steps)


@row("`ReduceLROnPlateau`")
@pytest.mark.parametrize("monitor", ["val/loss", "train/loss"])
def test_the_rate_falls_where_a_metric_stays(monitor, tmp_path):
    def configure(module):
        o = torch.optim.SGD(module.network.parameters(), lr=1e-12)
        # Every change is too small: one epoch to compare with, then each lowers the rate.
        schedule = lr_scheduler.ReduceLROnPlateau(o, factor=0.1, patience=0, threshold=0.5, eps=0)
        return {"optimizer": o, "lr_scheduler": schedule, "monitor": monitor}

    run = trainer(tmp_path, max_epochs=3)
    run.fit(rule(own(configure, dtp.BP)), loader(), loader())
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-14)
    with pytest.raises(UserError, match="expected a metric 'val/loss' to watch, found .*train/loss"):
        trainer(tmp_path).fit(rule(own(lambda m: {**configure(m), "monitor": "val/loss"}, dtp.BP)), loader())


@row("schedules with `interval: step`")
def test_schedules_may_step_after_every_second_batch(tmp_path):
    def configure(module):
        o = torch.optim.SGD(module.network.parameters(), lr=1.0)
        schedule = {"scheduler": lr_scheduler.ExponentialLR(o, 0.5), "interval": "step", "frequency": 2}
        return {"optimizer": o, "lr_scheduler": schedule}

    run = trainer(tmp_path, max_epochs=1)
    run.fit(rule(own(configure)), loader())
    assert run.optimizers[0].param_groups[0]["lr"] == 0.5 ** (BATCHES // 2)


@row("`LBFGS`", "refused")
def test_lbfgs_is_refused(tmp_path):
    with pytest.raises(UserError, match="returns LBFGS, which evaluates a loss several times"):
        trainer(tmp_path).fit(rule(own(lambda m: torch.optim.LBFGS(m.network.parameters()))), loader())


@row("`seed_everything`")
def test_seed_everything_reaches_the_noise(tmp_path):
    def trained(seed, of_the_rule=None):
        layers = network()
        for parameter in layers.parameters():
            nn.init.constant_(parameter, 0.1)
        L.seed_everything(seed, verbose=False)
        module = dtp.DTP(layers, feedback_init="symmetric", seed=of_the_rule)
        trainer(tmp_path, max_epochs=1).fit(module, loader())
        return weights(module)

    assert same(trained(1), trained(1)) and not same(trained(1), trained(2))
    assert same(trained(1, 7), trained(2, 7))


# --- callbacks --------------------------------------------------------------------------------------------------------


class Waits(TorchDispatchMode):
    """Counts how often the host reads a number of a tensor."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += "_local_scalar_dense" in str(function)
        return function(*args, **(kwargs or {}))


@row("`callback_metrics`")
def test_training_metrics_are_there_and_only_windows_and_epochs_wait(tmp_path):
    found, modes = [], []

    class Look(C.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            modes.append(Waits())
            modes[-1].__enter__()

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            modes[-1].__exit__(None, None, None)
            found.append(dict(trainer.callback_metrics))

    module, run = rule(dtp.BP), trainer(tmp_path, max_epochs=1, log_every_n_steps=2, callbacks=[Look()])
    run.fit(module, loader(), loader())
    assert ["train/loss" in metrics for metrics in found] == [False, True, True, True]
    # An optimizer reads its count of steps; windows come after the second and the fourth batch.
    assert modes[0].count == modes[2].count == 0
    assert {"train/loss", "train/accuracy", "val/loss", "val/accuracy"} <= run.callback_metrics.keys()


def test_training_metrics_are_means_of_the_epoch(tmp_path):
    class Collect(C.Callback):
        losses = []

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            with torch.no_grad():
                self.losses.append(float(nn.functional.cross_entropy(module(batch[0]), batch[1])))

    run = trainer(tmp_path, max_epochs=1, callbacks=[Collect()])
    run.fit(rule(dtp.BP), loader())
    assert float(run.callback_metrics["train/loss"]) == pytest.approx(sum(Collect.losses) / BATCHES, rel=1e-5)


@row("`EarlyStopping`")
@pytest.mark.parametrize("monitor", ["val/loss", "train/loss"])
def test_early_stopping(monitor, tmp_path):
    stop = C.EarlyStopping(monitor, patience=1, min_delta=100.0)
    run = trainer(tmp_path, max_epochs=20, callbacks=[stop])
    run.fit(rule(), loader(), loader())
    assert run.current_epoch == 2


@row("`ModelCheckpoint`")
@pytest.mark.parametrize("monitor", ["val/loss", "train/loss"])
def test_model_checkpoint(monitor, tmp_path):
    keep = C.ModelCheckpoint(tmp_path, monitor=monitor, filename="{epoch}")
    run = trainer(tmp_path, max_epochs=2, callbacks=[keep], enable_checkpointing=True)
    run.fit(rule(lr=0.3), loader(), loader())
    assert Path(keep.best_model_path).exists() and keep.best_model_score is not None
    assert float(keep.best_model_score) <= float(run.callback_metrics[monitor]) + 1e-6


@row("`LearningRateMonitor`")
def test_rates_are_named_by_what_they_drive(tmp_path):
    monitor, logger = C.LearningRateMonitor(), loggers.CSVLogger(tmp_path)
    trainer(tmp_path, callbacks=[monitor], logger=logger, log_every_n_steps=1).fit(rule(lr=0.3), loader())
    assert set(monitor.lrs) == {"lr/forward", "lr-SGD/feedback2"}
    assert monitor.lrs["lr/forward"][0] == 0.3
    trainer(tmp_path, callbacks=[monitor], logger=logger).fit(rule(layer_lr=[0.1, 0.2]), loader())
    assert {"lr/forward/layer1", "lr/forward/layer2"} <= set(monitor.lrs)


@row("`EMAWeightAveraging`")
def test_weights_may_be_averaged(tmp_path):
    module = rule()
    trainer(tmp_path, callbacks=[C.EMAWeightAveraging(decay=0.5)]).fit(module, loader(), loader())
    plain = rule()
    trainer(tmp_path).fit(plain, loader(), loader())
    assert not same(weights(module), weights(plain))


@row("`StochasticWeightAveraging`", "refused")
@row("`GradientAccumulationScheduler`", "refused")
@pytest.mark.parametrize(
    "callback", [C.StochasticWeightAveraging(0.1, 1), C.GradientAccumulationScheduler({1: 2})], ids=["average", "sum"]
)
def test_callbacks_for_one_optimizer_are_refused(callback, tmp_path):
    with pytest.raises((MisconfigurationException, RuntimeError), match="1 `optimizer`|not supported"):
        trainer(tmp_path, callbacks=[callback]).fit(rule(), loader())


class ThawLastLayer(C.BaseFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.network[2])

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.network[2], optimizer, lr=0.01)


@row("`BaseFinetuning`, `BackboneFinetuning`")
@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
@pytest.mark.parametrize("cls", [dtp.DTP, dtp.BP], ids=["DTP", "BP"])
def test_layers_may_be_thawed_on_the_way(cls, schedule, tmp_path):
    class Kept(C.Callback):
        def __init__(self):
            self.last = []

        def on_train_epoch_end(self, trainer, pl_module):
            self.last.append(weights(pl_module.network[2]))

    module, kept = rule(cls, lr_schedule=schedule), Kept()
    start = weights(module.network[2])
    trainer(tmp_path, callbacks=[ThawLastLayer(), kept], max_epochs=3).fit(module, loader())
    assert [same(start, found) for found in kept.last] == [True, False, False]
    rates = [group["lr"] for group in module.forward_optimizer.param_groups]
    assert schedule != "constant" or rates == [module.options.lr, 0.01]


@row("`StochasticWeightAveraging`", "refused")
@row("`LearningRateFinder`, `Tuner.lr_find`", "refused")
@pytest.mark.parametrize(
    "callback", [C.StochasticWeightAveraging(0.1, 1), C.LearningRateFinder(num_training_steps=4, update_attr=False)]
)
@pytest.mark.parametrize("cls", [dtp.BP, dtp.PEPITA, dtp.CCL], ids=lambda cls: cls.__name__)
def test_callbacks_whose_rates_would_be_ignored_are_refused_by_rules_of_one_optimizer(cls, callback, tmp_path):
    with pytest.raises(UserError, match=f"^{type(callback).__name__}: its learning rates would be ignored"):
        trainer(tmp_path, callbacks=[callback]).fit(rule(cls), loader())


def pruning(*layers: torch.nn.Module) -> C.ModelPruning:
    # Half of each layer.
    chosen = [(layer, "weight") for layer in layers] or None
    return C.ModelPruning("l1_unstructured", chosen, use_global_unstructured=False, amount=0.5)


@row("`ModelPruning`")
@pytest.mark.parametrize("cls", [dtp.DTP, dtp.BP, dtp.FA, dtp.DFC], ids=lambda cls: cls.__name__)
def test_weights_that_are_pruned_stay_zero_while_others_learn(cls, tmp_path):
    class Kept(C.Callback):
        def __init__(self):
            self.last = []

        def on_train_batch_end(self, *_):
            self.last.append([layer.weight.detach().clone() for layer in layers])

    module, kept = rule(cls), Kept()
    layers = [layer for layer in module.network.modules() if isinstance(layer, nn.Linear)]
    trainer(tmp_path, callbacks=[pruning(*layers), kept]).fit(module, loader())
    # Pruned after each epoch; the first batch after it has weights as they were computed before.
    for learned, pruned in zip(kept.last[-2], kept.last[-1], strict=True):
        assert (learned == 0).float().mean() == 0.5 and torch.equal(learned == 0, pruned == 0)
        assert (learned != pruned)[learned != 0].any()
    assert all(isinstance(layer.weight, nn.Parameter) for layer in layers)


class WeighedLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.scores = nn.Linear(5, 5)

    def forward(self, outputs, y):
        return nn.functional.cross_entropy(self.scores(outputs), y)


@pytest.mark.parametrize(
    ("cls", "options"),
    [(dtp.DTP, {}), (dtp.FA, {}), (dtp.DDTPLinear, {}), (dtp.BP, {"loss": WeighedLoss()})],
    ids=["DTP", "FA", "DDTPLinear", "BP with a loss"],
)
def test_weights_of_feedback_and_of_a_loss_are_not_pruned(cls, options, tmp_path):
    with pytest.raises(UserError, match="^ModelPruning: expected weights of the network, .* feedback or of a loss"):
        trainer(tmp_path, callbacks=[pruning()]).fit(rule(cls, **options), loader())


@pytest.mark.parametrize("cls", [dtp.Hebb, dtp.Competitive], ids=lambda cls: cls.__name__)
def test_rules_that_step_the_weights_themselves_refuse_pruning(cls, tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(UserError, match=f"^ModelPruning: pruned weights are computed .* {cls.__name__} steps"):
        trainer(tmp_path, callbacks=[pruning(network[1])]).fit(cls(network), loader())


# --- loggers ----------------------------------------------------------------------------------------------------------


def needs(module: str):
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed")


def fit_logged(folder, logger):
    callbacks = [dtp.AlignmentCallback()]
    trainer(folder, logger=logger, callbacks=callbacks, log_every_n_steps=2).fit(rule(beta=0.3), loader(), loader())


@row("`CSVLogger`")
def test_csv(tmp_path):
    logger = loggers.CSVLogger(tmp_path)
    fit_logged(tmp_path, logger)
    text = Path(logger.log_dir, "metrics.csv").read_text()
    assert all(name in text for name in ("train/loss", "train/loss_epoch", "val/accuracy", "update_angle/layer1"))
    assert re.search(r"^beta: 0.3$", Path(logger.log_dir, "hparams.yaml").read_text(), re.MULTILINE)
    assert Path(logger.log_dir, "training.png").read_bytes().startswith(b"\x89PNG")


@row("`TensorBoardLogger`")
@needs("tensorboard")
def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = loggers.TensorBoardLogger(tmp_path)
    fit_logged(tmp_path, logger)
    events = EventAccumulator(logger.log_dir).Reload()
    assert {"train/loss", "val/accuracy", "update_angle/layer1"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["training"]
    assert logger.hparams["beta"] == 0.3


@row("`MLFlowLogger`")
@needs("mlflow")
def test_mlflow(tmp_path, monkeypatch):
    # Its store in files needs no further package; it asks for a word that one means it.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = loggers.MLFlowLogger(tracking_uri=f"file:{tmp_path}/mlruns")
    fit_logged(tmp_path, logger)
    run = logger.experiment.get_run(logger.run_id)
    assert {"train/loss", "val/accuracy"} <= run.data.metrics.keys() and run.data.params["beta"] == "0.3"
    assert [file.path for file in logger.experiment.list_artifacts(logger.run_id)] == ["training.png"]


@row("`WandbLogger`")
@needs("wandb")
def test_wandb(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = loggers.WandbLogger(save_dir=tmp_path, mode="offline")
    try:
        fit_logged(tmp_path, logger)
        assert logger.experiment.config["beta"] == 0.3
        assert "val/accuracy" in dict(logger.experiment.summary) and "training" in dict(logger.experiment.summary)
    finally:
        logger.experiment.finish()


# --- arguments of the trainer -----------------------------------------------------------------------------------------


@row("`max_epochs=-1`")
def test_training_without_an_end(tmp_path):
    with pytest.warns(UserWarning, match="The learning rate stays constant"):
        run = trainer(tmp_path, max_epochs=-1, callbacks=[StopAfter(3)])
        run.fit(rule(lr=0.3), loader())
    assert run.global_step == 3 * BATCHES and run.optimizers[0].param_groups[0]["lr"] == 0.3
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The learning rate stays")
        trainer(tmp_path, max_epochs=-1, callbacks=[StopAfter(1)]).fit(rule(lr_period=5), loader())
        run = trainer(tmp_path, max_epochs=-1, callbacks=[StopAfter(2)])
        run.fit(rule(lr=0.3, lr_schedule="step", lr_milestones=[1], lr_gamma=0.5), loader())
    assert run.optimizers[0].param_groups[0]["lr"] == 0.15


@row("`max_steps`")
def test_steps_are_batches_and_end_the_cosine(tmp_path):
    run = trainer(tmp_path, max_epochs=None, max_steps=2 * BATCHES)
    run.fit(rule(lr=0.3, lr_min=0.001), loader())
    assert run.global_step == 2 * BATCHES
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.001)


@row("`max_time`")
def test_max_time(tmp_path):
    run = trainer(tmp_path, max_epochs=-1, max_time={"seconds": 1})
    run.fit(rule(lr_schedule="constant"), loader())
    assert run.global_step > 0


@row("`overfit_batches`")
@row("`fast_dev_run`")
@row("`limit_train_batches` and its relatives")
@row("`val_check_interval`")
@pytest.mark.parametrize(
    "settings, batches",
    [
        ({"overfit_batches": 2}, 4),
        ({"fast_dev_run": True}, 1),
        ({"limit_train_batches": 3, "limit_val_batches": 1}, 6),
        ({"val_check_interval": 0.5}, 2 * BATCHES),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("cls", [dtp.DTP, dtp.VanillaDTP], ids=lambda cls: cls.__name__)
def test_shorter_training(settings, batches, cls, tmp_path):
    run = trainer(tmp_path, **settings)
    run.fit(rule(cls), loader(), loader())
    assert run.global_step == batches and "val/loss" in run.callback_metrics


@row("`barebones`")
@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_barebones(tmp_path):
    nothing = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"))
    module, plain = rule(), rule()
    trainer(tmp_path, barebones=True, **nothing).fit(module, loader())
    trainer(tmp_path).fit(plain, loader())
    assert same(weights(module), weights(plain))


@row("`profiler`, `detect_anomaly`, `deterministic`")
@pytest.mark.parametrize("settings", [{"profiler": "simple"}, {"detect_anomaly": True}, {"deterministic": True}])
def test_settings_that_change_no_number(settings, tmp_path):
    module, plain = rule(), rule()
    try:
        trainer(tmp_path, **settings).fit(module, loader())
    finally:
        torch.use_deterministic_algorithms(False)
    trainer(tmp_path).fit(plain, loader())
    assert same(weights(module), weights(plain))


@row('`precision="bf16-mixed"`, `"64-true"`')
@pytest.mark.parametrize("precision, dtype", [("bf16-mixed", torch.float32), ("64-true", torch.float64)])
def test_precisions_that_hold(precision, dtype, tmp_path):
    module = rule()
    before = weights(module)
    trainer(tmp_path, precision=precision).fit(module, loader(), loader())
    assert all(parameter.dtype == dtype for parameter in weights(module))
    assert not any(torch.equal(a.to(dtype), b) for a, b in zip(before, weights(module), strict=True))


@row('`precision="16-mixed"`, `"16-true"`, `"bf16-true"`', "refused")
@pytest.mark.parametrize(
    "settings, sentence",
    [
        # Lightning takes bf16-mixed for the name on a CPU; the plugin is what it makes of it on a GPU.
        ({"plugins": [MixedPrecision("16-mixed", "cpu")]}, "--precision 16-mixed: float16 is refused"),
        ({"precision": "16-true"}, "--precision 16-true: float16 is refused"),
        ({"precision": "bf16-true"}, "--precision: expected one of 32, 64, bf16-mixed; found 'bf16-true'"),
    ],
    ids=["16-mixed", "16-true", "bf16-true"],
)
@pytest.mark.parametrize("method", ["fit", "validate", "test", "predict"])
def test_precisions_that_do_not_hold(settings, sentence, method, tmp_path):
    with pytest.raises(UserError, match=sentence):
        getattr(trainer(tmp_path, **settings), method)(rule(), loader())


@row("`gradient_clip_val`", "refused")
@row("`accumulate_grad_batches`", "refused")
@pytest.mark.parametrize(
    "settings", [{"gradient_clip_val": 1.0}, {"accumulate_grad_batches": 2}], ids=lambda s: [*s][0]
)
def test_what_needs_lightnings_own_backward_pass_is_refused(settings, tmp_path):
    with pytest.raises(MisconfigurationException, match="not supported for manual optimization"):
        trainer(tmp_path, **settings).fit(rule(), loader())


@row("several devices")
def test_several_devices_need_their_strategy(tmp_path, monkeypatch):
    """That they train alike under it is tested in tests/distributed."""
    assert "feedback-ddp" in StrategyRegistry.available_strategies()
    monkeypatch.setattr(L.Trainer, "world_size", 2)
    with pytest.raises(UserError, match='Expected the strategy feedback-ddp .* give Trainer\\(strategy="feedback-ddp"'):
        trainer(tmp_path).fit(rule(), loader())
