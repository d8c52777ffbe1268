"""Locally connected layers are convolutions whose kernels differ by position; padding as TensorFlow's "same"."""

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dtp.models.modules import LocallyConnected2d, SameConv2d

GEOMETRIES = [  # in size, kernel, stride, padding
    ((7, 6), 3, 1, 1),
    ((7, 6), 3, 2, 1),
    ((8, 9), 5, 2, 2),
    ((9, 9), 3, 3, 0),
    ((5, 4), 1, 2, 0),
    ((9, 8), 4, 3, 3),
]


def made(size, kernel, stride, padding, bias=True):
    return LocallyConnected2d(2, 3, size, kernel, stride, padding, bias).double()


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_with_one_kernel_everywhere_it_is_the_convolution(geometry):
    size, kernel, stride, padding = geometry
    conv, local = nn.Conv2d(2, 3, kernel, stride, padding).double(), made(*geometry)
    with torch.no_grad():
        local.weight.copy_(conv.weight.flatten(1).expand_as(local.weight))
        local.bias.copy_(conv.bias[:, None].expand_as(local.bias))
    x = torch.randn(4, 2, *size, dtype=torch.float64)
    assert torch.allclose(local(x), conv(x), atol=1e-12)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_position_has_weights_of_its_own(geometry):
    size, kernel, stride, padding = geometry
    local, x = made(*geometry), torch.randn(4, 2, *size, dtype=torch.float64)
    y, padded = local(x), F.pad(x, (padding,) * 4)
    height, width = local.out_size
    for i in range(height):
        for j in range(width):
            window = padded[:, :, i * stride : i * stride + kernel, j * stride : j * stride + kernel].flatten(1)
            at = i * width + j
            assert torch.allclose(y[:, :, i, j], window @ local.weight[at].t() + local.bias[:, at])


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_adjoint_is_the_vector_jacobian_product(geometry):
    local = made(*geometry, bias=False)
    x = torch.randn(4, 2, *geometry[0], dtype=torch.float64, requires_grad=True)
    y = local(x)
    v = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, v)
    assert torch.allclose(local.adjoint(v, local.weight), expected, atol=1e-12)


def test_gradients_are_right():
    local = LocallyConnected2d(1, 2, (4, 4), 3, 2, 1).double()
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    names = list(dict(local.named_parameters()))

    def run(x, *parameters):
        return torch.func.functional_call(local, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *local.parameters()), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, (x, *local.parameters()))
    y, weight = torch.randn_like(local(x)).requires_grad_(), torch.randn_like(local.weight).requires_grad_()
    assert torch.autograd.gradcheck(local.adjoint, (y, weight), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(local.adjoint, (y, weight))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_windows_are_those_of_torch_and_overlaps_are_summed_as_by_torch(geometry):
    size, kernel, stride, padding = geometry
    local, x = made(*geometry), torch.randn(4, 2, *size, dtype=torch.float64)
    columns = F.unfold(x, kernel, padding=padding, stride=stride)
    assert torch.equal(local.columns(x), columns.permute(2, 1, 0))
    y, weight = torch.randn(4, 3, *local.out_size, dtype=torch.float64), torch.randn_like(local.weight)
    seen = torch.einsum("bol,loi->bil", y.flatten(2), weight)
    assert torch.allclose(local.adjoint(y, weight), F.fold(seen, size, kernel, padding=padding, stride=stride))


def test_derivatives_of_functions_are_the_same_forwards_and_backwards():
    """As feedback control takes them, and twice in a row."""
    local, x = made(*GEOMETRIES[1]), torch.randn(2, *GEOMETRIES[1][0], dtype=torch.float64)

    def cubed(x):
        return local(x[None]).pow(3).sum()

    assert torch.allclose(torch.func.jacfwd(cubed)(x), torch.func.jacrev(cubed)(x))
    hessian = torch.func.jacfwd(torch.func.jacrev(cubed))(x)
    assert torch.allclose(hessian, torch.func.jacrev(torch.func.jacrev(cubed))(x))


def _compiled(local, x):
    return torch.compile(local, backend="eager", fullgraph=True)


def _traced(local, x):
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(local, x[:3]), file)
    file.seek(0)
    return torch.jit.load(file)


