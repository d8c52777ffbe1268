"""Angles of updates to backprop's, by how the feedback came to be."""

import pytest
import torch

from dtp.experiments.theory.options import UpdateAnglesOptions
from dtp.experiments.theory.update_angles import VARIANTS, LeNetWithoutBiases, measure
from dtp.models.options import LeNetOptions


@pytest.fixture(scope="module")
def values():
    sizes = {"channels": [4, 6], "hidden": 12, "image_shape": [2, 12, 12], "batch_size": 24}
    return measure(UpdateAnglesOptions(**sizes, seeds=[1, 2], iterations=200, noise=[0.1], betas=[0.5, 0.01]))


def test_every_variant_has_every_layer_of_every_seed(values):
    for kind in ("angle", "distance"):
        assert list(values[kind]) == ["0.5", "0.01"]
        for variants in values[kind].values():
            assert list(variants) == list(VARIANTS)
            assert all([len(layers) for layers in seeds] == [4, 4] for seeds in variants.values())


def test_random_feedback_is_unrelated_to_backprop_and_symmetric_feedback_is_it(values):
    angles = values["angle"]["0.01"]
    for random, symmetric in zip(angles["random"], angles["symmetric"], strict=True):
        assert all(45 < angle < 135 for angle in random[:3]) and 75 < sum(random[:3]) / 3 < 115
        assert all(angle < 4 for angle in symmetric[:3])
    # Nothing goes down through feedback to the output layer.
    assert all(layers[3] < 0.01 for seeds in angles.values() for layers in seeds)


def test_training_turns_updates_to_backprop_and_most_so_with_fixed_maxima(values):
    angles = values["angle"]["0.01"]
    for seed in range(2):
        random, fixed, noisy = (angles[name][seed] for name in ("random", "L-DRL, fixed", "L-DRL, noisy"))
        assert all(trained < 0.45 * drawn for trained, drawn in zip(fixed[:3], random[:3], strict=True))
        assert noisy[0] > 1.3 * fixed[0]
        for name in ("DRL, chain", "DRL, direct"):
            assert all(
                ours < theirs < drawn
                for ours, theirs, drawn in zip(fixed[:2], angles[name][seed][:2], random[:2], strict=True)
            )


def test_a_smaller_step_of_the_output_brings_symmetric_feedback_closer(values):
    large, small = (values["angle"][beta]["symmetric"] for beta in ("0.5", "0.01"))
    assert all(s[1] < lg[1] for s, lg in zip(small, large, strict=True))


def test_maxima_written_over_each_other_are_no_adjoint():
    sizes = {"channels": [4, 6], "hidden": 12, "image_shape": [2, 12, 12], "batch_size": 32}
    first = {}
    for unpool in ("add", "write"):
        o = UpdateAnglesOptions(**sizes, seeds=[1], iterations=1, betas=[0.01], unpool=unpool)
        first[unpool] = measure(o)["angle"]["0.01"]["symmetric"][0][0]
    assert first["write"] > 3 * first["add"]


def test_the_network_has_no_biases():
    network = LeNetWithoutBiases(LeNetOptions(channels=[3, 4], hidden=8), (2, 12, 12), 5)
    assert [tuple(p.shape) for p in network.parameters()] == [(3, 2, 5, 5), (4, 3, 5, 5), (8, 36), (5, 8)]
    assert network(torch.randn(2, 2, 12, 12)).shape == (2, 5)
