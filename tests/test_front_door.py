"""What ``import dtp`` gives to a notebook: every rule and network, made of any network with options by keyword."""

import ast
import copy
import inspect
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn

import dtp
from dtp.algorithms import ALGORITHMS
from dtp.algorithms import CLASSES as RULES
from dtp.algorithms.options import AlgorithmOptions, DTPOptions
from dtp.errors import UserError
from dtp.models import CLASSES as NETWORKS
from dtp.models import MODELS
from tests import listed


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ELU(), nn.Linear(8, 7), nn.ELU(), nn.Linear(7, 5))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(6, 1, 4, 4), torch.randint(5, (6,))


def test_importing_dtp_and_listing_it_wait_for_no_torch():
    code = "import sys, dtp; dir(dtp); assert 'torch' not in sys.modules; dtp.DTP; assert 'torch' in sys.modules"
    # A module of the name of a function is no obstacle to it.
    code += "; import dtp.run.training; dtp.train.__call__"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("registry", [ALGORITHMS, MODELS], ids=["rules", "networks"])
def test_every_rule_and_network_is_there_by_the_name_of_its_class(registry):
    for entry in registry.entries.values():
        cls = entry.load()
        assert getattr(dtp, cls.__name__) is cls and cls.__name__ in dir(dtp)


def test_what_type_checkers_are_told_is_what_is_there():
    tree = ast.parse(Path(dtp.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    told = {alias.asname: (node.module, alias.name) for node in block.body for alias in node.names}
    missing = set(dtp._names()) - set(told)
    assert not missing, f"{listed.COMMAND} writes {missing}"
    assert set(told) == set(dtp._names())
    for name, (module, attribute) in told.items():
        assert getattr(__import__(module, fromlist=[attribute]), attribute) is getattr(dtp, name)


def test_names_that_type_checkers_are_not_told_are_written():
    text = Path(dtp.__file__).read_text()
    without = text.replace("    from dtp.algorithms.direct import DDTPRHL as DDTPRHL\n", "")
    assert without != text and listed.with_names(without) == text


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'DTQ'"):
        dtp.DTQ  # noqa: B018
    with pytest.raises(ImportError):
        from dtp import DTQ  # noqa: F401


def test_a_star_imports_every_rule_and_network():
    names: dict[str, object] = {}
    exec("from dtp import *", names)
    assert names.keys() >= {*RULES, *NETWORKS, "train", "load"}


@pytest.mark.parametrize("cls", [dtp.DTP, dtp.BP, dtp.FA, dtp.DRL, dtp.DFA])
def test_options_by_keyword_are_those_of_the_dataclass(cls):
    by_name, by_class = cls(plain(), lr=0.3), cls(plain(), cls.Options(lr=0.3))
    assert by_name.options == by_class.options and by_name.options.lr == 0.3


def test_keywords_beat_the_options_that_are_given_with_them():
    rule = dtp.DTP(plain(), DTPOptions(beta=0.2, lr=0.5), beta=0.3)
    assert (rule.options.beta, rule.options.lr) == (0.3, 0.5)
    assert dtp.DTP(plain(), {"beta": 0.2}, lr=0.5).options == DTPOptions(beta=0.2, lr=0.5)


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"betta": 1}, "DTP has no option 'betta'; did you mean beta?"),
        ({"optimizer": "adamw"}, "--optimizer: expected one of sgd, adam, rmsprop, lee-rmsprop; found 'adamw'"),
        ({"lr_schedule": "consine"}, "--lr-schedule: expected one of constant, cosine, step; found 'consine'"),
        ({"beta": 0}, "--beta: expected a number above 0, found 0"),
        ({"noise": [1e-30]}, "--noise: expected at least 1e-15 where the usual feedback rate is taken, found 1e-30"),
        ({"noise": [1e-200]}, "--noise: expected at least 1e-15 where"),
        ({"lr": "fast"}, "--lr: expected a number, found 'fast'"),
        ({"metrics": 3}, "metrics: expected torchmetrics"),
        ({"batch": 3}, "batch: expected a function .* found a value of type int"),
    ],
)
def test_mistakes_are_told_where_the_rule_is_made(values, sentence):
    with pytest.raises(UserError, match=sentence):
        dtp.DTP(plain(), **values)


