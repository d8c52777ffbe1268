"""Networks that compute the same numbers and differ in the types of their modules: every rule trains them alike."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from dtp.errors import UserError
from dtp.feedback import elementwise_feedback, register_feedback
from dtp.feedback.operations import _OPERATIONS
from dtp.models import as_network
from tests.algorithms.helpers import make_trained
from tests.algorithms.rules import NAMES, facts, is_single

OF_LAYERS = [name for name in NAMES if not is_single(name) and name not in ("dtp-dae", "gait")]
OF_MAPS = [name for name in OF_LAYERS if facts(name).any_network]
MAPS = (2, 4, 4)


def convolution(*after):
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), *after, nn.Linear(16, 16), nn.ELU(), nn.Linear(16, 5))


def overlapping_maxima(*before):
    second = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh(), *before, nn.MaxPool2d(2, 1, 1))
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), second, nn.Flatten(), nn.Linear(36, 5))


def alike_in_one_dimension(of):
    """A convolution over one dimension, and one over two of which the first has one position."""
    first, pool, kernel, padding = of
    return nn.Sequential(
        first(2, 4, kernel, padding=padding),
        nn.ELU(),
        pool,
        nn.Flatten(),
        nn.Linear(16, 16),
        nn.ELU(),
        nn.Linear(16, 5),
    )


PAIRS = {
    "CELU": (
        OF_LAYERS,
        lambda: [
            (nn.Sequential(nn.Linear(16, 12), f(), nn.Linear(12, 11), f(), nn.Linear(11, 5)), (16,))
            for f in (nn.ELU, nn.CELU)
        ],
    ),
    "adaptive pooling": (
        OF_MAPS,
        lambda: [
            (convolution(nn.ELU(), pool, nn.Flatten()), MAPS) for pool in (nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(2))
        ],
    ),
    "identity before pooling": (
        OF_MAPS,
        lambda: [(overlapping_maxima(), MAPS), (overlapping_maxima(nn.Identity()), MAPS)],
    ),
    "Hardtanh": (
        OF_MAPS,
        lambda: [(convolution(f, nn.MaxPool2d(2), nn.Flatten()), MAPS) for f in (nn.ReLU(), nn.Hardtanh(0, 1e9))],
    ),
    "flat in the middle": (
        # Whose maps have a bias where they lead to a flat layer.
        [name for name in OF_MAPS if name != "ddtp-control"],
        lambda: [
            (convolution(nn.ELU(), nn.MaxPool2d(2), nn.Flatten(), *more), MAPS) for more in ((), (nn.Dropout(0.0),))
        ],
    ),
    "flat before the nonlinearity": (
        # Those that go through a layer backwards, or simulate it, whatever is before what in it.
        [name for name in OF_MAPS if name in ("bp", "fa", "dtp", "pepita", "dualprop", "kp", "dfa")],
        lambda: [
            (nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), *order, nn.Linear(64, 5)), MAPS)
            for order in ((nn.Tanh(), nn.Flatten()), (nn.Flatten(), nn.Tanh()))
        ],
    ),
    "one dimension": (
        OF_MAPS,
        lambda: [
            (alike_in_one_dimension((nn.Conv2d, nn.MaxPool2d((1, 2)), (1, 3), (0, 1))), (2, 1, 8)),
            (alike_in_one_dimension((nn.Conv1d, nn.MaxPool1d(2), 3, 1)), (2, 8)),
        ],
    ),
}
CASES = [(pair, name) for pair, (names, _) in PAIRS.items() for name in names]


@pytest.mark.parametrize("pair, name", CASES)
def test_equal_networks_learn_alike(pair, name):
    torch.manual_seed(0)
    (model, shape), (other, other_shape) = PAIRS[pair][1]()
    for to, of in zip(other.parameters(), model.parameters(), strict=True):
        to.data = of.data.clone().view_as(to)
    torch.manual_seed(1)
    x, y, found = torch.randn(6, *shape), torch.arange(6) % 5, []
    for each, size in ((model, shape), (other, other_shape)):
        torch.manual_seed(2)
        # What else but rounding makes a difference shows in 64 bits.
        rule = make_trained(name, as_network(each, size).double()).double()
        torch.manual_seed(3)
        for _ in range(2):
            rule.training_batch(x.view(6, *size).double(), y)
        found.append([p.detach().flatten() for p in rule.network.parameters()])
    torch.testing.assert_close(found[1], found[0])


class Own(nn.Module):
    """A function of each value by itself that nobody has heard of."""

    def forward(self, x):
        return torch.arcsinh(x)


class OwnSwish(nn.Module):
    """One with a weight, whose rounding depends on the place of a value in memory."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(1.3))

    def forward(self, x):
        return x * torch.sigmoid(self.slope * x)


