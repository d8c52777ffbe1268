"""Means over ranks: the numbers, the memory formats, and how many collectives they take."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.optim import SGD, Adam

from dtp.algorithms import BP, base
from dtp.algorithms.optimizers import LeeRMSprop
from dtp.distributed.averaging import (
    FlatTensors,
    GradientAverage,
    StateExchange,
    average_gradients,
    average_tensors,
    average_training,
    same_on_all_ranks,
)
from dtp.errors import UserError
from dtp.models import as_network
from tests.distributed.ranks import counted_sums, on_ranks


def _parameter(*shape, dtype=torch.float32):
    return torch.nn.Parameter(torch.zeros(*shape, dtype=dtype))


def _gradients(rank):
    a, b, c, d = (_parameter(2, 3, dtype=t) for t in (torch.float32, torch.float64, torch.float32, torch.float32))
    a.grad = torch.full_like(a, float(rank))
    b.grad = torch.full_like(b, 10.0 * (rank + 1))
    if rank == 1:
        c.grad = torch.ones_like(c)
    average_gradients([a, b, c, d])
    assert torch.equal(a.grad, torch.full_like(a, 0.5))
    assert torch.equal(b.grad, torch.full_like(b, 15.0))
    # On one rank only: zero on the other. On none: none.
    assert torch.equal(c.grad, torch.full_like(c, 0.5))
    assert d.grad is None


def test_gradients_are_averaged_over_ranks(tmp_path):
    on_ranks(_gradients, tmp_path)


def _sparse(rank):
    embedding = nn.Embedding(4, 2, sparse=True)
    # Rows 0 and 1 on one rank, 1 and 2 on the other.
    embedding(torch.tensor([rank, rank + 1])).sum().backward()
    average_gradients([embedding.weight])
    return embedding.weight.grad.tolist()


def test_sparse_gradients_of_embeddings_are_averaged_as_dense_ones_are(tmp_path):
    assert on_ranks(_sparse, tmp_path) == [[[0.5] * 2, [1.0] * 2, [0.5] * 2, [0.0] * 2]] * 2


def test_one_process_leaves_everything_alone():
    parameter = _parameter(3)
    parameter.grad = torch.ones(3)
    average_gradients([parameter])
    average_tensors([parameter.data])
    assert torch.equal(parameter.grad, torch.ones(3)) and torch.equal(parameter.data, torch.zeros(3))


@pytest.mark.parametrize("packed", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("like", [torch.contiguous_format, torch.channels_last])
def test_packing_keeps_every_number_in_its_place_whatever_the_memory_formats(packed, like):
    weight, bias = torch.randn(4, 3, 2, 5), torch.randn(4, dtype=torch.float64)
    flat = FlatTensors([weight.to(memory_format=like), bias], in_memory_order=True)
    parts = flat.pack([weight.to(memory_format=packed), bias])
    assert [part.dtype for part in parts] == [torch.float32, torch.float64]
    found = flat.unpack(parts)
    assert torch.equal(found[0], weight) and torch.equal(found[1], bias)
    assert found[0].is_contiguous(memory_format=like)
    (by_index, _) = FlatTensors([weight.to(memory_format=like), bias]).pack([weight.to(memory_format=packed), bias])
    assert torch.equal(by_index, weight.flatten())


def _layers(rank):
    parameters = {2: (_parameter(2, 2),), 3: (_parameter(3), _parameter(1))}
    average = GradientAverage(parameters, weight=[0.5, 1.5][rank])
    calls = counted_sums()
    wait = average({n: tuple(torch.full_like(p, n + rank) for p in ps) for n, ps in parameters.items()})
    means = wait()
    only = average({3: tuple(torch.full_like(p, rank) for p in parameters[3])})()
    # Shares of a quarter and three quarters.
    assert all(torch.equal(mean, torch.full_like(mean, n + 0.75)) for n, ms in means.items() for mean in ms)
    assert set(only) == {3} and torch.equal(only[3][0], torch.full((3,), 0.75))
    assert means[2][0].shape == (2, 2)
    sums = len(calls)
    (other,) = average.mean([torch.full((2,), float(rank))])
    assert torch.equal(other, torch.full((2,), 0.75))
    return sums


def test_gradients_of_several_layers_take_one_collective(tmp_path):
    assert on_ranks(_layers, tmp_path) == [2, 2]


OPTIMIZERS = {
    "sgd": lambda ps: SGD(ps, lr=0.1),
    "momentum": lambda ps: SGD(ps, lr=0.1, momentum=0.9),
    "adam": lambda ps: Adam(ps, lr=0.1),
    "lee": lambda ps: LeeRMSprop(ps, lr=0.1),
}


def _stepped(kind, steps=3):
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)), _parameter(4)]
    optimizer = OPTIMIZERS[kind](parameters)
    _step(optimizer, steps)
    return optimizer


def _step(optimizer, steps):
    parameters = optimizer.param_groups[0]["params"]
    for k in range(steps):
        for parameter in parameters:
            parameter.grad = torch.sin(torch.arange(parameter.numel()) + k).view(parameter.shape).to(parameter.dtype)
        optimizer.step()
    for state in optimizer.state.values():
        state["kind"] = "no tensor, as an optimizer of the user's may hold"


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_exchange_gives_every_rank_the_owners_weights_and_state(kind, tmp_path):
    """Also to a rank whose optimizer has not stepped yet; steps from there on are the owner's."""

    def exchanged(rank):
        # Rank 0 owns layer 2 and has stepped it, rank 1 layer 3.
        optimizers = {n: _stepped(kind, 3 if rank == n - 2 else 0) for n in (2, 3)}
        exchange = StateExchange()
        exchange(optimizers, {2: 0, 3: 1}, torch.device("cpu"))
        # What the states hold is known by now.
        dist.all_gather_object = None
        calls = counted_sums()
        exchange(optimizers, {2: 0, 3: 1}, torch.device("cpu"))
        for optimizer in optimizers.values():
            _step(optimizer, 2)
        return [[p.detach() for p in o.param_groups[0]["params"]] for o in optimizers.values()], len(calls)

    alone = _stepped(kind, 3)
    _step(alone, 2)
    expected = alone.param_groups[0]["params"]
    for layers, collectives in on_ranks(exchanged, tmp_path):
        assert collectives == 1
        for layer in layers:
            assert all(torch.equal(a, b) for a, b in zip(layer, expected, strict=True))


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_averaged_training_averages_weights_and_moments(device, tmp_path):
    """Also where tensors lie elsewhere than the collective takes place, by name at least."""

    def averaged(rank):
        optimizer = _stepped("adam", 0)
        parameter = optimizer.param_groups[0]["params"][1]
        parameter.grad = torch.full((4,), float(rank))
        optimizer.step()
        before = parameter.detach().clone(), {k: v.clone() for k, v in optimizer.state[parameter].items()}
        # What else an optimizer of the user's may hold has no mean.
        optimizer.state[parameter].update(batches=torch.tensor(rank), kind="own")
        optimizer.param_groups[0]["params"][0].grad = None
        average_training({2: optimizer}, torch.device(device))
        return before, (parameter.detach().clone(), optimizer.state[parameter])

    (old0, new0), (old1, new1) = on_ranks(averaged, tmp_path)
    assert torch.equal(new0[0], (old0[0] + old1[0]) / 2) and torch.equal(new0[0], new1[0])
    for name in ("exp_avg", "exp_avg_sq", "step"):
        assert torch.equal(new0[1][name], (old0[1][name] + old1[1][name]) / 2)
    assert new1[1]["batches"] == 1


