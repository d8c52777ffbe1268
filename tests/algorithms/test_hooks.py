"""A user's own hooks of Lightning, which need call nothing: the rule does its part as if they were not there."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.core.hooks import CheckpointHooks, ModelHooks
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dtp.algorithms import BP, CCL, DTP, FA
from dtp.algorithms.hooks import HOOKS
from dtp.algorithms.metrics import as_vector
from dtp.fields import is_ours

QUIET = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


class Hooks:
    """Beside a rule, or in a rule of one's own."""

    def setup(self, stage=None):
        self.seen = [stage]

    def on_fit_start(self):
        self.seen.append("fit")

    def on_train_start(self):
        self.seen.append("train")

    def on_train_epoch_start(self):
        self.seen.append("epoch")

    def on_train_epoch_end(self):
        self.seen.append("end")

    def on_train_end(self):
        self.seen.append("over")

    def on_validation_epoch_end(self):
        pass

    def on_before_optimizer_step(self, optimizer):
        self.steps = getattr(self, "steps", 0) + 1

    def on_save_checkpoint(self, checkpoint):
        checkpoint["mine"] = self.steps

    def on_load_checkpoint(self, checkpoint):
        self.steps = checkpoint["mine"]


class BesideDTP(Hooks, DTP):
    pass


class BesideFA(Hooks, FA):
    pass


class BesideCCL(Hooks, CCL):
    pass


class Above(DTP):
    def on_train_epoch_start(self):
        super().on_train_epoch_start()

    def on_save_checkpoint(self, checkpoint):
        checkpoint["above"] = 1

    def on_load_checkpoint(self, checkpoint):
        assert checkpoint["above"] == 1


class Below(Above):
    def on_train_epoch_start(self):
        pass

    def on_save_checkpoint(self, checkpoint):
        super().on_save_checkpoint(checkpoint)
        checkpoint["below"] = checkpoint["above"] + 1

    def on_load_checkpoint(self, checkpoint):
        super().on_load_checkpoint(checkpoint)
        assert checkpoint["below"] == 2


def trained(cls, folder, epochs=3, ckpt=None):
    torch.manual_seed(0)
    x, y = torch.randn(48, 6), torch.randint(3, (48,))
    loader = DataLoader(TensorDataset(x, y), 16)
    network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    rule = cls(network, seed=1, **({} if issubclass(cls, CCL) else {"clip_norm": 1e-3}), lr_schedule="constant")
    trainer = pl.Trainer(accelerator="cpu", max_epochs=epochs, default_root_dir=folder, **QUIET)
    trainer.fit(rule, loader, loader, ckpt_path=ckpt)
    trainer.save_checkpoint(folder / "last.ckpt")
    return rule, {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("cls, usual", [(BesideDTP, DTP), (BesideFA, FA), (BesideCCL, CCL), (Below, DTP)])
def test_what_a_hook_does_not_call_is_done_all_the_same(cls, usual, tmp_path):
    expected, metrics = trained(usual, tmp_path)
    (tmp_path / "first").mkdir()
    trained(cls, tmp_path / "first", epochs=1)
    found, same = trained(cls, tmp_path, ckpt=tmp_path / "first" / "last.ckpt")
    # Where a hook may see gradients, the optimizer steps in several passes, which round otherwise.
    assert same == pytest.approx(metrics, rel=1e-6)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value)
    assert cls.load_from_checkpoint(tmp_path / "last.ckpt", network=found.network).batches_by_hand == 9
    if issubclass(cls, Hooks):
        assert found.seen == ["fit", "fit", "train", "epoch", "end", "epoch", "end", "over"] and found.steps >= 9


def test_every_hook_of_lightning_in_which_a_rule_has_a_part_is_completed():
    theirs = {name for cls in (ModelHooks, CheckpointHooks, pl.LightningModule) for name in vars(cls)}
    ours = {name for cls in DTP.__mro__ if is_ours(cls) for name in vars(cls)}
    assert {name for name in theirs & ours if name.startswith("on_")} | {"setup"} == set(HOOKS)


@pytest.mark.parametrize("base, name", [(DTP, "lower_targt"), (FA, "backward_weights"), (BP, "on_train_epoch_ended")])
def test_a_hook_that_is_misspelt_is_told(base, name):
    close = {"lower_targt": "lower_target", "backward_weights": "backward_weight"}.get(name, "on_train_epoch_end")
    with pytest.warns(UserWarning, match=rf"Mine.{name} is no hook; did you mean {close}\?") as told:
        type("Mine", (base,), {name: lambda self: None})
    assert [each.filename for each in told] == [__file__]


def test_names_that_are_no_hooks_or_are_known_are_not_told(recwarn):
    class Mine(DTP):
        lower_targt = None

        def angle_to_target(self): ...
        def _lower_target(self): ...
        def lower_target(self, n, targets, activations): ...
        def backward_weights(self): ...

    class Further(Mine):
        def lower_targt(self): ...

    assert not recwarn.list


class Turned(pl.Callback):
    """Puts gradients of the same numbers, but of another order in memory, in the place of the rule's."""

    def on_before_optimizer_step(self, trainer, module, optimizer):
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            p.grad = p.grad.contiguous(memory_format=torch.channels_last) if p.dim() == 4 else p.grad


class Turning(BP):
    def on_before_optimizer_step(self, optimizer):
        super().on_before_optimizer_step(optimizer)
        Turned().on_before_optimizer_step(None, self, optimizer)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("cls, callbacks", [(BP, [Turned()]), (Turning, [])])
def test_a_hook_may_put_gradients_of_another_layout_in_place(cls, callbacks, optimizer):
    """A fused step would take them in the order in which they lie in memory."""

    def weights(cls, callbacks):
        torch.manual_seed(0)
        loader = DataLoader(TensorDataset(torch.randn(32, 2, 8, 8), torch.randint(3, (32,))), 16)
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
        rule = cls(model, seed=1, optimizer=optimizer, lr_schedule="constant")
        pl.Trainer(accelerator="cpu", max_epochs=2, callbacks=callbacks, **QUIET).fit(rule, loader)
        return rule.network.state_dict()

    expected = weights(BP, [])
    for name, value in weights(cls, callbacks).items():
        torch.testing.assert_close(value, expected[name])


def test_numbers_of_a_batch_may_be_of_any_kind():
    names, values = as_vector({"a": torch.tensor(1.5), "b": 2, "c": np.float32(0.25), "d": torch.tensor([[3.0]])})
    assert names == ("a", "b", "c", "d") and values.tolist() == [1.5, 2.0, 0.25, 3.0]