def _scripted(local, x):
    return torch.jit.script(local)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("form", [_compiled, _traced, _scripted])
def test_other_forms_that_torch_makes_of_it_compute_and_learn_the_same(form):
    local, x = made(*GEOMETRIES[1]), torch.randn(4, 2, *GEOMETRIES[1][0], dtype=torch.float64)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    local(ours).pow(3).sum().backward()
    expected, local.weight.grad = local.weight.grad, None
    other = form(local, x)
    other(theirs).pow(3).sum().backward()
    assert torch.allclose(other(x), local(x))
    assert torch.allclose(theirs.grad, ours.grad)
    assert torch.allclose(next(w.grad for w in other.parameters() if w.dim() == 3), expected)


def test_a_batch_without_images_gives_none():
    try:
        F.pad(torch.zeros(1, 0), (0, 0, 1, 1))
    except RuntimeError as error:
        pytest.skip(f"this torch pads no empty tensors: {error}")
    local = made(*GEOMETRIES[1])
    x = torch.zeros(0, 2, *GEOMETRIES[1][0], dtype=torch.float64, requires_grad=True)
    y = local(x)
    y.sum().backward()
    assert y.shape == (0, 3, *local.out_size) and x.grad.shape == x.shape and not local.weight.grad.any()


# Size, kernel, stride, and the zeros before and after, worked out by hand: the odd one comes after.
SAME = [
    (28, 3, 2, 0, 1),
    (14, 3, 2, 0, 1),
    (7, 3, 2, 1, 1),
    (8, 5, 1, 2, 2),
    (9, 4, 1, 1, 2),
    (32, 5, 2, 1, 2),
    (224, 9, 4, 2, 3),
    (10, 2, 4, 0, 0),
    (11, 1, 3, 0, 0),
    (2, 5, 1, 2, 2),
]


@pytest.mark.parametrize(("height", "kernel", "stride", "top", "bottom"), SAME)
@pytest.mark.parametrize("width", [3, 16])
def test_same_padding_gives_the_size_over_the_stride_rounded_up(height, kernel, stride, top, bottom, width):
    """What TensorFlow's "same" is; with one kernel everywhere both modules are the convolution of the padded maps."""
    conv = nn.Conv2d(2, 3, kernel, stride).double()
    local, shared = LocallyConnected2d(2, 3, (height, width), kernel, stride), SameConv2d(2, 3, kernel, stride)
    local, shared = local.double(), shared.double()
    with torch.no_grad():
        local.weight.copy_(conv.weight.flatten(1).expand_as(local.weight))
        local.bias.copy_(conv.bias[:, None].expand_as(local.bias))
    shared.conv.load_state_dict(conv.state_dict())
    x = torch.randn(2, 2, height, width, dtype=torch.float64)
    across = max((math.ceil(width / stride) - 1) * stride + kernel - width, 0)
    expected = conv(F.pad(x, (across // 2, across - across // 2, top, bottom)))
    assert expected.shape[2:] == local.out_size == (math.ceil(height / stride), math.ceil(width / stride))
    assert torch.allclose(local(x), expected, atol=1e-12)
    assert torch.equal(shared(x), expected)
    # And the other way round.
    turned = x.transpose(2, 3)
    assert local.zeros == (across // 2, across - across // 2, top, bottom)
    assert torch.allclose(SameConv2d.forward(_turned(shared), turned), expected.transpose(2, 3), atol=1e-12)


def _turned(shared):
    """The same convolution with its kernels transposed."""
    other = copy.deepcopy(shared)
    with torch.no_grad():
        other.conv.weight.copy_(shared.conv.weight.transpose(2, 3))
    return other


def test_first_weights_are_glorots_of_one_position():
    local = LocallyConnected2d(8, 24, (9, 9), 3, 2)
    bound = (6 / (8 * 9 + 24)) ** 0.5
    assert local.weight.abs().max() <= bound and not local.bias.any()
    assert float(local.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.02)


def test_a_kernel_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="kernel of 5 does not fit maps of 3x9, padding included"):
        LocallyConnected2d(2, 3, (3, 9), 5, padding=0)
    assert LocallyConnected2d(2, 3, (3, 9), 5, padding=1).out_size == (1, 7)
