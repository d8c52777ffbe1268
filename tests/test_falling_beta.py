"""The rule of benchmarks/falling_beta.py: each epoch is one of DTP with another beta, updates as large as before."""

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from dtp.algorithms import DTP
from dtp.models import MLP
from dtp.models.options import MLPOptions
from tests.runs import ROOT


def small_rule(cls, **options):
    torch.manual_seed(0)
    return cls(MLP(MLPOptions(widths=[8, 7]), (1, 4, 4), 4), lr_schedule="constant", **options)


class Kept(pl.Callback):
    """The weights after each epoch."""

    def __init__(self):
        self.weights = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.weights.append([p.detach().clone() for p in pl_module.network.parameters()])


def test_an_epoch_is_one_of_dtp_with_that_beta(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from falling_beta import FallingBeta

    images, labels = torch.randn(6, 1, 4, 4), torch.arange(6) % 4
    kept = Kept()
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=3, default_root_dir=tmp_path, callbacks=[kept], **settings
    )
    rule = small_rule(FallingBeta, beta=0.8, last_beta=0.2)
    trainer.fit(rule, DataLoader(TensorDataset(images, labels), batch_size=6))

    # Half a cosine over three epochs: the first, the mean, the last.
    alone = small_rule(DTP, beta=0.8)
    alone.configure_optimizers()
    for beta, weights in zip((0.8, 0.5, 0.2), kept.weights, strict=True):
        alone.options.beta, alone.options.local_loss_scale = beta, 0.8 / beta
        alone.training_batch(images, labels)
        for ours, expected in zip(weights, alone.network.parameters(), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
