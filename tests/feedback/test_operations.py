"""Each feedback operation against the vector-Jacobian product that autograd gives for its forward operation."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dtp.errors import UserError
from dtp.feedback import (
    Context,
    Elementwise,
    FeedbackOperation,
    FeedbackSettings,
    SwitchesContext,
    derive_feedback,
    elementwise_feedback,
    forward_with_context,
    ldrl_loss,
    operations,
    register_feedback,
)
from dtp.feedback.operations import last_at_each, sum_over_images, windows_overlap

from .helpers import undo
from .reference import last_wins

exact = {"rtol": 1e-10, "atol": 1e-12}  # float64: rounding alone


def random_like(x: Tensor) -> Tensor:
    return torch.randn(x.shape, dtype=x.dtype)


def assert_adjoint(module: nn.Module, in_shape: tuple[int, ...], batch: int = 2, **settings) -> None:
    """G u equals the vector-Jacobian product, and <G u, v> = <u, F v> where F is the linear part of the module."""
    module = module.double()
    x = torch.randn(batch, *in_shape, dtype=torch.float64, requires_grad=True)
    y, context = forward_with_context(module, x)
    u = random_like(y)
    r = undo(module, in_shape, symmetric=True, **settings)(u, context)
    torch.testing.assert_close(r, torch.autograd.grad(module(x), x, u)[0], **exact)

    if any(isinstance(m, nn.MaxPool2d) for m in module.modules()):
        return  # linear only once its switches are fixed: has a test of its own
    with torch.no_grad():
        v = random_like(x)
        linear_part = module(v) - module(torch.zeros_like(v))
    torch.testing.assert_close((r * v).sum(), (u * linear_part).sum(), **exact)


# --- affine maps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
def test_linear_feedback_is_adjoint(bias):
    assert_adjoint(nn.Linear(7, 4, bias=bias), (7,))
    assert_adjoint(nn.Linear(7, 4, bias=bias), (7,), bias=True)  # copy_transpose zeroes the feedback bias


CONVOLUTIONS = [
    dict(kernel_size=1),
    dict(kernel_size=3),
    dict(kernel_size=3, padding=1, stride=2),
    dict(kernel_size=2, stride=2),
    dict(kernel_size=5, padding=2, stride=3),
    dict(kernel_size=(3, 2), padding=(0, 1), stride=(2, 3)),
    dict(kernel_size=(1, 5), padding=(3, 2), stride=(4, 1)),
    dict(kernel_size=3, dilation=2, padding=1, stride=2),
    dict(kernel_size=(2, 3), dilation=(4, 2), stride=(3, 2), padding=1),
    dict(kernel_size=3, padding="same"),
    dict(kernel_size=(5, 3), padding="same", dilation=(1, 2)),
    dict(kernel_size=2, padding="same", dilation=2),
    dict(kernel_size=(4, 3), padding="valid", stride=(1, 3)),
    dict(kernel_size=3, padding=1, stride=2, groups=2),
    dict(kernel_size=(3, 5), padding="same", groups=4),
]


@pytest.mark.parametrize("arguments", CONVOLUTIONS, ids=lambda a: " ".join(f"{k}={v}" for k, v in a.items()))
def test_convolution_feedback_is_adjoint_for_every_input_size(arguments):
    conv = nn.Conv2d(4, 8, **arguments)
    for height in range(5, 40):
        assert_adjoint(conv, (4, height, 44 - height), batch=1)


@pytest.mark.parametrize("bias", [False, True])
def test_convolution_bias_is_no_part_of_the_adjoint(bias):
    assert_adjoint(nn.Conv2d(2, 3, 3, bias=bias), (2, 6, 7), bias=True)


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_convolution_that_pads_with_other_than_zeros_is_refused(mode):
    with pytest.raises(UserError, match=rf"Layer 1: .*{mode}.*padding_mode='zeros'"):
        undo(nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode), (2, 6, 6))


@pytest.mark.parametrize("arguments", [dict(kernel_size=4), dict(kernel_size=(3, 2)), dict(kernel_size=2, dilation=3)])
def test_convolution_that_pads_unevenly_is_refused(arguments):
    with pytest.raises(UserError, match=r"Layer 1: .*padding='same'.*unevenly"):
        undo(nn.Conv2d(2, 3, padding="same", **arguments), (2, 6, 6))


@pytest.mark.parametrize(
    "arguments",
    [
        dict(kernel_size=1),
        dict(kernel_size=3, padding=1, stride=2),
        dict(kernel_size=5, padding=3, stride=3, dilation=2, groups=2),
        dict(kernel_size=5, padding="same", dilation=2),
        dict(kernel_size=4, padding="valid", stride=3, groups=4),
    ],
    ids=lambda a: " ".join(f"{k}={v}" for k, v in a.items()),
)
def test_convolution_feedback_in_one_dimension_is_adjoint_for_every_input_length(arguments):
    conv = nn.Conv1d(4, 8, **arguments)
    for length in range(9, 30):
        assert_adjoint(conv, (4, length), batch=1)


# --- reshapes and average pooling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("flatten", [nn.Flatten(), nn.Flatten(2), nn.Flatten(1, 2)])
def test_unflatten_is_adjoint(flatten):
    assert_adjoint(flatten, (3, 4, 5))


def test_identity_feedback_is_identity():
    assert_adjoint(nn.Identity(), (3, 4))


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(2),
        nn.AvgPool2d(3, stride=2, padding=1),
        nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
        nn.AvgPool2d((2, 3), stride=(1, 2), ceil_mode=True),
        nn.AvgPool2d(2, divisor_override=3),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveAvgPool2d((3, 2)),
        nn.AdaptiveAvgPool2d((None, 4)),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(8, 8), (7, 10), (5, 9)])
def test_average_pooling_feedback_is_adjoint(pool, size):
    assert_adjoint(pool, (3, *size))


@pytest.mark.parametrize(
    "pool", [nn.AvgPool1d(2), nn.AvgPool1d(3, 2, 1), nn.AdaptiveAvgPool1d(1), nn.AdaptiveAvgPool1d(4)], ids=str
)
@pytest.mark.parametrize("length", [8, 11])
def test_average_pooling_feedback_in_one_dimension_is_adjoint(pool, length):
    assert_adjoint(pool, (3, length))


def test_average_pooling_feedback_passes_gradients_and_works_without_them():
    pool = nn.AvgPool2d(2).double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    y, context = forward_with_context(pool, x)
    feedback = undo(pool, (3, 6, 6))
    y.requires_grad_()
    upward = random_like(x)
    # The adjoint of the adjoint is the pooling itself.
    torch.testing.assert_close(torch.autograd.grad(feedback(y, context), y, upward)[0], pool(upward), **exact)
    with torch.no_grad():
        assert not feedback(y, context).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(feedback(y, context), feedback(y.detach(), context))


# --- batch normalisation ----------------------------------------------------------------------------------------------


def batch_norm(kind: type[nn.Module], train: bool, **arguments) -> nn.Module:
    """A batch normalisation with random statistics and weights."""
    module = kind(4, **arguments).double().train(train)
    for tensor in [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]:
        nn.init.uniform_(tensor, 0.5, 2.0)
    return module


def frozen(module: nn.Module, mean: Tensor, var: Tensor, x: Tensor) -> Tensor:
    return F.batch_norm(x, mean, var, module.weight, module.bias, training=False, eps=module.eps)


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    rows = x.transpose(0, 1).flatten(1)
    return rows.mean(1), rows.var(1, unbiased=False)


BATCH_NORMS = pytest.mark.parametrize(
    ("kind", "in_shape"), [(nn.BatchNorm1d, (4,)), (nn.BatchNorm1d, (4, 5)), (nn.BatchNorm2d, (4, 5, 3))]
)


@BATCH_NORMS
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("mode", ["eval", "train", "untracked"])
def test_batch_norm_feedback_is_adjoint_of_the_frozen_affine_map(kind, in_shape, affine, mode):
    module = batch_norm(kind, mode == "train", affine=affine, track_running_stats=mode != "untracked")
    x = torch.randn(6, *in_shape, dtype=torch.float64, requires_grad=True)
    if mode == "eval":
        statistics = module.running_mean.clone(), module.running_var.clone()
    else:
        statistics = batch_statistics(x.detach())

    y, context = forward_with_context(module, x)
    expected = frozen(module, *statistics, x)
    torch.testing.assert_close(y, expected, **exact)
    u = random_like(y)
    feedback = undo(module, in_shape)
    torch.testing.assert_close(feedback(u, context), torch.autograd.grad(expected, x, u)[0], **exact)


@BATCH_NORMS
def test_batch_norm_context_does_not_change_with_the_buffers(kind, in_shape):
    module = batch_norm(kind, train=False)
    x = torch.randn(6, *in_shape, dtype=torch.float64)
    _, context = forward_with_context(module, x)
    feedback = undo(module, in_shape)
    before = feedback(x, context), forward_with_context(module, x, given=context)[0]
    with torch.no_grad():
        module.running_mean.add_(3)
        module.running_var.mul_(5)
    assert torch.equal(feedback(x, context), before[0])
    assert torch.equal(forward_with_context(module, x, given=context)[0], before[1])


@BATCH_NORMS
@pytest.mark.parametrize("train", [True, False])
def test_noisy_pass_uses_the_clean_statistics_and_stores_none(kind, in_shape, train):
    module = batch_norm(kind, train)
    x = torch.randn(6, *in_shape, dtype=torch.float64)
    statistics = batch_statistics(x) if train else (module.running_mean.clone(), module.running_var.clone())
    _, context = forward_with_context(module, x)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    noisy = x + random_like(x)
    y, noisy_context = forward_with_context(module, noisy, given=context)

    torch.testing.assert_close(y, frozen(module, *statistics, noisy), **exact)
    assert noisy_context == context
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@BATCH_NORMS
def test_clean_pass_in_training_updates_running_statistics_once(kind, in_shape):
    module, other = batch_norm(kind, True), batch_norm(kind, True)
    other.load_state_dict(module.state_dict())
    x = torch.randn(6, *in_shape, dtype=torch.float64)
    forward_with_context(module, x)
    other(x)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


# --- layer and group normalisation ------------------------------------------------------------------------------------


def sample_statistics(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance that each value of x is normalised by, in its shape, one sample after the other."""
    mean, var = torch.empty_like(x), torch.empty_like(x)
    for b in range(len(x)):
        if isinstance(module, nn.GroupNorm):
            parts = [(b, rows) for rows in torch.arange(x.shape[1]).chunk(module.num_groups)]
        else:
            outer = x.shape[1 : x.dim() - len(module.normalized_shape)]
            parts = [(b, *(i[None] for i in at)) for at in torch.ones(outer).nonzero()] if outer else [(b,)]
        for part in parts:
            mean[part], var[part] = x[part].mean(), x[part].var(unbiased=False)
    return mean, var


