"""Rules of one layer: against plain loops, against backprop, and against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from dtp.algorithms import BP, Competitive
from dtp.errors import UserError
from dtp.models import MLP
from dtp.models.options import MLPOptions
from dtp.tasks import Autoencoder, Classification, Clustering
from tests.algorithms.helpers import make, state
from tests.algorithms.networks import Layers
from tests.conftest import make_batch
from tests.distributed.ranks import fit, train_on_ranks

SHAPE, UNITS = (1, 3, 4), 4
PLAIN = {"momentum": 0.0, "weight_decay": 0.0}


def one_layer(task=None, **options):
    task = task or Classification(UNITS)
    return MLP.for_task(MLPOptions(widths=[], **options), SHAPE, task).double()


def clustering(units=UNITS, **options):
    return one_layer(Clustering(units, 3), **options)


def weights(rule):
    return rule.linear.weight.detach().clone()


def blobs(clusters=UNITS, each=50, spread=0.3, seed=0):
    """Images around well separated centres, shuffled, and the centres (clusters, d)."""
    generator = torch.Generator().manual_seed(seed)
    d = int(np.prod(SHAPE))
    centres = 4 * torch.randn(clusters, d, generator=generator, dtype=torch.float64)
    x = centres.repeat(each, 1) + spread * torch.randn(clusters * each, d, generator=generator, dtype=torch.float64)
    order = torch.randperm(len(x), generator=generator)
    return x[order].view(-1, *SHAPE), centres


def train(rule, x, batch_size, passes=1):
    for _ in range(passes):
        for part in x.split(batch_size):
            rule.training_batch(part, torch.zeros(len(part), dtype=torch.int64))


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hebb", "delta", "competitive"])
@pytest.mark.parametrize("layers", ["two", "activation"])
def test_a_network_of_more_than_one_linear_layer_is_refused_in_one_sentence(name, layers):
    if layers == "two":
        network = MLP(MLPOptions(widths=[5]), SHAPE, UNITS)
    else:
        network = Layers([nn.Sequential(nn.Flatten(), nn.Linear(12, UNITS), nn.Tanh())], SHAPE, UNITS)
    with pytest.raises(UserError, match="one linear layer, found Linear, .*use --model mlp --widths") as error:
        make(name, network)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["hebb", "delta", "competitive"])
@pytest.mark.parametrize("computed", [weight_norm, lambda layer: prune.random_unstructured(layer, "weight", 2)])
def test_weights_that_are_computed_from_others_are_refused_in_one_sentence(name, computed):
    network = Layers([nn.Sequential(nn.Flatten(), computed(nn.Linear(12, UNITS)))], SHAPE, UNITS)
    with pytest.raises(UserError, match="The weight of the layer is computed from others .*expected one that takes"):
        make(name, network)


# --- Hebb -------------------------------------------------------------------------------------------------------------


def test_plain_hebbian_learning_adds_the_products_of_label_and_image():
    network = one_layer()
    rule = make("hebb", network, hebb_form="plain", lr=0.1)
    x, y = make_batch(network)
    expected, bias = weights(rule), rule.linear.bias.detach().clone()
    for image, label in zip(x.flatten(1), y, strict=True):
        expected[label] += 0.1 * image / len(x)
        bias[label] += 0.1 / len(x)
    rule.training_batch(x, y)
    torch.testing.assert_close(weights(rule), expected)
    torch.testing.assert_close(rule.linear.bias.detach(), bias)


def test_the_covariance_form_learns_the_class_means_less_the_mean_of_all():
    """Where the running means have found the true ones, steps are those of the covariance of label and image."""
    network = one_layer()
    rule = make("hebb", network, lr=0.1)
    x, y = torch.randn(40, *SHAPE, dtype=torch.float64) + 3, torch.arange(40) % UNITS
    rule.training_batch(x, y)
    before = weights(rule)
    rule.training_batch(x, y)
    flat = x.flatten(1)
    means = torch.stack([flat[y == k].mean(0) for k in range(UNITS)])
    torch.testing.assert_close(weights(rule) - before, 0.1 / UNITS * (means - flat.mean(0)))


def test_running_means_follow_the_batches():
    rule = make("hebb", one_layer(), mean_rate=0.25)
    first, second = (make_batch(rule.network) for _ in range(2))
    rule.training_batch(*first)
    rule.training_batch(*second)
    expected = 0.75 * first[0].flatten(1).mean(0) + 0.25 * second[0].flatten(1).mean(0)
    torch.testing.assert_close(rule.mean_input, expected)


def test_running_means_go_on_where_another_training_begins():
    rule, again = (make("hebb", one_layer(), mean_rate=0.25) for _ in range(2))
    first, second = (make_batch(rule.network) for _ in range(2))
    rule.training_batch(*first)
    again.load_state_dict(rule.state_dict())
    again.training_batch(*second)
    torch.testing.assert_close(again.mean_input, torch.lerp(rule.mean_input, second[0].flatten(1).mean(0), 0.25))


def test_one_linear_unit_of_length_one_finds_the_first_principal_component():
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64)).Q
    scale = torch.tensor([3.0, 1.5, *[0.5] * 10], dtype=torch.float64)
    x = torch.randn(512, 12, generator=generator, dtype=torch.float64) * scale @ axes.t() + 2
    rule = make("hebb", clustering(1), units="linear", normalise_rows=True, lr=0.05, mean_rate=0.05)
    train(rule, x.view(-1, *SHAPE), 64, passes=20)
    first = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[0]
    assert abs(weights(rule)[0] @ first) > 0.99


def test_competing_units_differ_where_linear_ones_become_alike():
    x, _ = blobs()
    found = {}
    for units in ("competing", "linear"):
        torch.manual_seed(0)
        rule = make("hebb", clustering(), units=units, normalise_rows=True, lr=0.1)
        train(rule, x, 50, passes=30)
        w = weights(rule)
        found[units] = (w @ w.t()).abs()[~torch.eye(UNITS, dtype=torch.bool)]
    assert found["linear"].min() > 0.99
    assert found["competing"].max() < 0.9


@pytest.mark.parametrize("name, task", [("hebb", None), ("competitive", Clustering(UNITS, 3))])
def test_normalised_rows_have_length_one_from_the_start_on(name, task):
    rule = make(name, one_layer(task), normalise_rows=True)
    for _ in range(2):
        row = weights(rule)
        if name == "hebb":
            # A bias is the weight of an input of 1.
            row = torch.cat([row, rule.linear.bias.detach()[:, None]], 1)
        torch.testing.assert_close(row.norm(dim=1), torch.ones(UNITS, dtype=torch.float64))
        rule.training_batch(*make_batch(rule.network))


def test_labels_are_not_seen_under_clustering():
    ends = []
    for label in (0, 1):
        torch.manual_seed(0)
        rule = make("hebb", clustering())
        x, _ = make_batch(rule.network)
        rule.training_batch(x, rule.task.goal(x, torch.full((6,), label)))
        ends.append(weights(rule))
    assert torch.equal(*ends)


# --- delta ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [Classification(UNITS), Autoencoder(SHAPE)], ids=lambda task: task.name)
@pytest.mark.parametrize("loss", ["cross-entropy", "squared", "binary-cross-entropy"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_delta_rule_is_backprop_for_every_loss(task, loss, bias):
    if loss not in task.losses:
        pytest.skip("a loss of classes alone")
    network = one_layer(task, bias=bias)
    x, y = make_batch(network)
    ours = make("delta", network, loss=loss).forward_gradients(x, y)
    backprop = BP(network, BP.Options(loss=loss)).forward_gradients(x, y)
    torch.testing.assert_close(ours[0], backprop[0])
    for a, b in zip(ours[1], backprop[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


def test_with_the_slope_sigmoids_descend_the_squared_distance():
    """Equation 1.7, by automatic differentiation of the loss that it comes from."""
    network = one_layer()
    x, y = make_batch(network)
    wanted = torch.eye(UNITS, dtype=torch.float64)[y]
    loss = 0.5 * (network(x).sigmoid() - wanted).square().sum() / len(x)
    expected = torch.autograd.grad(loss, list(network.parameters()))
    found = make("delta", network, loss="binary-cross-entropy", slope="yes").forward_gradients(x, y)[1]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_without_the_slope_an_autoencoder_descends_the_cross_entropy():
    network = one_layer(Autoencoder(SHAPE))
    x, y = make_batch(network)
    found = make("delta", network, loss="squared", slope="no").forward_gradients(x, y)[1]
    expected = make("delta", network, loss="binary-cross-entropy").forward_gradients(x, y)[1]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_softmax_has_no_slope_of_each_unit():
    with pytest.raises(UserError, match="--slope yes: expected .* found the softmax of cross-entropy"):
        make("delta", one_layer(), slope="yes")


# --- competitive ------------------------------------------------------------------------------------------------------


def online_kmeans(x, prototypes, rate):
    """MacQueen 1967, as it is written: each image moves its nearest prototype; ``rate`` of the number that it won."""
    w, won = prototypes.clone(), torch.zeros(len(prototypes))
    for image in x.flatten(1):
        i = int(((w - image) ** 2).sum(1).argmin())
        won[i] += 1
        w[i] = w[i] + rate(float(won[i])) * (image - w[i])
    return w, won


@pytest.mark.parametrize("pull, lr, rate", [("count", 1.0, lambda n: 1 / n), ("batch", 0.2, lambda n: 0.2)])
@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_one_by_one_it_is_online_k_means(pull, lr, rate, batch_size):
    x, _ = blobs(each=10, spread=3.0)
    rule = make("competitive", clustering(), pull=pull, lr=lr, one_by_one=True, first_prototypes="weights")
    rule.options.revive_below = 0.0
    expected, won = online_kmeans(x, weights(rule), rate)
    train(rule, x, batch_size)
    torch.testing.assert_close(weights(rule), expected)
    assert rule.won.sum() == won.sum() == len(x)


def test_one_by_one_prototypes_have_their_length_after_each_image():
    x, _ = blobs(each=10, spread=3.0)
    ends = []
    for batch_size in (1, 20):
        torch.manual_seed(0)
        options = {"one_by_one": True, "normalise_rows": True, "first_prototypes": "weights", "revive_below": 0.0}
        rule = make("competitive", clustering(), lr=0.2, **options)
        train(rule, x, batch_size)
        ends.append(weights(rule))
    torch.testing.assert_close(*ends)


def test_the_rate_of_its_layer_is_known_before_there_are_optimizers():
    network, options = clustering(), {"layer_lr": [0.1], "one_by_one": True, "first_prototypes": "weights"}
    rule, batch = make("competitive", network, **options), make_batch(network, 20)
    bare = type(rule)(network, rule.options)
    (found,), (expected,) = (each.forward_gradients(*batch)[1] for each in (bare, rule))
    torch.testing.assert_close(found, expected)


def test_a_batch_of_one_image_is_one_by_one_by_itself():
    x, _ = blobs(each=10, spread=3.0)
    ends = []
    for one_by_one in (False, True):
        torch.manual_seed(0)
        rule = make("competitive", clustering(), lr=0.2, one_by_one=one_by_one)
        train(rule, x, 1)
        ends.append(weights(rule))
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("pull", ["batch", "won", "count"])
def test_in_batches_winners_move_by_their_images(pull):
    network = clustering()
    rule = make("competitive", network, pull=pull, lr=0.5, first_prototypes="weights")
    # Of few images some prototypes win one.
    for images in (3, 20):
        x, y = make_batch(network, images)
        w, won = weights(rule), rule.won.clone()
        winner = torch.cdist(x.flatten(1), w).argmin(1)
        expected = w.clone()
        for i in range(UNITS):
            own = x.flatten(1)[winner == i]
            if len(own):
                divisor = {"batch": len(x), "won": len(own), "count": won[i] + len(own)}[pull]
                expected[i] += 0.5 * (own - w[i]).sum(0) / divisor
        rule.training_batch(x, y)
        torch.testing.assert_close(weights(rule), expected)


def test_the_batch_form_descends_the_objective_of_k_means():
    network = clustering()
    rule = make("competitive", network, first_prototypes="weights")
    x, y = make_batch(network, 20)
    w = weights(rule).requires_grad_()
    objective = 0.5 * ((x.flatten(1)[:, None] - w) ** 2).sum(2).min(1).values.mean()
    (expected,) = torch.autograd.grad(objective, w)
    _, (found,) = rule.forward_gradients(x, y)
    torch.testing.assert_close(found, expected)
    _, scalars = rule.training_batch(x, y)
    torch.testing.assert_close(scalars["quantisation"], objective.detach())


@pytest.mark.parametrize("options", [{}, {"normalise_rows": True}], ids=["free", "normalised"])
def test_the_largest_output_is_at_the_nearest_prototype(options):
    network = clustering()
    rule = make("competitive", network, **options)
    for _ in range(3):
        x, y = make_batch(network, 20)
        rule.training_batch(x, y)
        assert torch.equal(rule(x).argmax(1), torch.cdist(x.flatten(1), weights(rule)).argmin(1))


def test_the_largest_product_wins_where_that_is_asked_for():
    network = clustering()
    rule = make("competitive", network, winner="product", first_prototypes="weights", pull="won", lr=1.0)
    x, y = make_batch(network, 20)
    w = weights(rule)
    winner = (x.flatten(1) @ w.t()).argmax(1)
    rule.training_batch(x, y)
    for i in winner.unique():
        torch.testing.assert_close(weights(rule)[i], x.flatten(1)[winner == i].mean(0))
    assert not rule.linear.bias.any()


def test_whole_batches_pulled_all_the_way_are_the_k_means_of_scikit_learn():
    """Each prototype goes to the mean of the images that it won: Lloyd's algorithm, step by step."""
    x, _ = blobs(each=25, spread=4.0)
    rule = make("competitive", clustering(), pull="won", lr=1.0, first_prototypes="weights", revive_below=0.0)
    with torch.no_grad():
        rule.linear.weight.copy_(x[:UNITS].flatten(1))
        rule.hold()
    train(rule, x, len(x), passes=30)
    start = x[:UNITS].flatten(1).numpy()
    found = KMeans(UNITS, init=start, n_init=1, tol=0, algorithm="lloyd").fit(x.flatten(1).numpy())
    torch.testing.assert_close(weights(rule), torch.from_numpy(found.cluster_centers_))


