"""docs/python.md tells the truth: its listings run one after the other, as the cells of a notebook."""

import re
from functools import reduce
from pathlib import Path

import pytest
import torch
from torch import nn

import dtp

LISTINGS = dict(
    re.findall(
        r"<!-- (\w+) -->\n```python\n(.*?)```",
        (Path(__file__).parent.parent / "docs" / "python.md").read_text(),
        re.DOTALL,
    )
)


def test_the_listings_run_one_after_the_other(here, capsys):
    assert list(LISTINGS) == ["train", "measure", "callback", "own", "loop"]
    cells: dict = {"__name__": "notebook"}
    for name, listing in LISTINGS.items():
        exec(compile(listing, f"docs/python.md: {name}", "exec"), cells)
        if name == "measure":
            assert "layer 3: " in capsys.readouterr().out
        if name == "callback":
            assert list(Path().rglob("training.png"))
    assert isinstance(cells["rule"], dtp.DTP) and cells["scalars"]


def clusters(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of classes that no linear map of them can tell, but one of their absolute values."""
    generator = torch.Generator().manual_seed(n)
    y = torch.arange(n) % 2
    x = 0.1 * torch.randn(n, 4, generator=generator)
    sign = torch.sign(torch.randn(n, generator=generator))
    x[:, 0] += torch.where(y == 1, 3 * sign, 0)
    return x, y


def test_probes_read_from_each_layer_what_a_linear_map_can_tell():
    class Abs(nn.Module):
        def forward(self, x):
            return x.abs()

    identity = nn.Linear(4, 4)
    nn.init.eye_(identity.weight), nn.init.zeros_(identity.bias)
    rule = dtp.BP(nn.Sequential(identity, Abs(), nn.Linear(4, 2)))
    for kind in ("ridge", "logistic"):
        found = dtp.linear_probes(rule, [clusters(400)], [clusters(300)], kind=kind)
        assert set(found) == {0, 1, 2}
        assert found[0] < 0.7 and found[1] > 0.95, kind


@pytest.mark.parametrize("penalty", [1.0, 30.0])
def test_a_ridge_probe_is_the_regression_written_out(penalty):
    """Of the first images, with their mean and deviation, on what the network puts out in evaluation mode."""
    rule = dtp.BP(nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 2)))
    x, y = torch.randn(60, 4), (torch.randn(60) > 0.8).long()
    x[:, 0] += y
    others, wanted = x.roll(1, 1) + 3, y.roll(7)
    batches = zip(x.split(20), y.split(20), strict=True)
    found = dtp.linear_probes(rule, batches, [(others, wanted)], penalty=penalty, images=30)
    rule.eval()
    for n in range(3):
        with torch.no_grad():
            a, b = (reduce(lambda s, k: rule.network[k](s), range(1, n + 1), s).double() for s in (x[:30], others[:30]))
        mean, std = a.mean(0), a.std(0, correction=0)
        a, b, goals = (a - mean) / std, (b - mean) / std, 2.0 * y[:30].double() - 1
        weights = torch.linalg.solve(a.T @ a + penalty * torch.eye(a.shape[1]), a.T @ (goals - goals.mean()))
        named = b @ weights + goals.mean() > 0
        assert found[n] == pytest.approx(float((named == wanted[:30]).double().mean())), n


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_a_probe_of_a_large_penalty_names_the_larger_class(kind):
    rule, (x, y) = dtp.BP(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))), clusters(40)
    x[:, 0], y[:10] = 3.0 * y, 0
    few, many = (dtp.linear_probes(rule, [(x, y)], [(x, y)], kind=kind, penalty=p)[0] for p in (1e-3, 1e6))
    assert many == float((y == 0).double().mean()) < few


def test_measuring_changes_nothing_and_knows_backprop_from_others():
    network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 2))
    rule = dtp.BP(network).eval()
    before = {name: value.clone() for name, value in rule.state_dict().items()}
    angles = dtp.alignment(rule, clusters(20))
    dtp.linear_probes(rule, [clusters(20)], [clusters(20)])
    assert all(found.angle < 1e-4 for found in angles.values()) and set(angles) == {1, 2}
    assert not any(module.training for module in rule.modules())
    assert all(torch.equal(before[name], value) for name, value in rule.state_dict().items())
    fa = dtp.alignment(dtp.FA(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))), clusters(20))
    assert fa[1].angle > 5 and fa[2].angle < 1e-4


def test_measuring_leaves_the_mode_of_the_users_own_model():
    """Its containers are no modules of the network of layers; a functional dropout asks them."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.last(nn.functional.dropout(self.first(x).tanh(), 0.5, training=self.training))

    model = Model()
    rule = dtp.BP(model).eval()
    dtp.alignment(rule, clusters(20))
    assert not any(module.training for module in model.modules())
    rule.train()
    dtp.linear_probes(rule, [clusters(20)], [clusters(20)])
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_probes_do_not_listen_to_what_is_the_same_in_all_images_they_are_fitted_to(kind):
    """A pixel at the border of normalised images; its deviation in float32 is rounding, not 0."""
    rule = dtp.BP(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)))

    def images(n: int, constant: float) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = clusters(n)
        x[:, 0] += 3 * y
        return torch.cat([torch.full((n, 1), constant), x], 1), y

    train = images(2000, -0.4242129623889923)
    found = [dtp.linear_probes(rule, [train], [images(300, c)], kind=kind)[0] for c in (train[0][0, 0].item(), 2.8)]
    assert found[0] == found[1] > 0.6


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_probes_do_without_a_unit_whose_deviation_is_too_small_for_its_type(kind):
    """A saturated unit, whose values differ by less than float32 can square."""
    rule, (x, y) = dtp.BP(nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 2))), clusters(40)
    assert rule.network.model is not None
    with torch.no_grad():
        rule.network.model[0].bias[0] = -60.0
    assert len(dtp.linear_probes(rule, [(x, y)], [(x, y)], kind=kind)) == 3


