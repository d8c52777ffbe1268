"""Lightning still has what dtp/compat.py uses of it: assigning to a name that has moved would do nothing, silently."""

import inspect

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loops import fit_loop
from lightning.pytorch.strategies import ddp
from lightning.pytorch.strategies.launchers import subprocess_script
from torch.utils.data import DataLoader

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
    told = []

    class Told(CSVLogger):
        def log_metrics(self, metrics, step=None):
            told.append((metrics, step))

    trainer.loggers = [Told("unused")]
    compat.log_at(trainer, 7)
    trainer._logger_connector.log_metrics({"loss": 1.0})
    assert [step for _, step in told] == [7]


def test_lightning_asks_whether_training_is_one_of_so_many_steps(trainer):
    assert trainer.fit_loop._iteration_based_training() is True
    compat.train_by_epochs(trainer)
    assert trainer.fit_loop._iteration_based_training() is False
    assert "self._iteration_based_training()" in inspect.getsource(fit_loop)


def test_a_trainer_is_at_work_until_it_ends(trainer):
    class Module(LightningModule):
        automatic_optimization = False

        def training_step(self, batch, index):
            asked.append(compat.trains(self))
            compat.count_step(self.trainer)

        def configure_optimizers(self):
            return torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])

    module, asked = Module(), []
    assert not compat.trains(module)
    trainer.fit(module, DataLoader(torch.ones(3, 1)))
    assert asked == [True] * 3 and compat.trainer_of(module) is trainer and not compat.trains(module)


def test_a_module_knows_its_trainer_or_that_it_has_none(trainer):
    module = LightningModule()
    assert compat.trainer_of(module) is None
    module.trainer = trainer
    assert compat.trainer_of(module) is trainer is module.trainer


def test_batches_of_an_epoch_are_counted_before_training(trainer):
    counted = []

    class Counts(LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch):
            pass

        def configure_optimizers(self):
            counted.append(compat.batches_of_an_epoch(self.trainer))
            return torch.optim.SGD([self.weight], lr=1.0)

    trainer.fit_loop.max_epochs = 1
    trainer.fit(Counts(), DataLoader([0.0, 1.0, 2.0]))
    assert counted == [3]


def test_lightning_has_its_processes_looked_after_by_what_is_set(monkeypatch):
    monkeypatch.setattr(subprocess_script, "_launch_process_observer", subprocess_script._launch_process_observer)
    compat.watch_started_processes(print)
    assert subprocess_script._launch_process_observer is print
    assert "_launch_process_observer(" in inspect.getsource(subprocess_script._SubprocessScriptLauncher)


def test_ranks_start_alike_by_what_lightning_uses_itself():
    assert compat._sync_module_states is ddp._sync_module_states