def frozen_by_sample(module: nn.Module, mean: Tensor, var: Tensor, x: Tensor) -> Tensor:
    y = (x - mean) / (var + module.eps).sqrt()
    for parameter, combine in ((module.weight, torch.mul), (module.bias, torch.add)):
        if parameter is not None:
            per_group = isinstance(module, nn.GroupNorm)
            y = combine(y, parameter.view(-1, *(1 for _ in x.shape[2:])) if per_group else parameter)
    return y


SAMPLE_NORMS = pytest.mark.parametrize(
    ("make", "in_shape"),
    [
        (lambda: nn.LayerNorm(5), (5,)),
        (lambda: nn.LayerNorm(5), (3, 5)),
        (lambda: nn.LayerNorm([4, 3, 5]), (4, 3, 5)),
        (lambda: nn.LayerNorm([3, 5]), (4, 3, 5)),
        (lambda: nn.LayerNorm(5, bias=False), (5,)),
        (lambda: nn.LayerNorm(5, elementwise_affine=False), (5,)),
        (lambda: nn.GroupNorm(2, 4), (4,)),
        (lambda: nn.GroupNorm(2, 4), (4, 3)),
        (lambda: nn.GroupNorm(1, 4), (4, 3, 5)),
        (lambda: nn.GroupNorm(4, 4, affine=False), (4, 3, 5)),
    ],
)