@pytest.mark.parametrize("options", [{"pull": "count", "lr": 1.0}, {"lr": 0.2}], ids=["count", "batch"])
def test_in_small_batches_it_comes_near_the_objective_that_scikit_learn_finds(options):
    x, _ = blobs(each=100, spread=4.0)
    rule = make("competitive", clustering(), **options)
    train(rule, x, 20, passes=30)
    objective = float((torch.cdist(x.flatten(1), weights(rule)) ** 2).min(1).values.sum())
    assert objective <= 1.05 * KMeans(UNITS, n_init=10, random_state=0).fit(x.flatten(1).numpy()).inertia_


def test_first_prototypes_are_images_of_the_first_batch():
    x, _ = blobs(each=10)
    rule = make("competitive", clustering())
    train(rule, x[:9], 9)
    distances = torch.cdist(weights(rule), x[:9].flatten(1))
    assert distances.min(1).values.max() < 1e-12
    assert len(distances.argmin(1).unique()) == UNITS
    other = make("competitive", clustering(), seed=4)
    train(other, x[:9], 9)
    assert not torch.equal(weights(rule), weights(other))


def test_prototypes_that_have_learned_stay_where_another_training_begins():
    x, _ = blobs()
    rule, again = make("competitive", clustering()), make("competitive", clustering(), lr=1e-6)
    train(rule, x, 20)
    again.load_state_dict(rule.state_dict())
    train(again, x[:20], 20)
    torch.testing.assert_close(weights(again), weights(rule), rtol=0, atol=1e-4)


