"""Every shipped preset is a configuration that trains, and its published values reach the optimizers."""

import dataclasses
import re
from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch

from dtp.algorithms import ALGORITHMS
from dtp.cli.arguments import parse
from dtp.cli.config import PRESETS, SHARED, find_preset, preset_names, read_yaml
from dtp.data import DATA
from dtp.models import MODELS
from dtp.tasks import TASKS, Classification

SHAPES = {
    "digits": ((1, 8, 8), 10),
    "mnist": ((1, 28, 28), 10),
    "fashion-mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
    "imagenet32": ((3, 32, 32), 1000),
    "imagefolder": ((3, 224, 224), 1000),
}
TRAINING_IMAGES = {"digits": 1437, "mnist": 60000, "fashion-mnist": 60000, "cifar10": 50000, "cifar100": 50000}
NAMES = preset_names()


def parsed(preset):
    return deepcopy(first_parsed(preset))


@cache
def first_parsed(preset):
    return parse(["--config", preset])


def origin_of(preset):
    found = find_preset(preset)
    assert found is not None
    return found.origin


class Noise:
    """Random images of the number and shape of a dataset's, of which few differ."""

    def __init__(self, number, shape):
        self.few = np.random.default_rng(0).integers(0, 256, (64, *shape), dtype=np.uint8)
        self.shape, self.dtype = (number, *shape), np.dtype(np.uint8)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        return self.few[np.asarray(rows) % 64]