def sample_norm(make) -> nn.Module:
    module = make().double()
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.5, 2.0)
    return module


@SAMPLE_NORMS
@pytest.mark.parametrize("train", [True, False])
def test_sample_norm_feedback_is_adjoint_of_the_frozen_affine_map(make, in_shape, train):
    module = sample_norm(make).train(train)
    x = torch.randn(6, *in_shape, dtype=torch.float64, requires_grad=True)
    y, context = forward_with_context(module, x)
    assert torch.equal(y, module(x))
    expected = frozen_by_sample(module, *sample_statistics(module, x.detach()), x)
    torch.testing.assert_close(y, expected, **exact)
    u = random_like(y)
    torch.testing.assert_close(
        undo(module, in_shape)(u, context), torch.autograd.grad(expected, x, u)[0], rtol=1e-9, atol=1e-12
    )


@SAMPLE_NORMS
def test_noisy_pass_uses_the_clean_statistics_of_each_sample(make, in_shape):
    module = sample_norm(make)
    x = torch.randn(6, *in_shape, dtype=torch.float64)
    _, context = forward_with_context(module, x)
    noisy = x.repeat(3, *(1 for _ in in_shape))
    noisy = noisy + random_like(noisy)
    y, noisy_context = forward_with_context(module, noisy, given=context.repeat(3))
    statistics = [s.repeat(3, *(1 for _ in in_shape)) for s in sample_statistics(module, x)]
    torch.testing.assert_close(y, frozen_by_sample(module, *statistics, noisy), **exact)
    assert torch.equal(noisy_context[0].mean, context[0].mean.repeat(3, *(1 for _ in context[0].mean.shape[1:])))


def test_sample_norm_weights_belong_to_the_forward_layer_alone():
    layer = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ELU())
    feedback = undo(layer, (4,))
    y, context = forward_with_context(layer, torch.randn(3, 4))
    assert [name for name, _ in feedback.named_parameters()] == ["operations.2.linear.weight"]
    r = feedback(y.detach(), context).sum()
    assert torch.autograd.grad(r, layer[1].weight, allow_unused=True) == (None,)


# --- dropout ----------------------------------------------------------------------------------------------------------

DROPOUTS = pytest.mark.parametrize(
    ("module", "in_shape"),
    [
        (nn.Dropout(0.3), (40,)),
        (nn.Dropout(0.3, inplace=True), (3, 5, 4)),
        (nn.Dropout1d(0.5), (6, 5)),
        (nn.Dropout2d(0.5), (6, 3, 4)),
        (nn.Dropout3d(0.5), (6, 2, 3, 4)),
    ],
    ids=str,
)


@DROPOUTS
def test_dropout_drops_as_the_module_does_and_feedback_by_the_same_mask(module, in_shape):
    module.train()
    x = torch.randn(4, *in_shape, dtype=torch.float64)
    torch.manual_seed(3)
    expected = module(x.clone())
    torch.manual_seed(3)
    before = x.clone()
    y, context = forward_with_context(module, x)
    assert torch.equal(y, expected) and torch.equal(x, before)
    kept = expected / x
    assert 0 < (kept == 0).double().mean() < 1
    u = random_like(y)
    torch.testing.assert_close(undo(module, in_shape)(u, context), u * kept, **exact)


