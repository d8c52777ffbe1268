"""Lee's theorems on small networks."""

import pytest
import torch

from dtp.experiments.theory.lee import ExactInverse, TanhFirst, _eigenvalues, measure
from dtp.experiments.theory.options import LeeOptions
from tests.algorithms.helpers import make
from tests.algorithms.networks import tanh_network
from tests.conftest import make_batch


def jacobian(function, at):
    """Matrix of the Jacobian at one flat sample (d,) of a function of batches."""
    return torch.func.jacrev(lambda v: function(v[None])[0])(at).detach()


@pytest.fixture(scope="module")
def values():
    return measure(LeeOptions(seeds=[0, 1, 2], widths=[6, 9], iterations=400, points=4, samples=16))


def test_cosines_of_exact_inverses_are_within_their_bounds(values):
    first = values["theorem1"]
    for cosines, bounds in zip(first["cosine"], first["bound"], strict=True):
        assert len(cosines) == 4 and cosines[-1] == pytest.approx(1, abs=1e-9) and bounds[-1] == pytest.approx(1)
        assert all(bound - 1e-5 <= cosine <= 1 + 1e-12 for cosine, bound in zip(cosines, bounds, strict=True))
        # Neither is trivial below the output.
        assert all(0 < bound < 0.95 and cosine < 0.9999 for cosine, bound in zip(cosines[:3], bounds[:3], strict=True))


def test_with_orthogonal_weights_the_bound_of_the_last_layer_but_one_is_that_of_tanh_alone():
    torch.manual_seed(0)
    network = TanhFirst(3, 12, 0.0)
    h = torch.randn(12, dtype=torch.float64)
    values = torch.linalg.svdvals(jacobian(network[3], h))
    slopes = 1 - h.tanh().square()
    assert (values[-1] / values[0]).item() == pytest.approx((slopes.min() / slopes.max()).item())


def test_where_the_premise_holds_so_does_the_conclusion(values):
    for found in values["theorem2"]["layers"].values():
        assert all(value == 0 for series in found["broken"] for value in series)
    for kind in ("narrowing, 9 to 6", "equal, 9 to 9"):
        found = values["theorem2"]["layers"][kind]
        first, last = ({name: [series[place] for series in found[name]] for name in found} for place in (0, -1))
        # Of three networks, one or two samples may be as far as the conclusion only.
        assert max(first["premise"]) == 0 and sum(last["premise"]) / 3 > 0.7
        assert max(first["conclusion"]) < 0.8 and min(last["conclusion"]) == 1
        assert max(last["eigenvalue"]) < 1.05 < min(first["eigenvalue"])


def test_a_widening_layer_never_meets_the_premise(values):
    found = values["theorem2"]["layers"]["widening, 6 to 9"]
    assert all(value == 0 for series in found["premise"] for value in series)
    assert all(value >= 1 - 1e-10 for series in found["smallest"] for value in series)


def test_the_inverse_is_exact():
    network = TanhFirst(3, 5, 0.1)
    h = torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(ExactInverse(network[2])(network[2](h)), h)


def test_eigenvalues_are_those_of_the_product_written_out():
    network = tanh_network(6, 7, 5, 3)
    rule = make("vanilla-dtp", network)
    a = rule.activations(make_batch(network, 3)[0], gradients=False)
    found = _eigenvalues(rule, a.s[1], a.s[2])
    for b in range(3):
        forward = jacobian(network[2], a.s[1][b])
        back = jacobian(lambda y: rule.feedback[2](y, [None, None]), a.s[2][b])
        rest = torch.eye(5, dtype=torch.float64) - forward @ back
        assert found[b].item() == pytest.approx(torch.linalg.eigvalsh(rest.T @ rest)[-1].item())


def test_without_the_premise_the_conclusion_need_not_hold():
    network = tanh_network(9, 8, 8, 4)
    rule = make("vanilla-dtp", network)
    with torch.no_grad():
        rule.feedback[2].operations[0].linear.weight.copy_(-network[2][0].weight.T)
    a = rule.activations(make_batch(network, 30)[0], gradients=False)
    step = torch.randn_like(a.s[2])
    target = a.s[2] + 1e-3 * step / step.norm(dim=1, keepdim=True)
    with torch.no_grad():
        reached = network[2](rule.lower_target(2, {2: target}, a))
    assert _eigenvalues(rule, a.s[1], a.s[2]).min() > 1
    assert ((target - reached).norm(dim=1) > (target - a.s[2]).norm(dim=1)).all()