def test_a_rate_of_nothing_moves_nothing():
    """Where a schedule has ended at 0."""
    rule = make("competitive", clustering())
    rule.forward_optimizer.param_groups[0]["lr"] = 0.0
    before = weights(rule)
    rule.training_batch(*make_batch(rule.network))
    assert torch.equal(weights(rule), before)


def far_away(**options):
    """A rule with one prototype that never wins by distance, on blobs."""
    rule = make("competitive", clustering(), first_prototypes="weights", share_rate=0.2, lr=0.5, **options)
    x, centres = blobs()
    with torch.no_grad():
        rule.linear.weight.copy_(centres)
        rule.linear.weight[2] = 100.0
        rule.hold()
    return rule, x


def test_a_prototype_that_never_wins_stays_dead_if_nothing_is_done():
    rule, x = far_away(revive_below=0.0)
    train(rule, x, 20, passes=5)
    assert (weights(rule)[2] == 100).all() and rule.won[2] == 0
    _, scalars = rule.training_batch(x, torch.zeros(len(x), dtype=torch.int64))
    assert scalars["prototypes"] == UNITS - 1


def test_a_dead_prototype_is_put_onto_an_image_and_begins_anew():
    rule, x = far_away(revive_below=0.5)
    # It won some in an earlier training.
    rule.won[2] = 5
    # 0.8^n / 4 falls below half of 1 / 4 after four batches.
    train(rule, x[:80], 20)
    assert (weights(rule)[2] == 100).all()
    train(rule, x[80:100], 20)
    assert torch.cdist(weights(rule)[2][None], x[80:100].flatten(1)).min() < 1e-10
    assert rule.won[2] == 0 and rule.share[2] == pytest.approx(1 / UNITS)