@DROPOUTS
@pytest.mark.parametrize("routing", ["noisy", "fixed"])
def test_noisy_pass_drops_what_the_clean_pass_dropped(module, in_shape, routing):
    """So that it differs from the clean pass by the noise alone; it draws nothing."""
    module.train()
    x = torch.randn(4, *in_shape, dtype=torch.float64)
    y, context = forward_with_context(module, x)
    state = torch.get_rng_state()
    noise = random_like(x.repeat(3, *(1 for _ in in_shape)))
    torch.set_rng_state(state)
    given = context.repeat(3)
    noisy, again = forward_with_context(
        module, x.repeat(3, *(1 for _ in in_shape)) + noise, given=given, routing=routing
    )
    assert torch.equal(torch.get_rng_state(), state)
    kept = (y / x).repeat(3, *(1 for _ in in_shape))
    torch.testing.assert_close(noisy - y.repeat(3, *(1 for _ in in_shape)), noise * kept, **exact)
    assert torch.equal(again[0].numbers, given[0].numbers)


@DROPOUTS
def test_dropout_does_nothing_in_evaluation(module, in_shape):
    module.eval()
    x = torch.randn(4, *in_shape)
    y, context = forward_with_context(module, x)
    assert torch.equal(y, x) and context[0] is None
    assert torch.equal(undo(module, in_shape)(x, context), x)
    module.train()


# --- max pooling ------------------------------------------------------------------------------------------------------

POOLS = [
    nn.MaxPool2d(2),
    nn.MaxPool2d((2, 3), ceil_mode=True),
    nn.MaxPool2d(3, stride=2, padding=1),
    nn.MaxPool2d(3, stride=1),
    nn.MaxPool2d((3, 2), stride=(2, 1), padding=(1, 0), ceil_mode=True),
    nn.MaxPool2d(2, stride=1, dilation=2),
    nn.MaxPool2d(2, stride=2, dilation=(2, 3), padding=1, ceil_mode=True),
]


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_max_unpooling_by_addition_is_adjoint(pool, size):
    assert_adjoint(pool, (3, *size), unpool="add")


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_fixed_routing_gathers_what_unpooling_scatters(pool, size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    y, context = forward_with_context(pool, x)
    torch.testing.assert_close(y, pool(x), rtol=0, atol=0)
    # With the switches of x, pooling is linear: any v, with maxima elsewhere, satisfies <G u, v> = <u, P v>.
    v, u = random_like(x), random_like(y)
    pooled, fixed_context = forward_with_context(pool, v, given=context, routing="fixed")
    assert fixed_context == context
    unpooled = undo(pool, x.shape[1:])(u, context)
    torch.testing.assert_close((unpooled * v).sum(), (u * pooled).sum(), **exact)
    # P v, one entry after the other.
    for b in range(2):
        for c in range(3):
            at = context[0].indices[b, c]
            assert torch.equal(pooled[b, c], v[b, c].flatten()[at.flatten()].view_as(at))


def test_routing_has_no_effect_on_a_clean_pass():
    x = torch.randn(2, 3, 7, 8)
    (y, context), (fixed, fixed_context) = (forward_with_context(POOLS[2], x, routing=r) for r in ("noisy", "fixed"))
    assert torch.equal(y, fixed) and torch.equal(context[0].indices, fixed_context[0].indices)


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_noisy_routing_pools_the_noisy_values(pool):
    x = torch.randn(2, 3, 7, 8)
    _, context = forward_with_context(pool, x)
    v = random_like(x)
    pooled, noisy_context = forward_with_context(pool, v, given=context, routing="noisy")
    assert torch.equal(pooled, pool(v))
    expected = F.max_pool2d(v, **pool_arguments(pool), return_indices=True)[1]
    assert torch.equal(noisy_context[0].indices, expected)


OTHER_POOLS = [
    (nn.MaxPool1d(2), (3, 9)),
    (nn.MaxPool1d(3, 2, 1), (3, 9)),
    (nn.MaxPool1d(2, 1, dilation=2, ceil_mode=True), (3, 9)),
    (nn.AdaptiveMaxPool1d(4), (3, 9)),
    (nn.AdaptiveMaxPool2d(3), (3, 9, 7)),
    (nn.AdaptiveMaxPool2d((None, 2)), (3, 5, 8)),
]


@pytest.mark.parametrize(("pool", "in_shape"), OTHER_POOLS, ids=str)
def test_other_max_poolings_are_undone_by_their_adjoints_too(pool, in_shape):
    """With the switches of the clean pass, given to any other: <G u, v> = <u, P v>."""
    x = torch.randn(2, *in_shape, dtype=torch.float64, requires_grad=True)
    y, context = forward_with_context(pool, x)
    assert torch.equal(y, pool(x))
    u, v = random_like(y), random_like(x)
    unpooled = undo(pool, in_shape)(u, context)
    torch.testing.assert_close(unpooled, torch.autograd.grad(pool(x), x, u)[0], **exact)
    pooled, _ = forward_with_context(pool, v, given=context, routing="fixed")
    torch.testing.assert_close((unpooled * v).sum(), (u * pooled).sum(), **exact)
    moved, _ = forward_with_context(pool, v, given=context, routing="noisy")
    assert torch.equal(moved, pool(v))


def pool_arguments(pool: nn.MaxPool2d) -> dict:
    return {name: getattr(pool, name) for name in ("kernel_size", "stride", "padding", "dilation", "ceil_mode")}


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 1), nn.MaxPool2d((3, 2), 2)])
def test_unpooling_by_writing_is_torchs_with_its_gradient(pool):
    """Of several values at one position torch's keeps the last only as long as no threads race for it: here is one."""
    x = torch.randn(4, 3, 8, 8)
    pooled, context = forward_with_context(pool, x)
    # Not the pooled values themselves: those are equal wherever windows share a maximum, targets are not.
    y = random_like(pooled).requires_grad_()
    found = undo(pool, x.shape[1:], unpool="write")(y, context)
    expected = F.max_unpool2d(y, context[0].indices, pool.kernel_size, pool.stride, pool.padding, output_size=(8, 8))
    assert torch.equal(found, expected)
    upward = random_like(found)
    assert torch.equal(torch.autograd.grad(found, y, upward)[0], torch.autograd.grad(expected, y, upward)[0])


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_unpooling_by_writing_keeps_the_last_of_several_values(pool):
    x = torch.randn(4, 3, 8, 9)
    pooled, context = forward_with_context(pool, x)
    y = random_like(pooled)
    found = undo(pool, x.shape[1:], unpool="write")(y, context)
    assert torch.equal(found, last_wins(y, context[0].indices, (8, 9)))


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("dim", [1, 2])
def test_what_a_gpu_writes_is_the_same_in_any_order_with_the_same_gradient(pool, dim):
    x = torch.randn(4, 3, 8, 9)
    pooled, context = forward_with_context(pool, x)
    y, order = random_like(pooled).requires_grad_(), torch.randperm(pooled[0, 0].numel())
    # As maps lie in memory: (B, C, positions), and with the channels innermost.
    values, indices = (t.flatten(2) if dim == 2 else t.flatten(2).mT for t in (y, context[0].indices))
    settled = last_at_each(dim, indices, values, 72)
    zeros = torch.zeros((4, 3, 72) if dim == 2 else (4, 72, 3), dtype=x.dtype)
    shuffled = zeros.scatter(dim, indices.index_select(dim, order), settled.index_select(dim, order))
    expected = zeros.scatter(dim, indices, values)
    assert torch.equal(shuffled, expected)
    assert torch.equal(expected if dim == 2 else expected.mT, last_wins(y, context[0].indices, (8, 9)).flatten(2))
    upward = random_like(zeros)
    assert torch.equal(
        torch.autograd.grad(shuffled, y, upward, retain_graph=True)[0], torch.autograd.grad(expected, y, upward)[0]
    )
    _, pull = torch.func.vjp(lambda v: zeros.scatter(dim, indices, last_at_each(dim, indices, v, 72)), values.detach())
    assert torch.equal(pull(upward)[0], upward.gather(dim, indices))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("unpool", ["add", "write"])
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_unpooled_images_are_summed_without_being_made(pool, unpool, layout, monkeypatch):
    """But where windows overlap and the last of several values counts."""
    x = torch.randn(5, 3, 8, 9, dtype=torch.float64).to(memory_format=layout)
    pooled, context = forward_with_context(pool, x)
    (unpooling,) = undo(pool, (3, 8, 9), unpool=unpool).operations
    y = torch.randn_like(pooled)
    expected = unpooling(y, context[0]).sum(0)
    if unpool == "add" or not windows_overlap(pool):
        monkeypatch.setattr(type(unpooling), "forward", None)
    torch.testing.assert_close(unpooling.summed(y, context[0]), expected, **exact)


