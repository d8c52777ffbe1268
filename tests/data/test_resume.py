"""A run that is stopped and resumed sees exactly the batches of a run that is not stopped."""

import hashlib
import warnings

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint

from dtp.data.options import DataOptions
from dtp.data.small import Digits

BATCHES = 5


class Recorder(LightningModule):
    """Manual optimisation of one weight; keeps a digest of every batch it trains on."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[str] = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.seen.append(hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest()[:8])
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.weight * x.mean())
        optimizer.step()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAtBatch(Callback):
    def __init__(self, path, after: int):
        self.path, self.after = path, after

    def on_train_batch_end(self, trainer, module, *_):
        if len(module.seen) == self.after:
            trainer.save_checkpoint(self.path)


class SaveAtEpochEnd(Checkpoint):
    def __init__(self, path, after: int):
        self.path, self.after = path, after

    def on_train_epoch_end(self, trainer, module):
        if len(module.seen) == self.after:
            trainer.save_checkpoint(self.path)


def fit(root, workers=0, callback=None, resume=None, val_size=93.0, **limits) -> Recorder:
    data = Digits(
        DataOptions(batch_size=256, num_workers=workers, val_size=val_size, flip=True, crop_padding=1), seed=3
    )
    module = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=callback is not None and isinstance(callback, Checkpoint),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=root,
        callbacks=[callback] if callback else [],
        **({"max_epochs": 3} | limits),
    )
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return module


def check(root, save, after: int, total: int, workers: int = 0, **settings) -> None:
    path = root / "saved.ckpt"
    whole = fit(root, workers, save(path, after), **settings)
    assert len(whole.seen) == len(set(whole.seen)) == total
    resumed = fit(root, workers, resume=path, **settings)
    assert resumed.seen == whole.seen[after:]
    assert torch.equal(resumed.weight, whole.weight)


def test_epochs_that_are_to_overfit_have_the_same_batches(tmp_path):
    seen = fit(tmp_path, overfit_batches=2).seen
    assert seen == 3 * seen[:2] and seen[0] != seen[1]


@pytest.mark.parametrize("batches", [3, 0.7])
@pytest.mark.parametrize(("save", "after"), [(SaveAtBatch, 1), (SaveAtBatch, 5), (SaveAtEpochEnd, 3)])
def test_resumed_where_epochs_are_to_overfit(tmp_path, save, after, batches):
    path = tmp_path / "saved.ckpt"
    whole = fit(tmp_path, callback=save(path, after), val_size=0.0, overfit_batches=batches)
    assert whole.seen == 3 * whole.seen[:3]
    assert fit(tmp_path, resume=path, val_size=0.0, overfit_batches=batches).seen == whole.seen[after:]


@pytest.mark.parametrize("after", [1, 2, BATCHES, BATCHES + 3, 3 * BATCHES - 1])
def test_resumed_from_a_batch(tmp_path, after):
    check(tmp_path, SaveAtBatch, after, 3 * BATCHES)


@pytest.mark.parametrize("val_size", [93.0, 0.0])
@pytest.mark.parametrize("after", [BATCHES, 2 * BATCHES])
def test_resumed_from_the_end_of_an_epoch(tmp_path, after, val_size):
    check(tmp_path, SaveAtEpochEnd, after, 3 * BATCHES, val_size=val_size)


@pytest.mark.parametrize(("save", "after"), [(SaveAtBatch, BATCHES + 3), (SaveAtEpochEnd, BATCHES)])
def test_resumed_with_worker_processes(tmp_path, save, after):
    check(tmp_path, save, after, 3 * BATCHES, workers=2)


@pytest.mark.parametrize(("save", "after"), [(SaveAtBatch, 5), (SaveAtEpochEnd, 6)])
def test_resumed_with_shortened_epochs(tmp_path, save, after):
    check(tmp_path, save, after, 9, limit_train_batches=3)


@pytest.mark.parametrize("val_size", [93.0, 0.0])
@pytest.mark.parametrize(("save", "after"), [(SaveAtBatch, 7), (SaveAtBatch, BATCHES), (SaveAtEpochEnd, BATCHES)])
def test_resumed_when_steps_are_counted(tmp_path, save, after, val_size):
    check(tmp_path, save, after, 12, val_size=val_size, max_steps=12, max_epochs=-1)


def test_a_run_that_reached_max_steps_within_an_epoch_is_continued(tmp_path):
    whole = fit(tmp_path, max_steps=12, max_epochs=-1)
    path = tmp_path / "saved.ckpt"
    fit(tmp_path, callback=SaveAtEpochEnd(path, 7), max_steps=7, max_epochs=-1)
    assert fit(tmp_path, resume=path, max_steps=12, max_epochs=-1).seen == whole.seen[7:]


def test_worker_processes_change_no_batch(tmp_path):
    assert fit(tmp_path, workers=2).seen == fit(tmp_path).seen


def test_an_exact_resume_gets_no_warning_that_it_is_not(tmp_path):
    path = tmp_path / "saved.ckpt"
    fit(tmp_path, callback=SaveAtBatch(path, 2))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not resumable.*")
        fit(tmp_path, resume=path)