class OwnClamp(nn.Module):
    """One that is the identity on usual values."""

    def forward(self, x):
        return x.clamp(-3, 30)


class Scale(nn.Module):
    """No nonlinearity."""

    def forward(self, x):
        return x / 0.1 - 0.5


@contextmanager
def registered(kind):
    register_feedback(kind, elementwise_feedback)
    try:
        yield
    finally:
        del _OPERATIONS[kind]


WITH_WEIGHTS = [(OwnSwish, 24), (OwnSwish, 3), (nn.PReLU, 7), (lambda: nn.PReLU(7), 7)]
ASK_FOR_IT = ["pepita", "ccl", "wm", "dfc", "dfc-ss", "dfc-ssa", "strong-dfc"]


@pytest.mark.parametrize("name", ASK_FOR_IT)
@pytest.mark.parametrize("kind, width", [(Own, 12), (OwnClamp, 30), *WITH_WEIGHTS])
def test_rules_that_ask_for_the_nonlinearity_refuse_one_that_is_not_registered(name, kind, width):
    def network():
        return as_network(
            nn.Sequential(nn.Linear(16, width), kind(), nn.Linear(width, 11), nn.Tanh(), nn.Linear(11, 5)), [16]
        )

    of = type(kind())
    takes = name == "wm" or not any(True for _ in kind().parameters())
    with pytest.raises(UserError, match=f"Layer 1 has {of.__name__}, .* not known" if takes else "without weights"):
        make_trained(name, network())
    with registered(of):
        if takes:
            make_trained(name, network()).training_batch(torch.randn(4, 16), torch.arange(4))


def test_rules_that_a_refusal_names_take_the_nonlinearity_with_weights():
    def network():
        return as_network(
            nn.Sequential(nn.Linear(16, 7), nn.PReLU(7), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 5)), [16]
        )

    with registered(nn.PReLU):
        with pytest.raises(UserError, match="without weights") as refused:
            make_trained("dualprop", network())
        named = str(refused.value).rpartition("such as ")[2].strip(".").replace(" or", ",").split(", ")
        assert len(named) > 1
        for name in [*named, "drtp"]:
            make_trained(name, network()).training_batch(torch.randn(4, 16), torch.arange(4))


@pytest.mark.parametrize("name", OF_LAYERS)
def test_a_nonlinearity_with_weights_is_refused_or_gives_what_one_without_gives(name):
    x, found = torch.randn(6, 16, generator=torch.Generator().manual_seed(1)).double(), []
    with registered(nn.PReLU):
        for function in (lambda: nn.LeakyReLU(0.25), lambda: nn.PReLU(init=0.25)):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(16, 12), function(), nn.Linear(12, 11), function(), nn.Linear(11, 5))
            torch.manual_seed(2)
            try:
                rule = make_trained(name, as_network(model, [16]).double()).double()
            except UserError as error:
                assert found and "without weights" in str(error)
                return
            found.append([g for g in rule.forward_gradients(x, torch.arange(6) % 5)[1] if g.dim() == 2])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("name", ASK_FOR_IT)