@pytest.mark.parametrize("shape", [(5, 3, 8, 9), (5, 1, 8, 9), (5, 3, 1, 1), (5, 3, 8), (5, 3)])
def test_images_are_summed_alike_in_either_layout(shape):
    x = torch.randint(9, shape).float()
    assert torch.equal(sum_over_images(x), x.sum(0))
    if len(shape) == 4:
        found = sum_over_images(x.to(memory_format=torch.channels_last))
        assert torch.equal(found, x.sum(0))
        # The order of the memory stays, in which the sum is taken: torch's own gives maps one after the other.
        assert shape[1] == 1 or found.stride(0) == 1


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("pool", "settled"), [(nn.MaxPool2d(3, 2, 1), 1), (nn.MaxPool2d(2), 0)])
def test_a_gpu_settles_who_writes_where_windows_overlap_without_a_look_at_a_value(pool, settled, layout, monkeypatch):
    """On tensors that claim to be on a GPU, which have no values to look at."""
    calls = []
    monkeypatch.setattr(operations, "last_at_each", lambda *a: calls.append(a) or last_at_each(*a))
    feedback = undo(pool, (3, 8, 8), unpool="write")
    with FakeTensorMode():
        x = torch.empty(4, 3, 8, 8, device="cuda").to(memory_format=layout)
        y, context = forward_with_context(pool, x)
        found = feedback(y, context)
    assert found.device.type == "cuda" and found.shape == x.shape and found.stride() == x.stride()
    assert len(calls) == settled


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (nn.MaxPool2d(2), False),
        (nn.MaxPool2d(2, 3), False),
        (nn.MaxPool2d(3, 2), True),
        (nn.MaxPool2d((2, 3), 2), True),
        (nn.MaxPool2d(2, (2, 1)), True),
        (nn.MaxPool2d(2, dilation=2), True),
        (nn.MaxPool1d(2), False),
        (nn.MaxPool1d(3, 2), True),
        (nn.MaxPool1d((2,), 2), False),
        (nn.MaxPool1d((3,), 2), True),
        (nn.AdaptiveMaxPool2d(3), True),
    ],
)
def test_windows_are_known_to_overlap(pool, expected):
    assert windows_overlap(pool) is expected


