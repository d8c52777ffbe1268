"""Every rule on the networks whose layers hear binary values, signs or samples."""

import pytest

from dtp.errors import UserError
from tests.algorithms.helpers import changed, make_trained, of_network, state
from tests.algorithms.rules import NAMES
from tests.conftest import make_batch
from tests.models import test_discrete, test_stochastic

NETWORKS = {"discrete": test_discrete, "stochastic": test_stochastic}


def cases(refused):
    pairs = [(kind, name) for kind in NETWORKS for name in NAMES]
    return pytest.mark.parametrize("kind, name", [p for p in pairs if (p[1] in NETWORKS[p[0]].REFUSE) == refused])


@cases(refused=True)
def test_a_rule_that_cannot_train_it_says_why(kind, name):
    with pytest.raises(UserError) as error:
        make_trained(name, NETWORKS[kind].network())
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


@cases(refused=False)
def test_every_other_rule_trains_all_its_layers(kind, name):
    net = NETWORKS[kind].network()
    rule = make_trained(name, net)
    before = state(rule)
    for _ in range(4):
        rule.training_batch(*make_batch(net))
    after = rule.state_dict()
    assert of_network(changed(before, after)) == of_network(set(before))
    assert all(value.isfinite().all() for value in after.values())