def test_dead_prototypes_are_revived_until_all_are_in_use():
    rule, x = far_away(revive_below=0.5)
    train(rule, x, 20, passes=20)
    found = KMeans(UNITS, n_init=10, random_state=0).fit(x.flatten(1).numpy())
    objective = float((torch.cdist(x.flatten(1), weights(rule)) ** 2).min(1).values.sum())
    assert objective <= 1.1 * found.inertia_


def test_conscience_lets_a_prototype_that_never_wins_win_in_the_end():
    rule, x = far_away(revive_below=0.0, conscience=3e5)
    train(rule, x, 20, passes=5)
    assert rule.won[2] > 0 and weights(rule)[2].abs().max() < 50


def test_conscience_is_a_head_start_in_squared_distance_by_the_share_won():
    rule = make("competitive", clustering(), first_prototypes="weights", conscience=5.0, revive_below=0.0)
    rule.share.copy_(torch.tensor([0.7, 0.2, 0.1, 0.0]))
    x, y = make_batch(rule.network, 200)
    distances = torch.cdist(x.flatten(1), weights(rule)) ** 2
    winners = (distances - 5.0 * (1 - UNITS * rule.share)).argmin(1)
    rule.training_batch(x, y)
    assert rule.won.tolist() == torch.bincount(winners, minlength=UNITS).tolist()