def test_writing_and_adding_differ_only_where_windows_share_a_maximum():
    x = torch.randn(4, 3, 8, 8)
    y, context = forward_with_context(nn.MaxPool2d(2), x)
    written, added = (undo(nn.MaxPool2d(2), x.shape[1:], unpool=mode)(y, context) for mode in ("write", "add"))
    assert torch.equal(written, added)

    overlapping = nn.MaxPool2d(3, 2, 1)
    y, context = forward_with_context(overlapping, x)
    written, added = (undo(overlapping, x.shape[1:], unpool=mode)(y, context) for mode in ("write", "add"))
    times = undo(overlapping, x.shape[1:], unpool="add")(torch.ones_like(y), context)
    # Every window that shares a maximum holds the same value, so adding multiplies it by their number.
    assert times.max() > 1
    torch.testing.assert_close(added, written * times)


# --- channels last ----------------------------------------------------------------------------------------------------

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def in_channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("mode", ["add", "write"])
@pytest.mark.parametrize("of_switches", LAYOUTS)
def test_unpooling_keeps_channels_last_and_puts_the_same_values_back(pool, mode, of_switches):
    x = torch.randn(4, 3, 8, 9)
    pooled, context = forward_with_context(pool, x)
    y = random_like(pooled)
    switches = Context(
        [SwitchesContext(context[0].indices.contiguous(memory_format=of_switches), context[0].shape)],
    )
    feedback = undo(pool, x.shape[1:], unpool=mode)
    found = feedback(in_channels_last(y), switches)
    torch.testing.assert_close(found, feedback(y, context), rtol=1e-6, atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last) and not found.is_contiguous()
    if mode == "write":
        assert torch.equal(found, last_wins(y, context[0].indices, (8, 9)))
    else:
        assert torch.equal(feedback(y, switches), feedback(y, context)) and feedback(y, switches).is_contiguous()


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_unpooling_of_channels_last_passes_the_same_gradients(pool):
    x = torch.randn(4, 3, 8, 9)
    pooled, context = forward_with_context(pool, x)
    y, upward = random_like(pooled).requires_grad_(), random_like(x)
    feedback = undo(pool, x.shape[1:])
    expected = torch.autograd.grad(feedback(y, context), y, upward)[0]
    assert torch.equal(torch.autograd.grad(feedback(in_channels_last(y), context), y, upward)[0], expected)


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("of_switches", LAYOUTS)
def test_fixed_routing_keeps_channels_last_and_gathers_the_same_values(pool, of_switches):
    x, v = torch.randn(4, 3, 8, 9), torch.randn(4, 3, 8, 9)
    _, context = forward_with_context(pool, x.contiguous(memory_format=of_switches))
    expected, _ = forward_with_context(pool, v, given=context, routing="fixed")
    found, fixed_context = forward_with_context(pool, in_channels_last(v), given=context, routing="fixed")
    assert torch.equal(found, expected) and fixed_context == context
    assert found.is_contiguous(memory_format=torch.channels_last) and not found.is_contiguous()
    assert expected.is_contiguous()


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_switches_of_channels_last_maps_are_the_same(pool):
    x = torch.randn(4, 3, 8, 9)
    (y, context), (last, of_last) = forward_with_context(pool, x), forward_with_context(pool, in_channels_last(x))
    assert torch.equal(last, y) and torch.equal(of_last[0].indices, context[0].indices)


@pytest.mark.parametrize("sizes", [(4, 1, 8, 8), (1, 3, 4, 4), (4, 3, 2, 2)])
def test_unpooling_of_maps_whose_layout_is_ambiguous(sizes):
    """One channel, or one position left: contiguous and channels last at once."""
    x = torch.randn(sizes)
    y, context = forward_with_context(nn.MaxPool2d(2), x)
    feedback = undo(nn.MaxPool2d(2), sizes[1:])
    last, of_last = forward_with_context(nn.MaxPool2d(2), in_channels_last(x))
    assert torch.equal(feedback(last, of_last), feedback(y, context))


# --- maps that say how they depend on their weights -------------------------------------------------------------------

WEIGHT_MAPS = [
    (nn.Linear(7, 4), (7,)),
    (nn.Linear(7, 4), (3, 7)),
    *[(nn.Conv2d(4, 8, **arguments), (4, 11, 9)) for arguments in CONVOLUTIONS],
    (nn.Conv1d(4, 8, 3, padding=1), (4, 11)),
    (nn.Conv1d(4, 8, 4, stride=3, padding=2, dilation=2, groups=2), (4, 14)),
]


