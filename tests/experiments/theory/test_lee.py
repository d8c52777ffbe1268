"""Lee's theorems on small networks."""

import pytest
import torch

from dtp.experiments.theory.lee import ExactInverse, TanhFirst, _eigenvalues, _jacobian, measure
from dtp.experiments.theory.options import LeeOptions


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
    values = torch.linalg.svdvals(_jacobian(network[3], h))
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
    from dtp.algorithms import VanillaDTP
    from dtp.models import MLP
    from dtp.models.options import MLPOptions

    network = MLP(MLPOptions(widths=[7, 5], activation="tanh"), (1, 1, 6), 3).double()
    rule = VanillaDTP(network)
    a = rule.activations(torch.randn(3, 1, 1, 6, dtype=torch.float64), gradients=False)
    found = _eigenvalues(rule, a.s[1], a.s[2])
    for b in range(3):
        forward = _jacobian(network[2], a.s[1][b])
        back = _jacobian(lambda y: rule.feedback[2](y, [None, None]), a.s[2][b])
        rest = torch.eye(5, dtype=torch.float64) - forward @ back
        assert found[b].item() == pytest.approx(torch.linalg.eigvalsh(rest.T @ rest)[-1].item())