def test_running_shares_are_those_of_the_images_won():
    rule = make("competitive", clustering(), first_prototypes="weights", share_rate=0.25)
    x, y = make_batch(rule.network, 20)
    counts = torch.bincount(rule(x).argmax(1), minlength=UNITS)
    rule.training_batch(x, y)
    torch.testing.assert_close(rule.share, 0.75 / UNITS + 0.25 * counts.double() / 20)
    assert rule.share.sum() == pytest.approx(1)


@pytest.mark.parametrize("options", [{}, {"pull": "won"}, {"pull": "count", "lr": 1.0}, {"conscience": 5.0}], ids=str)
def test_two_devices_have_the_prototypes_of_one(options, tmp_path):
    """Those of random images too, whichever device has the image."""
    x, _ = blobs(each=12)
    batches = [(part, torch.zeros(len(part), dtype=torch.int64)) for part in x.split(12)]

    def trained(trainer):
        torch.manual_seed(0)
        rule = make("competitive", clustering(), revive_below=0.9, share_rate=0.5, **options).double()
        fit(trainer, rule, batches)
        return state(rule)

    (alone,) = train_on_ranks(trained, tmp_path, 1)
    first, second = train_on_ranks(trained, tmp_path, 2)
    for name in alone:
        if alone[name].is_floating_point():
            torch.testing.assert_close(first[name], alone[name])
            assert torch.equal(first[name], second[name])


def test_one_by_one_is_refused_on_several_devices(tmp_path):
    def refused(trainer):
        rule = make("competitive", clustering(), one_by_one=True).double()
        with pytest.raises(UserError, match="--one-by-one: expected one device, .* found 2"):
            fit(trainer, rule, [make_batch(rule.network)])
        return True

    assert train_on_ranks(refused, tmp_path, 2) == [True, True]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"momentum": 0.9}, "--momentum: expected 0, .*found 0.9"),
        ({"weight_decay": 0.1}, "--weight-decay: expected 0"),
        ({"lr": 1.5}, "--lr: expected a number above 0 and up to 1, found 1.5"),
        ({"share_rate": 0.0}, "--share-rate: expected a number above 0 and up to 1"),
        ({"revive_below": 1.0}, "--revive-below: expected a number from 0 to below 1"),
        ({"conscience": -1.0}, "--conscience: expected 0 or more"),
    ],
)
def test_values_out_of_range_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        make("competitive", clustering(), **options)
    if "share_rate" in options:
        with pytest.raises(UserError, match="--mean-rate: expected a number above 0 and up to 1, found 0"):
            make("hebb", one_layer(), mean_rate=0.0)


def test_distances_need_biases_unless_prototypes_have_one_length():
    with pytest.raises(UserError, match="--winner distance: expected a layer with biases"):
        make("competitive", clustering(bias=False))
    for options in ({"normalise_rows": True}, {"winner": "product"}):
        rule = make("competitive", clustering(bias=False), **options)
        rule.training_batch(*make_batch(rule.network))


@pytest.mark.parametrize("kind, settings", [("SGD", {"momentum": 0.9}), ("SGD", {"weight_decay": 0.1}), ("Adam", {})])
def test_prototypes_refuse_an_optimizer_that_moves_them_otherwise(kind, settings):
    class Own(Competitive):
        def configure_optimizers(self):
            return getattr(torch.optim, kind)(self.network.parameters(), lr=0.5, **settings)

    rule = Own(nn.Linear(6, 3))
    rule.configure_optimizers()
    before = state(rule)
    with pytest.raises(UserError, match=rf"^configure_optimizers of Own: expected torch.optim.SGD .* found {kind}"):
        rule.training_batch(torch.randn(8, 6), torch.zeros(8, dtype=torch.int64))
    assert all(torch.equal(value, before[name]) for name, value in state(rule).items())
