"""Contexts are values: made by a pass, passed on, never remembered and never changed."""

import pickle
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import nn

from dtp.feedback import AffineContext, Context, ShapeContext, SwitchesContext, forward_with_context, ldrl_loss
from dtp.feedback.context import DrawnContext, SampleAffineContext, SlopeContext
from dtp.models.modules import Uncut

from .helpers import undo

IN_SHAPE = (3, 9, 8)


@pytest.fixture
def layer() -> nn.Sequential:
    """A layer whose context has every kind of entry."""
    layer = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ELU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Flatten(),
        nn.Linear(80, 7),
        nn.LayerNorm(7),
    ).double()
    nn.init.uniform_(layer[1].running_mean)
    nn.init.uniform_(layer[1].running_var, 0.5, 2)
    return layer.eval()


def images(batch: int) -> torch.Tensor:
    return torch.randn(batch, *IN_SHAPE, dtype=torch.float64)


def assert_same(a: Context, b: Context) -> None:
    assert isinstance(a, Context) and isinstance(b, Context)
    assert [type(item) for item in a] == [type(item) for item in b]
    for one, other in zip(a, b, strict=True):
        for name, value in vars(one).items() if one is not None else ():
            torch.testing.assert_close(value, getattr(other, name), rtol=1e-12, atol=1e-14)


def test_context_has_one_entry_for_each_operation(layer):
    _, context = forward_with_context(layer, images(2))
    kinds = [type(None), AffineContext, type(None), SwitchesContext, ShapeContext, type(None), SampleAffineContext]
    assert [type(item) for item in context] == kinds
    assert context[3].shape == (4, 9, 8) and context[4].shape == (4, 5, 4)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("samples", [1, 3])
def test_repeated_context_is_that_of_the_repeated_batch(layer, train, samples):
    layer.train(train)
    x = images(4)
    y, context = forward_with_context(layer, x)
    y_repeated, expected = forward_with_context(layer, x.repeat(samples, 1, 1, 1))
    torch.testing.assert_close(y.repeat(samples, 1), y_repeated)
    assert_same(context.repeat(samples), expected)


def test_repetition_is_sample_major(layer):
    _, context = forward_with_context(layer, images(4))
    indices, repeated = context[3].indices, context.repeat(3)[3].indices
    for k in range(3):
        for b in range(4):
            assert torch.equal(repeated[4 * k + b], indices[b])


@pytest.mark.parametrize(
    "index",
    [
        torch.tensor([3, 0, 0]),
        torch.tensor([True, False, True, False]),
        slice(1, 3),
        torch.tensor([], dtype=torch.int64),
    ],
    ids=["numbers", "mask", "slice", "none"],
)
def test_selected_context_is_that_of_the_selected_samples(layer, index):
    x = images(4)
    y, context = forward_with_context(layer, x)
    feedback = undo(layer, IN_SHAPE)
    selected = context.select(index)
    if len(x[index]):
        assert_same(selected, forward_with_context(layer, x[index])[1])
    torch.testing.assert_close(feedback(y[index], selected), feedback(y, context)[index])


def test_feedback_does_not_depend_on_the_history_of_calls(layer):
    feedback = undo(layer, IN_SHAPE)
    x, others = images(4), [images(1), images(9)]
    y, context = forward_with_context(layer, x)
    before = feedback(y, context)

    for train in (True, False, True):
        layer.train(train)
        feedback.train(not train)
        for other in others:
            layer(other)
            y_other, context_other = forward_with_context(layer, other)
            noisy = other + torch.randn_like(other)
            forward_with_context(layer, noisy, given=context_other, routing="fixed")
            feedback(y_other, context_other)
            noises = torch.randn_like(noisy), torch.randn_like(y_other)
            ldrl_loss(layer, feedback, other, y_other, context_other, *noises)
        assert torch.equal(feedback(y, context), before)


def test_interleaved_batches_keep_their_own_contexts(layer):
    feedback = undo(layer, IN_SHAPE)
    batches = [images(2), images(5)]
    alone = [feedback(*forward_with_context(layer, x)) for x in batches]
    passes = [forward_with_context(layer, x) for x in batches]
    for x, expected in zip(reversed(passes), reversed(alone), strict=True):
        assert torch.equal(feedback(*x), expected)


def test_contexts_cannot_be_changed(layer):
    _, context = forward_with_context(layer, images(2))
    with pytest.raises(TypeError):
        context[0] = None
    for item, name in [(context[1], "mean"), (context[3], "indices"), (context[4], "shape")]:
        with pytest.raises(FrozenInstanceError):
            setattr(item, name, None)


def test_passes_leave_nothing_on_the_modules(layer):
    """Pickled modules show everything that they hold, however deep."""
    feedback = undo(layer, IN_SHAPE)
    before = pickle.dumps((layer, feedback))
    x = images(3)
    y, context = forward_with_context(layer, x)
    forward_with_context(layer, x, given=context, routing="fixed")
    feedback(y, context)
    ldrl_loss(layer, feedback, x, y, context, torch.randn_like(x), torch.randn_like(y))
    assert pickle.dumps((layer, feedback)) == before
    layer[3].remembered = context[3].indices
    assert pickle.dumps((layer, feedback)) != before, "the comparison would notice"


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_repetition_keeps_the_memory_format(layout):
    maps = torch.randn(4, 3, 6, 5).to(memory_format=layout)
    indices = maps.argsort(dim=1)
    for item in (SwitchesContext(indices, (3, 12, 10)), SlopeContext(maps), DrawnContext(maps)):
        (given,) = (value for value in vars(item).values() if isinstance(value, torch.Tensor))
        (found,) = (value for value in vars(item.repeat(3)).values() if isinstance(value, torch.Tensor))
        assert torch.equal(found, given.repeat(3, 1, 1, 1)) and found.is_contiguous(memory_format=layout)


def test_masks_are_repeated_and_selected_with_their_samples():
    layer = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5))
    y, context = forward_with_context(layer, torch.randn(4, 5))
    kept = y != 0
    assert 0 < kept.sum() < kept.numel()
    assert torch.equal(context.repeat(3)[1].numbers != 0, kept.repeat(3, 1))
    index = torch.tensor([2, 0, 0])
    assert torch.equal(context.select(index)[1].numbers != 0, kept[index])


def test_an_operation_that_was_not_cut_draws_again_what_it_drew_for_some_samples_or_several_times():
    layer, x = nn.Sequential(Uncut(nn.AlphaDropout(0.5), "", "")), torch.randn(6, 5)
    y, context = forward_with_context(layer, x)
    generator = torch.get_rng_state()
    rows = torch.tensor([4, 1])
    assert torch.equal(forward_with_context(layer, x, context)[0], y)
    assert torch.equal(forward_with_context(layer, x.repeat(3, 1), context.repeat(3))[0], y.repeat(3, 1))
    assert torch.equal(forward_with_context(layer, x[rows], context.select(rows))[0], y[rows])
    few = context.select(slice(2, 5)).select(slice(1, 3)).repeat(2)
    assert torch.equal(forward_with_context(layer, x[3:5].repeat(2, 1), few)[0], y[3:5].repeat(2, 1))
    assert torch.equal(torch.get_rng_state(), generator)