def build(preset):
    """The rule of a preset, and a batch of 4 as its data options make them.

    The giants are smaller: at most 2 feedback iterations and 256 units in the layers of mlp, 20 steps of a simulation,
    an eighth of the channels of convolutions and locally connected layers, and for ImageNet an eighth of the side of
    the images, without files.
    """
    config = parsed(preset)
    (shape, classes), model, options = SHAPES[config.run.data], config.model, config.algo
    if hasattr(model, "channels"):
        model = dataclasses.replace(model, channels=[max(1, channels // 8) for channels in model.channels])
    elif config.run.model == "mlp":
        model = dataclasses.replace(model, widths=[min(256, width) for width in model.widths])
    if hasattr(options, "feedback_iterations"):
        options = dataclasses.replace(options, feedback_iterations=[min(2, k) for k in options.feedback_iterations])
    steps = {name: 20 for name in ("time_steps", "feedback_time_steps") if getattr(options, name, 0) > 20}
    options = dataclasses.replace(options, **steps)
    if hasattr(options, "skip_unsettled"):
        # Under control through fresh feedback, few images settle in the time that they are given.
        options = dataclasses.replace(options, skip_unsettled=False)
    if config.run.data in TRAINING_IMAGES:
        data = DATA.resolve(config.run.data).load()(dataclasses.replace(config.data, batch_size=4))
        number = TRAINING_IMAGES[config.run.data]
        data.load_train = data.load_test = lambda: (Noise(number, shape), np.arange(number) % classes)
        data.setup()
        x, y = next(iter(data.train_dataloader()))
        task = TASKS[config.run.task].of_data(data, config.run.clusters)
    else:
        shape = (3, 28, 28) if config.run.data == "imagefolder" else shape
        x, y = torch.randn(4, *shape), torch.randint(classes, (4,))
        task = Classification(classes)
    network = MODELS.resolve(config.run.model).load().for_task(model, shape, task)
    rule = ALGORITHMS.resolve(config.run.algo).load()(network, options, seed=0)
    if config.run.precision == "64":
        rule, x = rule.double(), x.double()
    rule.configure_optimizers()
    return rule, (x, task.goal(x, y))


@pytest.mark.parametrize("preset", NAMES)
def test_it_says_where_its_values_come_from(preset):
    origin = origin_of(preset)
    years = any(f" {year}" in origin for year in range(2010, 2025))
    assert len(origin) > 30 and ("Ours" in origin or "authors" in origin or years)


@pytest.mark.parametrize("preset", [name for name in NAMES if name.count("_") > 2])
def test_a_variant_does_not_depend_on_the_plain_preset(preset, monkeypatch):
    """Which would be read first, and could leave values of its own."""
    with_plain = first_parsed(preset).as_dict()
    monkeypatch.setattr("dtp.cli.arguments.preset_of", lambda **names: None)
    assert parse(["--config", preset]).as_dict() == with_plain


def test_the_name_of_a_preset_chooses_rule_network_and_data():
    config = parse(["--config", "sdtp_lc_mnist_bartunov-parallel"])
    assert (config.run.algo, config.run.model, config.run.data) == ("sdtp", "lc", "mnist")
    assert parse(["--config", "sdtp_lc_mnist_bartunov-parallel", "--data", "kmnist"]).run.data == "kmnist"


@pytest.mark.parametrize("data", ["digits", "mnist"])
def test_every_rule_has_a_preset_that_trains_in_minutes(data):
    """``gait`` and ``dtp-dae`` have it for the network that they need, all others for mlp."""
    usual = [[model, data] for model in ("mlp", "square", "tied-autoencoder")]
    having = {name.split("_")[0] for name in NAMES if name.split("_")[1:] in usual}
    lacking = set(ALGORITHMS.names()) - having
    assert not lacking, f"{lacking}: give preset={{...}} where registered, or write a file for {data}"


@pytest.mark.parametrize("data", ["digits", "mnist"])
def test_a_rule_without_a_file_has_what_all_share_and_what_it_is_registered_with(data, tmp_path, monkeypatch):
    """The rules that have such presets, and one that is registered here; a file of its own beats them."""
    made = [name for name in NAMES if not (PRESETS / f"{name}.yaml").exists()]
    assert {"drl", "sdtp"} <= {name.split("_")[0] for name in made if name.endswith(f"_mlp_{data}")}
    shared, bp = read_yaml(SHARED / f"mlp_{data}.yaml"), ALGORITHMS.entries["bp"]
    own = {"lr": 0.5, "max_epochs": 7, "activation": "relu"}
    monkeypatch.setitem(ALGORITHMS.entries, "own", dataclasses.replace(bp, name="own", preset=own))
    monkeypatch.setitem(ALGORITHMS.entries, "none", dataclasses.replace(bp, name="none"))
    name = f"own_mlp_{data}"
    assert name in preset_names() and f"none_mlp_{data}" not in preset_names()
    for words in (["--config", name], ["--algo", "own", "--model", "mlp", "--data", data]):
        values = parse(words).as_dict()
        assert {key: values[key] for key in (*shared, *own)} == shared | own
        assert (values["algo"], values["model"], values["data"]) == ("own", "mlp", data)
    (tmp_path / f"{name}.yaml").write_text("# Ours.\nlr: 0.25\n")
    monkeypatch.setattr("dtp.cli.config.PRESETS", tmp_path)
    config = parse(["--config", name])
    assert config.algo.lr == 0.25 and config.run.max_epochs == 20


@pytest.mark.parametrize("preset", NAMES)
def test_it_trains_one_batch(preset, monkeypatch):
    rule, (x, y) = build(preset)
    monkeypatch.setattr(type(rule), "current_epoch", 0)
    before = {name: value.clone() for name, value in rule.state_dict().items()}
    logits, scalars = rule.training_batch(x, y)
    # An epoch that trains the feedback weights alone may come first.
    _, gradients = rule.forward_gradients(x, y)
    assert logits.shape == (4, rule.network.num_classes)
    assert all(torch.isfinite(t).all() for t in [logits, *gradients, *scalars.values(), *rule.state_dict().values()])
    assert any(gradient.abs().sum() > 0 for gradient in gradients)
    assert any(not torch.equal(before[name], value) for name, value in rule.state_dict().items())


ADAM = {
    # Bartunov et al. 2018: lr, betas, epsilon of the forward and of the inverse weights.
    "vanilla-dtp_mlp_mnist_bartunov-parallel": ((7.57e-4, (0.99, 0.95), 1e-3), (7.68e-4, (0.99, 0.99), 1e-4)),
    "sdtp_mlp_mnist_bartunov-alternating": ((3.01e-4, (0.9, 0.95), 1e-4), (9.572e-3, (0.9, 0.95), 1e-3)),
    "vanilla-dtp_mlp_cifar10": ((1.3e-5, (0.9, 0.999), 1e-8), (1.14e-4, (0.9, 0.99), 1e-4)),
    "sdtp_lc_cifar10": ((1.09e-4, (0.9, 0.99), 1e-4), (1.1e-5, (0.9, 0.99), 1e-8)),
    "fa_lc_mnist": ((2.19e-4, (0.9, 0.999), 1e-6), None),
    "vanilla-dtp_lc_imagefolder_imagenet-parallel": ((2.17e-4, (0.9, 0.99), 1e-6), (2.34e-4, (0.9, 0.999), 1e-6)),
    # Meulemans et al. 2020: the forward rate is divided by the step.
    "drl_mlp_mnist_meulemans": (
        (2.968902530985572e-05 / 0.06858850589618244, (0.9, 0.99), 1.001084429920261e-08),
        (2.0123315498373473e-05, (0.99, 0.999), 5.0844503288987736e-08),
    ),
    "ddtp-rhl_mlp_cifar10": (
        (2.2591298843888373e-06 / 0.016184143061123493, (0.9, 0.999), 7.219082567713133e-08),
        (0.0009097783536288601, (0.99, 0.9), 2.050381900135163e-05),
    ),
    # Meulemans et al. 2022: the commands of the authors' list of experiments.
    "dfc_mlp_mnist_meulemans-2022": (
        (0.0010924329072635147, (0.9, 0.99), 5.83238643406511e-07),
        (4.348352883654314e-05, (0.99, 0.99), 3.355535527361205e-05),
    ),
    "strong-dfc_mlp_mnist_meulemans-single": (
        (0.0003095880739373081, (0.9, 0.99), 1.6288767089312233e-05),
        (2.0091405897656825e-08, (0.99, 0.999), 1.1023320392297719e-11),
    ),
    "strong-dfc_mlp_mnist_meulemans": (
        (0.0006560184719951886, (0.9, 0.99), 0.00023225688276019436),
        (9.776610079269425e-06, (0.999, 0.9), 0.0019707791920650247),
    ),
    "strong-dfc_mlp_fashion-mnist": (
        (0.0009531990715839369, (0.99, 0.999), 9.710433697812103e-08),
        (2.286529865070366e-08, (0.99, 0.999), 1.8382415746971348e-11),
    ),
    "dfc_mlp_fashion-mnist_meulemans-2022": (
        (0.0010672718162774038, (0.99, 0.999), 3.210886729268312e-07),
        (4.3780877225194805e-05, (0.99, 0.99), 1.0433715362737473e-08),
    ),
    "strong-dfc_mlp_fashion-mnist_meulemans": (
        (0.0011969828175078612, (0.9, 0.9), 2.9646405819945323e-07),
        (1.587623302238223e-05, (0.99, 0.999), 8.46521372179368e-08),
    ),
}


@pytest.mark.parametrize("preset", ADAM)
def test_published_adam_values_reach_both_optimizers(preset):
    rule, _ = build(preset)
    optimizers = [rule.forward_optimizer, *getattr(rule, "feedback_optimizers", {}).values()]
    published = [ADAM[preset][0], *[ADAM[preset][1]] * (len(optimizers) - 1)]
    assert len(optimizers) > 1 or ADAM[preset][1] is None
    # Those of control are rounded.
    near = 2e-3 if "dfc" in preset else 1e-6
    for optimizer, (lr, betas, eps) in zip(optimizers, published, strict=True):
        (group,) = optimizer.param_groups
        assert type(optimizer) is torch.optim.Adam and group["betas"] == betas
        assert (group["lr"], group["eps"]) == (pytest.approx(lr, rel=near), pytest.approx(eps, rel=near))


# The authors' alpha, k_p, dt, time constant and apical time constant of the simulations that train the feedback.
CONTROL = {
    "dfc_mlp_mnist_meulemans-2022": (
        (0.39857902933813705, 0.0713515876863314, 0.0011421804343878519, 0.005870467170683501, 0.1404664564483908)
    ),
    "dfc_mlp_fashion-mnist_meulemans-2022": (
        (0.611510021981854, 0.010409666247193437, 0.004294669581123954, 0.009266592158186437, 0.4318893018524684)
    ),
    "strong-dfc_mlp_fashion-mnist_meulemans": (
        (0.41918471180494776, 0.09906907227394046, 0.0019841648377832226, 0.009034403214049455, 0.22603240790914256)
    ),
}


@pytest.mark.parametrize("preset", CONTROL)
def test_controls_that_train_the_feedback_are_the_published_ones_in_five_digits(preset):
    o = parsed(preset).algo
    found = (
        o.feedback_alpha,
        o.feedback_proportional,
        o.feedback_time_step,
        o.feedback_voltage_time,
        o.feedback_apical_time,
    )
    assert found == tuple(float(f"{value:.5g}") for value in CONTROL[preset])


@pytest.mark.parametrize("preset", [name for name in NAMES if origin_of(name).startswith("Meulemans")])
def test_meulemans_et_al_hold_out_five_thousand_images_in_every_run(preset):
    """Those for the training loss too: no configuration of theirs sets the flag that leaves the images in."""
    assert parsed(preset).data.val_size == 5000


@pytest.mark.parametrize("preset", [name for name in NAMES if " x (1 + " in origin_of(name)])
def test_epochs_that_train_one_kind_of_weights_are_as_many_as_the_preset_says(preset):
    """In the code of 2021 one epoch of the feedback comes before each of the forward weights, and extra ones behind."""
    config = parsed(preset)
    warm, forward, feedback = map(int, re.search(r"(\d+) \+ (\d+) x \(1 \+ (\d)\)", origin_of(preset)).groups())
    assert config.run.max_epochs == warm + forward * (1 + feedback)
    assert config.algo.feedback_warmup_epochs == warm
    assert feedback == (config.algo.extra_feedback_epochs or 1)
    if "2021" in origin_of(preset):
        assert feedback == 3


@pytest.mark.parametrize(
    "preset", [name for name in NAMES if re.match(".*Meulemans et al. 2022, .*DFC", origin_of(name))]
)
def test_controllers_of_2022_are_proactive_in_both_phases(preset):
    """One flag of the authors' code, given in each of their commands, holds for both."""
    rule, _ = build(preset)
    assert rule.controller.proactive and rule.feedback_controller.proactive


def test_rates_and_epsilons_of_single_layers_reach_their_groups():
    groups = build("ddtp-linear_lenet_cifar10")[0].forward_optimizer.param_groups
    rates = [0.00025935571806476586, 0.000885500279951265, 0.0001423047695105589, 3.3871035558126015e-06]
    epsilons = [2.7867895625009e-08, 1.9868935703787622e-08, 4.515242618159344e-06, 4.046144976139705e-05]
    # The authors' convolutional layers learn the mean over elements, ours the sum.
    elements = [32 * 16 * 16, 64 * 8 * 8, 1, 1]
    epsilons = [epsilon * n for epsilon, n in zip(epsilons, elements, strict=True)]
    assert [g["lr"] for g in groups] == [pytest.approx(rate / 0.015962099947441903, rel=1e-6) for rate in rates]
    assert [g["eps"] for g in groups] == [pytest.approx(epsilon, rel=1e-6) for epsilon in epsilons]


@pytest.mark.parametrize("preset", [name for name in NAMES if "feedback_init" in find_preset(name).values])
def test_first_feedback_weights_are_drawn_as_the_first_forward_weights_of_the_paper(preset):
    """The papers name one distribution for both."""
    config = parsed(preset)
    if config.algo.feedback_init not in ("random", "symmetric"):
        assert config.algo.feedback_init == config.model.init


@pytest.mark.parametrize("preset", [name for name in NAMES if "Their step" in origin_of(name)])
def test_steps_on_mean_losses_are_converted_as_the_preset_says(preset):
    """beta is the step of the authors' code over the batch, and their rate over the step, in Meulemans' presets."""
    config, origin = parsed(preset), origin_of(preset)
    step = float(re.search(r"Their step (\S+) is on the mean loss", origin)[1])
    assert config.algo.beta == pytest.approx(step / config.data.batch_size, rel=1e-5)
    rates = re.search(r"Their lr (.*) is divided by the step", origin)
    if config.run.algo != "dfa":
        used = config.algo.layer_lr or [config.algo.lr]
        assert used == [pytest.approx(float(rate) / step, rel=1e-4) for rate in rates[1].split(", ")]


@pytest.mark.parametrize("data, lr", [("mnist", 2.6298517958226435e-07), ("fashion-mnist", 7.67552163131779e-06)])
def test_direct_feedback_alignment_of_2021_has_the_small_step_that_its_epsilon_is_for(data, lr):
    """The authors' gradients are a thousandth of those with a step of 1, their epsilon of Adam is not."""
    config = parsed(f"dfa_mlp_{data}_meulemans-2021")
    assert config.algo.beta == pytest.approx(0.001 / config.data.batch_size)
    assert config.algo.lr == pytest.approx(lr / 0.001, rel=1e-3)


def test_epsilon_and_decay_of_the_control_are_rescaled_where_the_authors_loss_was_another():
    """Their values for CIFAR-10 are for a loss divided by noise^2, that of ddtp-linear; others for the control's."""
    config = parsed("ddtp-control_mlp_cifar10").algo
    factor = 0.28961379819488814**2
    assert config.feedback_eps == pytest.approx(1.0273080761864791e-08 * factor, rel=1e-5)
    assert config.feedback_weight_decay == pytest.approx(3.293384717134203e-05 * factor, rel=1e-5)
    assert parsed("ddtp-control_mlp_mnist_meulemans").algo.feedback_eps == pytest.approx(1.229758e-8, rel=1e-5)


@pytest.mark.parametrize("preset", [n for n in NAMES if "_mlp_" in n and "Meulemans" in origin_of(n)])
def test_mlps_of_meulemans_lack_the_last_hidden_bias_in_ddtp_linear_and_dfa_of_2020_alone(preset):
    rule, _ = build(preset)
    biased = [any(name.endswith("bias") for name, _ in layer.named_parameters()) for layer in rule.network]
    lacks = preset.split("_")[0] in ("ddtp-linear", "dfa") and "Meulemans et al. 2020" in origin_of(preset)
    missing = rule.network.depth - 1 if lacks else None
    assert [n for n, has in enumerate(biased, 1) if not has] == ([] if missing is None else [missing])


@pytest.mark.parametrize("data", ["cifar10", "mnist", "fashion-mnist"])
def test_lenets_of_ernoult_have_the_noise_to_the_last_digit_and_write_maxima_back(data):
    sampled, expected = parsed(f"dtp_lenet_{data}").algo, parsed(f"dtp_lenet_{data}_expected").algo
    for options in (sampled, expected):
        assert options.noise == [0.41640228838517584, 0.3826261146623929, 0.1395382069358601]
        assert options.feedback_iterations == [41, 51, 24]
    assert (sampled.routing, sampled.unpool) == ("noisy", "write")
    # In expectation the rule is the theory's, whose pooling has its adjoint.
    assert (expected.routing, expected.unpool) == ("fixed", "add")


def test_gait_has_the_values_of_the_code_of_dalm_et_al():
    config = parsed("gait_square_cifar10_dalm-code")
    a, B = config.algo, config.data.batch_size
    assert (config.model.widths, config.model.outputs, config.model.linear_output) == ([1024] * 6, 1024, True)
    assert (a.lr, a.momentum, a.beta2, a.loss, config.run.max_epochs, B) == (
        1.9e-5, 0.9, 0.999, "cross-entropy", 200, 256,
    )  # fmt: skip
    assert (a.eps, a.orthogonality, a.orthogonality_form) == ([1e-6 / B], 100 / B, "identity")
    assert a.gait_step == pytest.approx(1e-7 * 1024**0.5)


# Normalisation, and whether training images are cropped and mirrored, with what beside them, in the data loaders of Kao
# and Hariharan 2024.
PREPARED = {
    **dict.fromkeys(["ccl_mlp_cifar10", "ccl_mlp_cifar10_frozen", "ccl_mlp_cifar100"], ("standard", None)),
    **dict.fromkeys(["ccl_mlp_mnist_kao", "ccl_mlp_mnist_frozen", "ccl_mlp_fashion-mnist"], ("standard", None)),
    **dict.fromkeys(["ccl_convnet_mnist", "ccl_convnet_fashion-mnist"], ("unit", "zeros")),
    **dict.fromkeys(["ccl_vgg_cifar10", "ccl_vgg_cifar100"], ("standard", "edge")),
}


@pytest.mark.parametrize("preset", PREPARED)
def test_images_of_counter_current_learning_are_prepared_as_in_the_authors_code(preset):
    """All images are one, bright everywhere and brighter to the right and below, so that each place shows."""
    config, (normalisation, beside) = parsed(preset), PREPARED[preset]
    (channels, height, width), classes = SHAPES[config.run.data]
    image = np.broadcast_to(50 + np.add.outer(np.arange(height), 2 * np.arange(width)), (channels, height, width))
    number = TRAINING_IMAGES[config.run.data]
    images = np.broadcast_to(image.astype(np.uint8), (number, channels, height, width))
    data = DATA.resolve(config.run.data).load()(dataclasses.replace(config.data, batch_size=2000))
    data.load_train = data.load_test = lambda: (images, np.arange(number) % classes)
    data.setup()
    seen = next(iter(data.train_dataloader()))[0].unique(dim=0)
    # Mirrored or not, at nine places in each direction.
    assert config.data.normalisation == normalisation and len(seen) == (2 * 9 * 9 if beside else 1)
    if beside:
        (clean,) = next(iter(data.val_dataloader()))[0].unique(dim=0)
        assert (seen.min() < clean.min()) == (beside == "zeros")


# Epsilon and decay of the feedback, and units of each layer, in the authors' code of Meulemans et al. 2020.
RECONSTRUCTION = {
    "vanilla-dtp_mlp_mnist_meulemans": (7.541132645747324e-06, 0.0, 256),
    "vanilla-dtp_mlp_mnist_meulemans-pretrained": (4.3671895272055226e-07, 0.002191969471427704, 256),
    "vanilla-dtp_mlp_fashion-mnist": (1.3606678094184999e-06, 0.0, 256),
    "vanilla-dtp_mlp_fashion-mnist_meulemans-pretrained": (2.4338150947778934e-08, 0.00043410554677483223, 256),
    "vanilla-dtp_mlp_cifar10_meulemans": (9.920952029859722e-05, 0.0, 1024),
    "vanilla-dtp_mlp_cifar10_meulemans-pretrained": (7.170375472668493e-07, 1.1898846056896954e-05, 1024),
}


@pytest.mark.parametrize("preset", RECONSTRUCTION)
def test_epsilon_and_decay_are_rescaled_with_the_reconstruction_loss(preset):
    """Theirs is a mean over units, divided by noise^2. Adam's steps on a loss that is c times another are the same if
    epsilon and decay are c times the other's."""
    (eps, decay, width), config = RECONSTRUCTION[preset], parsed(preset)
    factor = config.algo.noise[0] ** 2 * width
    assert set(config.model.widths) == {width}
    assert config.algo.feedback_eps == pytest.approx(eps * factor, rel=1e-5)
    assert config.algo.feedback_weight_decay == pytest.approx(decay * factor, rel=1e-5)


def test_lees_preset_is_the_code_of_his_paper():
    rule, _ = build("vanilla-dtp_mlp_mnist_lee")
    optimizers = [rule.forward_optimizer, *rule.feedback_optimizers.values()]
    assert [type(optimizer).__name__ for optimizer in optimizers] == ["LeeRMSprop"] * 7
    # One-layer backprop makes the first target: the output layer has no feedback.
    assert rule.feedback.numbers == [2, 3, 4, 5, 6, 7]
    # The gradient of the authors' first target is that of the mean loss over their batch of 100.
    assert rule.options.beta == pytest.approx(0.327736332653 / parsed("vanilla-dtp_mlp_mnist_lee").data.batch_size)
    for n in range(1, 8):
        weight = rule.network[n][-2].weight if n > 1 else rule.network[n][1].weight
        gram = weight @ weight.t()
        assert torch.allclose(gram, torch.eye(len(gram)), atol=1e-5)


@pytest.mark.parametrize(
    "preset, weights",
    [("bp_lc_cifar10", 1_228_800 + 13_107_200 + 18_874_368), ("bp_lc_imagefolder_imagenet", 240_694_272)],
)
def test_locally_connected_networks_have_the_published_size(preset, weights):
    """On the meta device: ImageNet's weights alone take a gigabyte."""
    config = parsed(preset)
    with torch.device("meta"):
        network = MODELS.resolve("lc").load()(
            dataclasses.replace(config.model, init="default"), *SHAPES[config.run.data]
        )
    assert sum(p.numel() for p in network.parameters() if p.dim() == 3) == weights
