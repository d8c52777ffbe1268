"""Lightning still has what dtp/compat.py uses of it: assigning to a name that has moved would do nothing, silently."""

import inspect

import pytest
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loops import fit_loop, training_epoch_loop
from lightning.pytorch.strategies import ddp

from dtp import compat


@pytest.fixture
def trainer():
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=3)


def test_a_step_that_is_counted_is_in_global_step(trainer):
    module = LightningModule()
    module.automatic_optimization = False
    trainer.strategy.connect(module)
    assert trainer.global_step == 0
    compat.count_step(trainer)
    assert trainer.global_step == 1


def test_batches_are_those_that_lightning_has_processed(trainer):
    assert compat.batches_done(trainer) == 0
    trainer.fit_loop.epoch_loop.batch_progress.increment_processed()
    assert compat.batches_done(trainer) == 1


def test_loggers_are_told_the_step_that_is_set(trainer):
    compat.log_at(trainer, 7)
    assert trainer.fit_loop.epoch_loop._batches_that_stepped == 7
    # What loggers are given is read from there.
    assert "_batches_that_stepped" in inspect.getsource(training_epoch_loop)
    assert trainer._logger_connector.trainer.fit_loop.epoch_loop is trainer.fit_loop.epoch_loop


def test_lightning_asks_whether_training_is_one_of_so_many_steps(trainer):
    assert trainer.fit_loop._iteration_based_training() is True
    compat.train_by_epochs(trainer)
    assert trainer.fit_loop._iteration_based_training() is False
    assert "self._iteration_based_training()" in inspect.getsource(fit_loop)


def test_ranks_start_alike_by_what_lightning_uses_itself():
    assert compat._sync_module_states is ddp._sync_module_states