@pytest.mark.parametrize(
    "layers",
    [
        lambda: (Scale(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 5)),
        lambda: (Own(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 5)),
        lambda: (nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 5), Scale()),
        lambda: (nn.Linear(16, 12), Scale(), nn.Tanh(), nn.Linear(12, 5)),
        lambda: (nn.Conv2d(16, 3, 1), nn.LocalResponseNorm(3), nn.Tanh(), nn.Flatten(), nn.Linear(3, 5)),
    ],
)
def test_what_is_no_nonlinearity_of_a_layer_is_part_of_the_map_as_before(name, layers):
    model = nn.Sequential(*layers())
    shape = (16, 1, 1) if isinstance(model[0], nn.Conv2d) else (16,)
    make_trained(name, as_network(model, shape)).training_batch(torch.randn(4, *shape), torch.arange(4))


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(8, 7)),
        lambda: nn.Sequential(nn.Sequential(nn.Identity(), nn.Dropout(0.0)), nn.ELU(inplace=True), nn.Linear(8, 7)),
        lambda: nn.Sequential(nn.Linear(8, 7), nn.Tanh(), nn.Flatten(), nn.ReLU(inplace=True)),
    ],
)
def test_a_function_in_place_is_refused_behind_what_hands_its_values_on_too(layer):
    for layers in ([layer(), nn.Linear(7, 5)], [nn.Sequential(nn.Linear(8, 8), nn.ReLU()), layer(), nn.Linear(7, 5)]):
        with pytest.raises(UserError, match=r"\(inplace=True\) (at the start of a layer|after Tanh)"):
            as_network(layers, (8,))


@pytest.mark.parametrize(
    "layers, positions",
    [
        ((nn.Conv2d(2, 4, 3, padding=1), nn.ELU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 5)), 16),
        ((nn.Conv2d(2, 4, 3, padding=1), nn.ELU(), nn.Flatten(), nn.Linear(64, 5)), 16),
        ((nn.Conv2d(2, 4, 3, padding=1), nn.ELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Identity(), nn.Linear(16, 5)), 4),
        ((nn.Flatten(2), nn.Linear(16, 8), nn.Tanh(), nn.Flatten(), nn.Linear(16, 5)), 2),
    ],
)
def test_the_usual_feedback_rate_goes_by_the_positions_that_share_weights(layers, positions):
    """1e-3 / (noise^2 positions), as the help says, wherever a flatten stands."""
    first = nn.Conv2d(2, 2, 1)
    rule = make_trained("dtp", as_network(nn.Sequential(first, nn.ELU(), *layers), MAPS), noise=[0.2])
    assert rule.feedback_lr[2] == pytest.approx(1e-3 / (0.2**2 * positions))


@pytest.mark.parametrize("name", ["drl", "sdtp", "hybrid", "fw-dtp", "dtp"])
def test_a_first_layer_may_pad_or_resize(name):
    layers = (
        nn.ZeroPad2d(1),
        nn.Conv2d(2, 4, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(64, 8),
        nn.Tanh(),
        nn.Linear(8, 5),
    )
    rule = make_trained(name, as_network([nn.Sequential(*layers[:3]), nn.Sequential(*layers[3:6]), layers[6]], MAPS))
    rule.training_batch(torch.randn(4, *MAPS), torch.arange(4))


def test_symmetric_feedback_leaves_frozen_normalisation_as_it_is():
    model = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 5))
    model[1].eval()
    make_trained("dfc", as_network(model, [16]), feedback_init="symmetric")
    assert [module.training for module in model] == [True, False, True, True]


@pytest.mark.parametrize("before", [nn.Identity(), nn.BatchNorm2d(4)])
def test_maps_are_broadcast_to_a_convolution_behind_what_keeps_the_shape(before):
    layers = [
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Sequential(before, nn.Conv2d(4, 3, 3)),
        nn.Sequential(nn.Flatten(), nn.Linear(12, 5)),
    ]
    rule = make_trained("dfa", as_network(layers, MAPS), dfa_form="broadcast")
    assert [type(rule.feedback[n]).__name__ for n in (2, 3)] == ["BroadcastMap", "DirectMap"]
    rule.training_batch(torch.randn(4, *MAPS), torch.arange(4))