@pytest.mark.parametrize(("module", "in_shape"), WEIGHT_MAPS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weight_gradients_are_those_of_autograd_for_one_batch_and_for_several(module, in_shape, layout):
    """WG(y, e) of <e, A_V(y)>; A_V takes other weights than the module's own, and no bias."""
    module = module.double()
    feedback = undo(module, in_shape, bias=True).operations[0]
    k, batch = 3, 2
    with torch.no_grad():
        y = random_like(module(torch.zeros(k * batch, *in_shape, dtype=torch.float64)))
        error = torch.randn(k * batch, *in_shape, dtype=torch.float64)
    if y.dim() == 4:
        y, error = (x.contiguous(memory_format=layout) for x in (y, error))
    other = random_like(feedback.weight).requires_grad_()
    r = feedback.apply_weight(y, other)
    bias = feedback(y) - feedback.apply_weight(y, feedback.weight)
    torch.testing.assert_close(bias, bias[:1].expand_as(bias), **exact)
    assert bias.abs().sum() > 0 and r.shape == error.shape
    expected = [
        torch.autograd.grad((part * e).sum(), other, retain_graph=True)[0]
        for part, e in zip(r.split(batch), error.split(batch), strict=True)
    ]
    found = feedback.weight_gradients(y.unflatten(0, (k, batch)), error.unflatten(0, (k, batch)))
    torch.testing.assert_close(found, torch.stack(expected), **exact)
    torch.testing.assert_close(feedback.weight_gradient(y[:batch], error[:batch]), expected[0], **exact)


# --- nonlinearities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "function"),
    [(nn.ELU(0.7), lambda x: F.elu(x, 0.7)), (nn.ReLU(), F.relu), (nn.Tanh(), torch.tanh)]
    + [(nn.LeakyReLU(0.3), lambda x: F.leaky_relu(x, 0.3)), (nn.GELU(), F.gelu), (nn.SiLU(), F.silu)]
    + [(nn.GELU("tanh"), lambda x: F.gelu(x, approximate="tanh")), (nn.Softplus(3), lambda x: F.softplus(x, 3))]
    + [(nn.Hardtanh(-0.5, 0.7), lambda x: x.clamp(-0.5, 0.7)), (nn.ReLU6(), lambda x: x.clamp(0, 6))]
    + [(nn.Hardswish(), lambda x: x * (x + 3).clamp(0, 6) / 6), (nn.Hardsigmoid(), lambda x: (x + 3).clamp(0, 6) / 6)]
    + [(nn.SELU(), F.selu), (nn.CELU(0.7), lambda x: F.celu(x, 0.7)), (nn.Mish(), F.mish)]
    + [(nn.Softsign(), lambda x: x / (1 + x.abs())), (nn.LogSigmoid(), lambda x: -torch.log1p(torch.exp(-x)))],
)
def test_nonlinearity_is_its_own_feedback(module, function):
    y = torch.randn(5, 4)
    _, context = forward_with_context(module, y)
    torch.testing.assert_close(undo(module, (4,))(y, context), function(y), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "function", [nn.ReLU(inplace=True), nn.ELU(inplace=True), nn.SiLU(inplace=True), nn.ReLU6(inplace=True)]
)
@pytest.mark.parametrize("nonlinearity", ["before", "after"])
def test_in_place_nonlinearity_leaves_activations_alone(function, nonlinearity):
    layers = [nn.Sequential(nn.Linear(6, 5), function), nn.Sequential(nn.Linear(5, 4), function)]
    shapes = [torch.Size([6]), torch.Size([5])]
    feedback = derive_feedback(layers, shapes, [2], FeedbackSettings(nonlinearity=nonlinearity))[2]
    x = torch.randn(3, 5)
    before = x.clone()
    y, context = forward_with_context(layers[1], x)
    assert torch.equal(x, before)
    assert function.inplace, "the forward layer is not ours to change"
    target = torch.randn(3, 4)  # with negative entries, which an in-place nonlinearity would overwrite
    before = target.clone()
    feedback(target, context)
    assert torch.equal(target, before)


# --- the table --------------------------------------------------------------------------------------------------------


def test_unregistered_type_is_named_with_its_layer_and_the_remedy():
    layers = [nn.Linear(6, 5), nn.Linear(5, 4), nn.Sequential(nn.Linear(4, 3), nn.Tanhshrink())]
    shapes = [torch.Size([n]) for n in (6, 5, 4)]
    with pytest.raises(UserError, match=r"Layer 3: .*Tanhshrink.*register_feedback"):
        derive_feedback(layers, shapes, [2, 3], FeedbackSettings())


def test_unregistered_type_below_a_feedback_layer_is_named_with_its_layer():
    layers = [nn.Sequential(nn.Linear(6, 5), nn.Tanhshrink()), nn.Linear(5, 4)]
    with pytest.raises(UserError, match=r"Layer 1: .*Tanhshrink.*register_feedback"):
        derive_feedback(layers, [torch.Size([6]), torch.Size([5])], [2], FeedbackSettings(nonlinearity="after"))


def test_unregistered_type_in_a_forward_pass_is_named():
    with pytest.raises(UserError, match=r"Tanhshrink.*register_feedback"):
        forward_with_context(nn.Sequential(nn.Linear(4, 3), nn.Tanhshrink()), torch.randn(2, 4))