def test_a_wrong_choice_in_options_made_before_is_told_too():
    with pytest.raises(UserError, match="--optimizer: expected one of"):
        dtp.BP(plain(), AlgorithmOptions(optimizer="adamw"))


@pytest.mark.parametrize("wrong", [0.1, [0.1], DTPOptions, AlgorithmOptions()])
def test_what_is_given_for_options_and_is_none_is_told(wrong):
    with pytest.raises(UserError, match=r"DTP: expected its options, DTP.Options\(...\), found .*(0.1|Options)"):
        dtp.DTP(plain(), wrong)
    with pytest.raises(UserError, match=r"MLP: expected its options, MLP.Options\(...\), found"):
        dtp.MLP(wrong, (1, 8, 8), 10)


def test_a_plain_network_learns_to_classify_in_a_loop_of_ones_own():
    rule, (x, y) = dtp.DTP(plain(), noise=0.2, lr=np.float32(0.2), lr_schedule="constant"), batch()
    rule.configure_optimizers()
    first = rule.task_loss(rule(x), y).item()
    for _ in range(60):
        rule.training_batch(x, y)
    assert rule.task_loss(rule(x), y).item() < 0.5 * first


def test_a_rule_of_ones_own_with_a_plain_constructor_takes_keywords():
    class Mine(dtp.BP):
        def __init__(self, network, options=None, seed=0):
            super().__init__(network, options, seed)
            self.mine = True

    rule = Mine(plain(), lr=0.7)
    assert rule.mine and rule.options.lr == 0.7


def test_the_signature_shows_the_options():
    parameters = inspect.signature(dtp.DTP).parameters
    assert list(parameters)[:3] == ["network", "options", "seed"]
    assert parameters["beta"].default == 0.7 and parameters["noise"].default == [0.2]


def noise(rule: dtp.DTP) -> torch.Tensor:
    return rule.draw_noise(2, torch.zeros(3, 4))


@pytest.mark.parametrize("seeded", [torch.manual_seed, lambda seed: pl.seed_everything(seed, verbose=False)])
def test_the_usual_ways_to_seed_reach_the_noise(seeded):
    def drawn(seed):
        seeded(seed)
        return noise(dtp.DTP(plain()))

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
    torch.manual_seed(1)
    assert torch.equal(noise(dtp.DTP(plain(), seed=5)), noise(dtp.DTP(plain(), seed=5)))
    assert not torch.equal(noise(dtp.DTP(plain(), seed=5)), noise(dtp.DTP(plain())))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits_are_refused(dtype):
    with pytest.raises(UserError, match="Expected weights in float32 or float64, found .* in b?float16"):
        dtp.BP(dtp.MLP(dtp.MLP.Options(), (1, 4, 4), 5).to(dtype))


