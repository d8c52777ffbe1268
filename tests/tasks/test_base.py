"""What all tasks have in common: networks get them, checkpoints say them, and pickles of earlier versions load."""

import pickle
from types import SimpleNamespace

import pytest
import torch

from dtp.models import MLP
from dtp.models.options import MLPOptions
from dtp.tasks import TASKS, Autoencoder, Classification, Clustering, Task

SHAPE = (2, 3, 4)
EACH = [Classification(7), Autoencoder(SHAPE, (0.2, 0.6), (0.5, 0.1)), Clustering(5, 3)]


def facts(task):
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in vars(task).items()}


def test_every_task_is_one_of_these():
    assert [type(task) for task in EACH] == list(TASKS.values())
    with pytest.raises(TypeError, match="abstract"):
        Task(3)  # type: ignore[abstract]


@pytest.mark.parametrize("task", EACH, ids=lambda task: task.name)
def test_what_a_checkpoint_says_of_a_task_makes_the_same_one(task):
    saved = task.saved()
    assert saved["name"] == task.name
    again = TASKS[saved["name"]].from_saved(saved, SHAPE, task.outputs)
    assert type(again) is type(task) and facts(again) == facts(task)


def test_a_task_takes_of_the_data_what_it_needs():
    data = SimpleNamespace(input_shape=SHAPE, num_classes=3, statistics=((0.2, 0.6), (0.5, 0.1)), projection=None)
    expected = [Classification(3), EACH[1], EACH[2]]
    for (name, kind), task in zip(TASKS.items(), expected, strict=True):
        found = kind.of_data(data, clusters=5)
        assert name == task.name and type(found) is type(task) and facts(found) == facts(task)


@pytest.mark.parametrize("task", EACH, ids=lambda task: task.name)
def test_a_task_pickled_before_each_had_a_file_of_its_own_is_loaded(task):
    # In text, as which the place of the class can be changed without counting bytes.
    old = pickle.dumps(task, protocol=0).replace(f"cdtp.tasks.{task.name}\n".encode(), b"cdtp.tasks\n")
    assert b"cdtp.tasks\n" in old
    found = pickle.loads(old)
    assert type(found) is type(task) and facts(found) == facts(task)


class WithoutTask(MLP):
    """A network of the user's own, whose constructor knows of no task."""

    def __init__(self, options, input_shape, num_classes):
        super().__init__(options, input_shape, num_classes)


class KeepsTask(MLP):
    """A network of the user's own, whose constructor takes a task and does not hand it on."""

    def __init__(self, options, input_shape, num_classes, task=None):
        super().__init__(options, input_shape, num_classes)


class SeesTask(MLP):
    def make_layers(self):
        self.seen = self.task
        return super().make_layers()


@pytest.mark.parametrize("model", [MLP, WithoutTask, KeepsTask])
@pytest.mark.parametrize("task", EACH, ids=lambda task: task.name)
def test_a_network_for_a_task_has_it_and_its_outputs(model, task):
    network = model.for_task(MLPOptions(widths=[4]), SHAPE, task)
    assert network.task is task and network.num_classes == task.outputs


def test_the_task_is_an_argument_of_the_network_which_classifies_without():
    task = EACH[1]
    network = SeesTask(MLPOptions(widths=[4]), SHAPE, task.outputs, task=task)
    assert network.seen is task
    usual = MLP(MLPOptions(widths=[4]), SHAPE, 6).task
    assert type(usual) is Classification and usual.outputs == 6