def test_registered_nonlinearity_works_end_to_end(registry):
    register_feedback(nn.Tanhshrink, elementwise_feedback)
    layer = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanhshrink(), nn.MaxPool2d(2)).double()
    x = torch.randn(4, 2, 6, 6, dtype=torch.float64)
    y, context = forward_with_context(layer, x)
    torch.testing.assert_close(y, layer(x), rtol=0, atol=0)
    feedback = undo(layer, (2, 6, 6), symmetric=True)
    unpooled = F.max_unpool2d(F.tanhshrink(y), context[2].indices, 2)
    torch.testing.assert_close(feedback(y, context), F.conv_transpose2d(unpooled, layer[0].weight, padding=1), **exact)
    loss = ldrl_loss(layer, feedback, x, y, context, random_like(x), random_like(y))
    (gradient,) = torch.autograd.grad(loss, list(feedback.parameters()))
    assert gradient.abs().sum() > 0
    assert any(type(operation).__name__ == "Gate" for operation in undo(layer, (2, 6, 6), slope="clean").operations)


@dataclass(frozen=True)
class ScaleContext:
    """What a user's own operation hands to its feedback."""

    norm: Tensor

    def repeat(self, samples):
        return ScaleContext(self.norm.repeat(samples, 1))

    def select(self, index):
        return ScaleContext(self.norm[index])


class UnitNorm(nn.Module):
    """A user's own operation whose feedback needs a context: divide every sample by its norm."""

    def forward(self, x):
        return x / x.norm(dim=1, keepdim=True)


class TimesNorm(FeedbackOperation):
    kind = "reshape"

    def forward(self, y, context):
        return y * context.norm


def unit_norm_forward(module, x, given, routing):
    norm = x.norm(dim=1, keepdim=True) if given is None else given.norm
    return x / norm, ScaleContext(norm)


def test_registered_operation_with_its_own_context_works_end_to_end(registry):
    register_feedback(UnitNorm, lambda module, in_shape, settings: TimesNorm(), unit_norm_forward)
    layer = nn.Sequential(UnitNorm(), nn.Linear(5, 4))
    x = torch.randn(3, 5)
    y, context = forward_with_context(layer, x)
    feedback = undo(layer, (5,), symmetric=True)
    torch.testing.assert_close(feedback(y, context), (y @ layer[1].weight) * x.norm(dim=1, keepdim=True))
    noise = torch.randn(2 * 3, 5), torch.randn(2 * 3, 4)
    assert ldrl_loss(layer, feedback, x, y, context, *noise, noise_samples=2).isfinite()


@pytest.mark.parametrize("nonlinearity", ["before", "after"])
def test_a_users_feedback_is_made_with_the_shape_that_its_operation_receives(registry, nonlinearity):
    shapes = []

    def make(module, in_shape, settings):
        shapes.append(tuple(in_shape))
        return TimesNorm()

    register_feedback(nn.PixelUnshuffle, make)
    layers = [
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.PixelUnshuffle(2)),
        nn.Sequential(nn.PixelUnshuffle(2), nn.Flatten()),
    ]
    in_shapes = [torch.Size([1, 10, 10]), torch.Size([8, 4, 4])]
    derive_feedback(layers, in_shapes, [1, 2], FeedbackSettings(nonlinearity=nonlinearity))
    assert set(shapes) == {(2, 8, 8), (8, 4, 4)}


def test_any_module_may_be_a_feedback_operation(registry):
    class Roll(nn.Module):
        def forward(self, x):
            return x.roll(1, dims=1)

    class RollBack(nn.Module):
        def forward(self, y, context):
            return y.roll(-1, dims=1)

    register_feedback(Roll, lambda module, in_shape, settings: RollBack())
    assert_adjoint(nn.Sequential(nn.Linear(6, 5), Roll()), (6,))


def test_subclasses_have_the_feedback_of_their_base():
    class MyConv(nn.Conv2d):
        pass

    class MyELU(nn.ELU):
        pass

    assert_adjoint(MyConv(2, 3, 3, stride=2), (2, 6, 9))
    y = torch.randn(2, 3)
    assert torch.equal(undo(MyELU(), (3,))(y, forward_with_context(MyELU(), y)[1]), F.elu(y))


def test_a_users_subclass_may_replace_the_feedback_of_its_base(registry):
    class Reversed(nn.ELU):
        pass

    register_feedback(Reversed, lambda module, in_shape, settings: Elementwise(nn.Tanh()))
    y = torch.randn(2, 3)
    assert torch.equal(undo(Reversed(), (3,))(y, forward_with_context(Reversed(), y)[1]), torch.tanh(y))
    assert torch.equal(undo(nn.ELU(), (3,))(y, forward_with_context(nn.ELU(), y)[1]), F.elu(y))


@pytest.mark.parametrize("module", [nn.Embedding(5, 3), nn.EmbeddingBag(5, 3)])
def test_an_embedding_above_the_first_layer_is_refused(module):
    with pytest.raises(UserError, match="Layer 2: Embedding.* takes whole numbers.*first layer"):
        derive_feedback([nn.Linear(2, 4), module], [torch.Size([2]), torch.Size([4])], [2], FeedbackSettings())