def test_measures_of_no_images_are_refused():
    rule, (x, y) = dtp.BP(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))), clusters(20)
    with pytest.raises(dtp.UserError, match="alignment: expected a batch with images"):
        dtp.alignment(rule, (x[:0], y[:0]))
    with pytest.raises(dtp.UserError, match="linear_probes: expected batches with images"):
        dtp.linear_probes(rule, [(x, y)], [(x, y)], images=0)
    with pytest.raises(dtp.UserError, match="linear_probes: expected batches with images"):
        dtp.linear_probes(rule, [(x, y)], [(x[:0], y[:0])])


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_probes_of_one_class_or_of_numbers_that_are_not_finite_are_refused(kind):
    rule = dtp.algorithms.BP(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)))
    x, y = torch.randn(6, 4), torch.tensor([0, 1, 0, 1, 1, 0])
    with pytest.raises(dtp.UserError, match="two classes or more, found the first 6 all of class 1; shuffle"):
        dtp.linear_probes(rule, [(x, torch.ones_like(y)), (x, y)], [(x, y)], kind=kind, images=6)
    with pytest.raises(dtp.UserError, match="expected finite numbers, found others in the data"):
        dtp.linear_probes(rule, [(x, y)], [(x / 0, y)], kind=kind)
    with torch.no_grad():
        rule.network[2][0].weight.fill_(torch.nan)
    with pytest.raises(dtp.UserError, match="found others put out by layer 2"):
        dtp.linear_probes(rule, [(x, y)], [(x, y)], kind=kind)


@pytest.mark.parametrize("measure", [dtp.alignment, lambda found, batch: dtp.linear_probes(found, [batch], [batch])])
def test_a_network_alone_is_no_rule(measure):
    with pytest.raises(dtp.UserError, match="expected a rule, found a value of type Linear; make one of a network"):
        measure(nn.Linear(4, 2), clusters(20))