def _comparing(rank):
    x = torch.arange(24.0).view(4, 2, 3)
    x[0, 0, 0] = torch.nan
    assert same_on_all_ranks(x) and same_on_all_ranks(x.permute(0, 2, 1)) and same_on_all_ranks(x[:, 0, 1])
    first_is_another = x.clone()
    first_is_another[0, 1] += rank
    others = [x + rank, x.roll(rank, 0), x[: 4 - rank], (x > 12) ^ bool(rank), first_is_another]
    # Black images, of which ranks have different numbers.
    others.append(torch.zeros(4 - rank, 3))
    assert not any([same_on_all_ranks(other) for other in others])


def test_samples_are_the_same_on_all_ranks_if_they_are_in_the_same_order(tmp_path):
    on_ranks(_comparing, tmp_path)


def test_complex_weights_are_compared_between_ranks_without_a_warning(monkeypatch):
    class Squared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 5, dtype=torch.complex64), nn.Linear(5, 3)

        def forward(self, x):
            return self.last(self.first(x.to(torch.complex64)).abs())

    rule = BP(as_network(Squared(), (6,)))
    rule._ranks = 2
    monkeypatch.setattr(base, "average_tensors", lambda tensors: None)
    rule._require_same_weights()
    # The other rank's weights are zero.
    monkeypatch.setattr(base, "average_tensors", lambda tensors: [t.mul_(0.5) for t in tensors])
    with pytest.raises(UserError, match="Ranks have drifted apart: BP changes "):
        rule._require_same_weights()
