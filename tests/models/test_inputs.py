"""Inputs that a network does not take are told in one sentence, wherever they come from."""

import re

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dtp
from dtp.algorithms import ALGORITHMS
from dtp.errors import UserError
from dtp.models.inputs import require_inputs

SMALL = {"feedback_iterations": 1}


def convolutional() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 8 * 8, 3))


def pooled() -> nn.Sequential:
    """Takes images of any size."""
    layers = [nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3, stride=2), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))


def batch(*shape: int, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(4, *shape).to(dtype), torch.arange(4) % 3


def loader(*shape: int) -> DataLoader:
    return DataLoader(TensorDataset(*batch(*shape)), batch_size=2)


def trainer(folder) -> L.Trainer:
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return L.Trainer(accelerator="cpu", devices=1, max_epochs=1, default_root_dir=folder, **silent)


@pytest.mark.parametrize("cls", [dtp.BP, dtp.FA, dtp.DFA, dtp.DTP], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("use", ["fit", "validate", "test", "predict", "alignment", "linear_probes"])
def test_images_of_another_size_are_told_with_the_layer(cls, use, tmp_path):
    rule, images = cls(convolutional(), **(SMALL if cls is dtp.DTP else {})), loader(1, 9, 9)
    sentence = (
        "Expected inputs of shape (B, 1, 8, 8), found (B, 1, 9, 9): layer 2 (Flatten, Linear) receives 2x9x9 and "
        "cannot take it ("
    )
    with pytest.raises(UserError, match=re.escape(sentence)):
        if use == "alignment":
            dtp.alignment(rule, batch(1, 9, 9))
        elif use == "linear_probes":
            dtp.linear_probes(rule, images, images)
        else:
            getattr(trainer(tmp_path), use)(rule, images)


@pytest.mark.parametrize("shape", [(3, 8, 8), (8, 8), (64,)])
def test_other_channels_are_told(shape):
    with pytest.raises(UserError, match=re.escape("Expected inputs of shape (B, 1, 8, 8), found (B, ") + ".*layer 1 "):
        dtp.alignment(dtp.BP(convolutional()), batch(*shape))


def test_any_size_will_do_where_only_the_network_must_take_it(tmp_path):
    for cls in (dtp.BP, dtp.FA):
        rule = cls(pooled(), input_shape=(1, 8, 8))
        trainer(tmp_path).fit(rule, loader(1, 12, 12))
        assert trainer(tmp_path).predict(rule, loader(1, 12, 12))[0].shape == (2, 3)


@pytest.mark.parametrize("cls", [dtp.DTP, dtp.FWDTP, dtp.DFA], ids=lambda cls: cls.__name__)
def test_feedback_is_trained_with_images_of_the_size_that_it_was_made_for(cls, tmp_path):
    rule = cls(pooled(), input_shape=(1, 8, 8))
    sentence = f"for which the feedback of {cls.__name__} was made, found (B, 1, 12, 12); "
    with pytest.raises(UserError, match=re.escape(sentence) + r".*input_shape=\(1, 12, 12\)"):
        trainer(tmp_path).fit(rule, loader(1, 12, 12))
    # Outputs ask no feedback.
    trainer(tmp_path).validate(rule, loader(1, 12, 12), verbose=False)


@pytest.mark.parametrize("cls", [dtp.DFA, dtp.PEPITA, dtp.CCL, dtp.DFC, dtp.StrongDFC], ids=lambda cls: cls.__name__)
def test_images_of_another_size_train_where_the_rule_has_nothing_of_their_shape(cls, tmp_path):
    layers = [nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32, 3)]
    rule = cls(nn.Sequential(*layers), input_shape=(1, 8, 8))
    # The second has as many pixels.
    for shape in ((1, 12, 12), (1, 4, 16)):
        if not cls.made_for_inputs:
            trainer(tmp_path).fit(rule, loader(*shape))
            continue
        with pytest.raises(UserError, match=f"the feedback of {cls.__name__} was made, found .*{shape[-1]}.; bring"):
            trainer(tmp_path).fit(rule, loader(*shape))


RULES = [
    name
    for name, entry in ALGORITHMS.entries.items()
    # Those of a single layer, of inverses and of tied weights take no such network.
    if name not in ("hebb", "delta", "competitive", "gait", "dtp-dae")
]


@pytest.mark.parametrize("name", RULES)
def test_a_flatten_takes_images_and_vectors_alike(name):
    flat = batch(16)
    flat = torch.randn(flat[0].shape, generator=torch.Generator().manual_seed(0)), flat[1]
    found = []
    for x in (flat[0], flat[0].view(4, 1, 4, 4)):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 3))
        rule = ALGORITHMS.entries[name].load()(network)
        rule.taken((x, flat[1]))
        found.append(rule.forward_gradients(x, flat[1])[1])
    for vector, image in zip(*found, strict=True):
        torch.testing.assert_close(vector, image)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
@pytest.mark.parametrize("network", [convolutional, lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3))])
def test_inputs_of_another_type_than_the_weights_are_told(dtype, network):
    found = str(dtype).removeprefix("torch.")
    with pytest.raises(UserError, match=f"Expected inputs in float32, as the weights .* are, found {found}; convert"):
        dtp.alignment(dtp.BP(network()), batch(1, 8, 8, dtype=dtype))
    dtp.alignment(dtp.BP(network(), batch=lambda pair: (pair[0].float(), pair[1])), batch(1, 8, 8, dtype=dtype))


def test_a_module_that_converts_its_inputs_may_do_so():
    class Pixels(nn.Module):
        def forward(self, x):
            return x.float().flatten(1) / 255

    assert dtp.alignment(dtp.BP([nn.Sequential(Pixels(), nn.Linear(64, 3))], input_shape=(64,)), batch(64))
    assert dtp.alignment(
        dtp.BP([nn.Sequential(Pixels(), nn.Linear(64, 3))], input_shape=(64,)), batch(64, dtype=torch.uint8)
    )


def test_autocast_converts_too():
    network = dtp.as_network(convolutional())
    x = torch.zeros(2, 1, 8, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        require_inputs(network, x)
    with pytest.raises(UserError, match="found bfloat16"):
        require_inputs(network, x)


def test_a_network_with_a_forward_pass_of_its_own_takes_what_that_takes():
    class Resized(dtp.MLP):
        def forward(self, x):
            return super().forward(nn.functional.adaptive_avg_pool2d(x, 8))

    require_inputs(Resized(dtp.MLP.Options(), (1, 8, 8), 3), torch.zeros(2, 1, 16, 16))


@pytest.mark.parametrize("given", [32, "3x32x32", (1, -1, 8), (1, 8.0, 8)])
def test_an_input_shape_that_is_none_is_told(given):
    with pytest.raises(UserError, match="input_shape: expected the shape of one sample, such as"):
        dtp.as_network(convolutional(), input_shape=given)


def test_a_network_that_is_made_has_its_shape():
    network = dtp.as_network(convolutional())
    assert dtp.as_network(network, (1, 8, 8)) is network
    with pytest.raises(UserError, match=r"expected \(1, 8, 8\), for which this CutNetwork was made, found \(1, 9, 9\)"):
        dtp.BP(network, input_shape=(1, 9, 9))