def test_a_loss_of_ones_own_has_the_gradients_of_backprop_through_it():
    """For small beta DTP with symmetric feedback and fixed slopes is backprop; here of another loss than its own."""

    def loss(output, goal):
        return (output - goal).abs().pow(1.5).sum(1).mean()

    x, goal = torch.randn(6, 1, 4, 4, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    network = plain()
    bp = dtp.BP(network, loss=loss).double()
    backprop = torch.autograd.grad(loss(network(x), goal), list(network.parameters()))
    _, found = bp.forward_gradients(x, goal)
    for ours, true in zip(found, backprop, strict=True):
        torch.testing.assert_close(ours, true)
    options = dict(feedback_init="symmetric", feedback_slope="clean", routing="fixed", beta=1e-4)
    rule = dtp.DTP(bp.network, loss=loss, **options).double()
    _, found = rule.forward_gradients(x, goal)
    for ours, true in zip(found, backprop, strict=True):
        torch.testing.assert_close(ours / 1e-4, true, rtol=1e-3, atol=1e-5)


def test_a_loss_that_is_a_module_goes_where_the_rule_goes():
    weights = torch.rand(5)
    rule, (x, y) = dtp.BP(plain(), loss=nn.CrossEntropyLoss(weight=weights)).double(), batch()
    expected = nn.functional.cross_entropy(rule(x.double()), y, weight=weights.double())
    torch.testing.assert_close(rule.task_loss(rule(x.double()), y), expected)


OWN_LOSS = [name for name in ALGORITHMS.names() if not ALGORITHMS.resolve(name).load().learns_any_loss]


@pytest.mark.parametrize("name", OWN_LOSS)
def test_a_rule_that_is_made_for_a_loss_of_its_own_refuses_another(name):
    from tests.algorithms.helpers import make, small_network

    rule = make(name, small_network(name))
    with pytest.raises(UserError, match=f"loss: {type(rule).__name__} is made for a loss of its own"):
        rule.use(loss=nn.functional.cross_entropy)


@pytest.mark.parametrize("name", [name for name in ALGORITHMS.names() if name not in OWN_LOSS])
def test_a_rule_follows_the_loss_it_is_given(name):
    from tests.algorithms.helpers import make, small_network

    x, y, network, found = torch.randn(6, 1, 4, 4), torch.randint(5, (6,)), small_network(name), []
    for label in (1, 1, 2):
        torch.manual_seed(0)
        rule = make(name, copy.deepcopy(network))
        # Of the same images and labels, another output is to grow.
        rule.use(loss=lambda output, goal, label=label: -output.log_softmax(1)[:, label].mean())
        found.append(rule.forward_gradients(x, y)[1])
    assert all(torch.equal(one, again) for one, again in zip(*found[:2], strict=True))
    assert any(not torch.equal(one, other) for one, other in zip(*found[1:], strict=True))


@pytest.mark.parametrize("name", ["drtp", "ccl"])
@pytest.mark.parametrize(
    ("goals", "found"), [(torch.rand(6, 5), "a tensor"), (torch.full((6,), 5), "values from 5 to 5")]
)
def test_goals_without_a_class_are_refused_by_rules_that_send_the_class_down(name, goals, found):
    rule = ALGORITHMS.resolve(name).load()(plain(), loss=lambda outputs, goals: (outputs.t() * goals.t()).mean())
    with pytest.raises(UserError, match=f"loss: expected labels from 0 to 4 for goals, .* found {found}"):
        rule.forward_gradients(batch()[0], goals)


def test_a_loss_of_each_sample_is_refused():
    rule = dtp.BP(plain(), loss=nn.CrossEntropyLoss(reduction="none"))
    with pytest.raises(UserError, match=r"loss: expected a function .* found the shape \(6,\)"):
        rule.forward_gradients(*batch())


def test_a_loss_that_is_a_class_is_refused():
    with pytest.raises(UserError, match="loss: expected .* found the class CrossEntropyLoss; make one of it"):
        dtp.BP(plain(), loss=nn.CrossEntropyLoss)


@pytest.mark.parametrize("name", ["bp", "dtp", "fa", "dfa"])
def test_a_loss_that_forgets_the_outputs_is_told(name):
    rule = ALGORITHMS.resolve(name).load()(plain(), loss=lambda outputs, goals: outputs.detach().square().mean())
    with pytest.raises(UserError, match="loss: expected a function .* depends on the outputs, found one without grad"):
        rule.forward_gradients(*batch())
    with torch.no_grad():
        assert rule.task_loss(rule(batch()[0]), batch()[1]).isfinite()


def test_a_network_without_weights_to_train_is_told():
    rule = dtp.DTP(plain().requires_grad_(False))
    with pytest.raises(UserError, match="with weights to train, found all of them frozen"):
        rule.configure_optimizers()


@pytest.mark.parametrize(("label", "told"), [(3, "found 3"), (-1, "found -1"), (-100, "found -100"), (2, None)])
def test_labels_that_are_no_class_are_told(label, told):
    rule = dtp.BP(nn.Linear(4, 3))
    batch = torch.zeros(2, 4), torch.tensor([0, label])
    if told:
        with pytest.raises(UserError, match=f"Expected labels from 0 to 2, for 3 classes, {told}; fix"):
            rule.taken(batch)
    else:
        rule.taken(batch)


@pytest.mark.parametrize("seed", ["1", 1.5, -1])
def test_a_seed_is_a_whole_number_from_0(seed):
    with pytest.raises(UserError, match="seed: expected a whole number from 0, found "):
        dtp.BP(nn.Linear(4, 3), seed=seed)
