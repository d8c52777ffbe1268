"""What is shown while a run runs, with a toy that counts how often it is read."""

import re
import sys
import time
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from dtp.run.progress import EpochLines, ProgressBar, progress_callback

# The toy trains nothing.
pytestmark = pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned")
BATCHES = 12


class Toy(pl.LightningModule):
    def __init__(self, **progress):
        super().__init__()
        self.automatic_optimization = False
        self.values = progress
        self.reads = 0

    def training_step(self, batch, batch_idx):
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        progress.increment_completed()

    def validation_step(self, batch, batch_idx):
        self.log("val/accuracy", 0.911)

    def configure_optimizers(self):
        return None

    def progress(self):
        self.reads += 1
        return self.values


@pytest.fixture
def toy():
    return Toy(loss=0.4123, accuracy=0.893, images_per_second=1840.3, feedback_share=0.71)


def fit(module, callback, validation=True, **options):
    loader = DataLoader(torch.zeros(BATCHES, 1))
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=isinstance(callback, ProgressBar),
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(module, loader, loader if validation else None)
    return trainer


def epoch_lines(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]


def test_one_line_at_each_end_of_an_epoch(toy, capsys):
    fit(toy, EpochLines())
    lines = epoch_lines(capsys)
    assert len(lines) == 2
    expected = "epoch 2/2  step 24  loss 0.412  acc 0.893  val 0.911  1840 img/s  feedback 71%  "
    assert lines[1].startswith(expected)
    assert re.fullmatch(r"\d+\.\d s", lines[1].removeprefix(expected))
    assert toy.reads == 2


def test_long_epochs_have_lines_in_between(toy, capsys):
    fit(toy, EpochLines(seconds=0.0), validation=False)
    lines = epoch_lines(capsys)
    assert len(lines) == 2 * BATCHES
    assert lines[0].startswith("epoch 1/2  batch 1/12  loss 0.412")
    assert "  val " not in lines[-1]


def test_validation_of_an_earlier_epoch_is_not_shown_again(toy, capsys):
    fit(toy, EpochLines(), check_val_every_n_epoch=2)
    assert ["  val " in line for line in epoch_lines(capsys)] == [False, True]
    trained_before = fit(toy, EpochLines()).callback_metrics
    assert "val/accuracy" in trained_before


def test_an_epoch_cut_short_by_max_steps_has_its_line(toy, capsys):
    fit(toy, EpochLines(), max_steps=5, validation=False)
    assert epoch_lines(capsys)[-1].startswith("epoch 1/2  step 5  loss")


def test_only_what_a_rule_reports_is_shown(capsys):
    fit(Toy(loss=float("nan"), images_per_second=3.21, feedback_share=0.0), EpochLines(), validation=False)
    assert re.fullmatch(r"epoch 1/2  step 12  loss nan  3\.2 img/s  \d+\.\d s", epoch_lines(capsys)[0])


def test_other_ranks_are_silent_and_read_nothing(toy, capsys, monkeypatch):
    monkeypatch.setattr(pl.Trainer, "is_global_zero", False)
    fit(toy, EpochLines(seconds=0.0))
    assert epoch_lines(capsys) == [] and toy.reads == 0


def test_bar_shows_progress_on_stderr(toy, capsys):
    fit(toy, ProgressBar())
    captured = capsys.readouterr()
    assert "epoch 2/2" in captured.err
    assert "12/12" in captured.err
    assert "loss=0.412, acc=0.893, img/s=1840, feedback=71%, val=0.911" in captured.err
    assert "epoch" not in captured.out


@pytest.mark.parametrize("seconds, reads", [(3600.0, 3), (0.0, 2 * BATCHES)])
def test_bar_reads_only_when_it_refreshes(toy, seconds, reads, monkeypatch):
    """Also on a machine that was started less than those seconds ago."""
    began = time.monotonic()
    monkeypatch.setattr("dtp.run.progress.time", SimpleNamespace(monotonic=lambda: 1 + time.monotonic() - began))
    fit(toy, ProgressBar(seconds))
    # The first batch, because nothing was shown before it, and the last of each epoch.
    assert toy.reads == reads


@pytest.mark.parametrize("terminal, expected", [(True, ProgressBar), (False, EpochLines)])
def test_choice(monkeypatch, terminal, expected):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert type(progress_callback()) is expected
