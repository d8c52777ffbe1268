"""Deep feedback control: its dynamics, its steady state, what is learned from them, and how the feedback learns."""

import copy
import json
import math

import pytest
import torch
from torch import nn

from dtp.algorithms.dfc import DFC, DFCSS, DFCSSA, StrongDFC
from dtp.algorithms.feedback_control import Moment
from dtp.algorithms.local_targets import Activations
from dtp.algorithms.options import DFCOptions, DFCSSAOptions, DFCSSOptions, StrongDFCOptions
from dtp.cli.train import main
from dtp.distributed.division import ByLayers
from dtp.errors import UserError
from dtp.models.network import initialise
from tests.algorithms.helpers import angle, changed, of_network, relative, state
from tests.algorithms.networks import Layers, linear_network, shipped_network, tanh_network
from tests.conftest import make_batch

OPTIONS = {DFC: DFCOptions, DFCSS: DFCSSOptions, DFCSSA: DFCSSAOptions, StrongDFC: StrongDFCOptions}
ALPHA, GAIN = 0.05, 2.0
# Published for MNIST (Meulemans et al. 2021), in which the feedback weights learn.
PUBLISHED = {
    "noise": [1.5242e-3],
    "feedback_alpha": 0.61336,
    "feedback_proportional": 0.15654,
    "feedback_time_step": 0.0020299,
    "feedback_time_steps": 48,
    "feedback_voltage_time": 0.0063025,
    "feedback_apical_time": 0.32469,
}


def glorot(network):
    for layer in network:
        initialise(layer, "xavier-normal")
    return network


@pytest.fixture
def tanh():
    torch.manual_seed(0)
    return glorot(tanh_network(20, 15, 15, 5))


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return glorot(linear_network(20, 15, 15, 5))


def make(kind, network, seed=0, **options):
    rule = kind(network, OPTIONS[kind](**options), seed=seed)
    rule.configure_optimizers()
    return rule


def batch(network, size=8):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, *network.input_shape, generator=generator).to(next(network.parameters()))
    return x, torch.randint(network.num_classes, (size,), generator=generator)


def matrices(rule):
    """W_n, b_n, Q_n of fully connected layers, from n = 1."""
    layers = [next(m for m in layer.modules() if isinstance(m, nn.Linear)) for layer in rule.network]
    weights = [layer.weight.detach() for layer in layers]
    biases = [layer.bias.detach() for layer in layers]
    return weights, biases, [rule.feedback[n].linear.weight.detach() for n in rule.feedback.numbers]


def functions(rule):
    return [torch.tanh if len(layer) > 1 and isinstance(layer[-1], nn.Tanh) else lambda v: v for layer in rule.network]


def literal(rule, x, error, c, leak="total", noise=None):
    """The dynamics for one image x (d,), written out: lists over time of u, v, v_ff, v_fb and r, with the start."""
    W, b, Q = matrices(rule)
    f, N = functions(rule), len(W)
    r = [x]
    v = []
    for n in range(N):
        v.append(W[n] @ r[-1] + b[n])
        r.append(f[n](v[n]))
    v_ff, v_fb = list(v), [torch.zeros_like(w) for w in v]
    u = u_int = torch.zeros(len(r[-1]), dtype=x.dtype)
    history = [(u, list(v), list(v_ff), list(v_fb), list(r))]
    tau_a = c.apical_time or c.time_step
    for t in range(c.steps - 1):
        e = error(r[-1])
        u_int = u_int + c.time_step * (e - c.alpha * (u if leak == "total" else u_int))
        u_new = u_int + c.proportional * e
        for n in range(N):
            v_ff[n] = W[n] @ r[n] + b[n]
            v_fb[n] = v_fb[n] + c.time_step / tau_a * (-v_fb[n] + Q[n] @ (u_new if c.proactive else u))
            if noise is not None:
                v_fb[n] = v_fb[n] + noise[t][n]
            v[n] = v[n] + c.time_step / c.voltage_time * (v_fb[n] + v_ff[n] - v[n])
            r[n + 1] = f[n](v[n])
        u = u_new
        history.append((u, list(v), list(v_ff), list(v_fb), list(r)))
    return history


def controlled_jacobian(rule, x):
    """J = d r_N^- / d (v_1 .. v_N), (K, sum of d_n), of one image (d,), by differences of what is added to all v."""
    W, b, Q = matrices(rule)
    f, sizes = functions(rule), [len(w) for w in W]

    def output(shift):
        r = x
        for n, part in enumerate(shift.split(sizes)):
            r = f[n](W[n] @ r + b[n] + part)
        return r

    return torch.autograd.functional.jacobian(output, torch.zeros(sum(sizes), dtype=x.dtype))


def output_target(rule, x, y):
    """r*, (B, K): a step of beta on each image's own loss."""
    output = rule(x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(output, y, reduction="sum"), output)
    return (output - rule.options.beta * gradient).detach()


def set_feedback(rule, Q):
    with torch.no_grad():
        for n, part in zip(rule.feedback.numbers, Q.split([len(w) for w in matrices(rule)[2]]), strict=True):
            rule.feedback[n].linear.weight.copy_(part)


# --- dynamics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proactive", [False, True])
@pytest.mark.parametrize("leak", ["total", "integral"])
def test_dfc_learns_the_mean_over_time_of_the_dynamics_as_they_are_written(tanh, leak, proactive):
    rule = make(DFC, tanh, leak=leak, proactive=proactive, time_steps=25, alpha=ALPHA)
    x, y = batch(tanh, 3)
    found = rule.forward_gradients(x, y)[1]
    goals, f, expected = output_target(rule, x, y), functions(rule), [torch.zeros_like(p) for p in found]
    for image, goal in zip(x.flatten(1), goals, strict=True):
        history = literal(rule, image, lambda r, goal=goal: goal - r, rule.controller, leak)
        for _, v, v_ff, _, r in history:
            for n in range(3):
                teaching = 2 * (f[n](v[n]) - f[n](v_ff[n])) / (len(history) * len(x))
                expected[2 * n] -= torch.outer(teaching, r[n])
                expected[2 * n + 1] -= teaching
    for a, b in zip(found, expected, strict=True):
        assert relative(a, b) < 1e-10


@pytest.mark.parametrize("leak, effective", [("total", ALPHA), ("integral", ALPHA / (1 + ALPHA * GAIN))])
def test_a_linear_network_comes_to_rest_at_the_solution_of_the_linear_system(linear, leak, effective):
    options = {"feedback_init": "symmetric", "alpha": ALPHA, "proportional": GAIN}
    rule = make(DFCSS, linear, leak=leak, steady_state="dynamics", time_steps=3000, **options)
    x, y = batch(linear, 2)
    a = rule.activations(x, gradients=False)
    u = rule.targets(a, y).u
    for image, goal, found in zip(x.flatten(1), output_target(rule, x, y), u, strict=True):
        J, Q = controlled_jacobian(rule, image), torch.cat(matrices(rule)[2])
        delta = goal - rule(image.view(1, *linear.input_shape))[0].detach()
        assert relative(found, torch.linalg.solve(J @ Q + effective * torch.eye(5, dtype=torch.float64), delta)) < 1e-6


def test_away_from_linear_networks_the_solution_is_of_first_order_in_the_step(tanh):
    x, y = batch(tanh)
    errors = []
    for beta in (0.1, 0.01, 0.001):
        options = {"feedback_init": "symmetric", "alpha": ALPHA, "beta": beta}
        exact = make(DFCSS, tanh, settling_tolerance=0, **options)
        linearised = make(DFCSSA, tanh, **options)
        a = exact.activations(x, gradients=False)
        # The pass under the linearised control differs from the root by its residual.
        errors.append(relative(linearised.targets(a, y).u, exact.targets(a, y).u))
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.2)


# --- at rest ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leak", ["total", "integral"])
def test_iterations_and_dynamics_come_to_the_same_rest(tanh, leak):
    options = {"feedback_init": "symmetric", "alpha": 1.389e-3, "beta": 0.0779 / 128, "leak": leak}
    simulated = make(DFCSS, tanh, steady_state="dynamics", time_steps=3000, **options)
    iterated = make(DFCSS, tanh, settling_steps=3, settling_tolerance=0, **options)
    x, y = batch(tanh)
    a = simulated.activations(x, gradients=False)
    slow, fast = simulated.targets(a, y), iterated.targets(a, y)
    assert relative(fast.u, slow.u) < 1e-8
    assert max(fast.residual.max(), slow.residual.max()) < 1e-10
    for p, q in zip(simulated.forward_gradients(x, y)[1], iterated.forward_gradients(x, y)[1], strict=True):
        assert relative(p, q) < 1e-7


def test_the_linearised_state_is_the_solution_with_the_jacobian_of_the_forward_pass(tanh):
    rule = make(DFCSSA, tanh, alpha=0.1)
    x, y = batch(tanh, 4)
    found = rule.targets(rule.activations(x, gradients=False), y)
    W, b, Q = matrices(rule)
    eigenvalues = 0
    for i, goal in enumerate(output_target(rule, x, y)):
        image = x[i].flatten()
        J = controlled_jacobian(rule, image)
        eigenvalues = eigenvalues + J @ torch.cat(Q) / 4
        delta = goal - rule(x[i : i + 1])[0].detach()
        u = torch.linalg.solve(J @ torch.cat(Q) + 0.1 * torch.eye(5, dtype=torch.float64), delta)
        assert relative(found.u[i], u) < 1e-10
        r = image
        for n in range(3):
            drive = W[n] @ r + b[n]
            r = functions(rule)[n](drive + Q[n] @ u)
            assert relative(found[n + 1][i], r) < 1e-10
            assert relative(found.teaching[n + 1][i], r - functions(rule)[n](drive)) < 1e-8
    assert float(found.eigenvalue) == pytest.approx(float(torch.linalg.eigvals(eigenvalues).real.min()))


@pytest.mark.parametrize("alpha", [1.0, 1e-3, 7.6e-6])
def test_strong_control_is_found_by_damped_iterations(tanh, alpha):
    rule = make(StrongDFC, tanh, alpha=alpha, feedback_init="symmetric", settling_tolerance=1e-12)
    x, y = batch(tanh, 32)
    found = rule.targets(rule.activations(x, gradients=False), y)
    wanted = torch.full((32, 5), 0.01 / 4, dtype=torch.float64).scatter_(1, y[:, None], 0.99)
    assert (found[3].softmax(1) + alpha * found.u - wanted).norm(dim=1).max() < 1e-10
    assert found.settled.all() == (alpha < 0.1)


def test_strong_control_at_rest_is_the_end_of_its_dynamics(tanh):
    options = {"alpha": 0.1, "feedback_init": "symmetric"}
    fast = make(StrongDFC, tanh, settling_tolerance=0, **options)
    slow = make(StrongDFC, tanh, steady_state="dynamics", time_steps=3000, time_step=0.05, proportional=0.0, **options)
    x, y = batch(tanh, 4)
    a = fast.activations(x, gradients=False)
    assert relative(fast.targets(a, y).u, slow.targets(a, y).u) < 1e-8


@pytest.mark.parametrize(
    "kind, options",
    [
        (DFCSSA, {"alpha": 1e4}),
        (DFCSS, {"alpha": 1e4, "proportional": 5e-5}),
        # The leak of the integral part alone is as strong as half as much of the whole: 2e4 / (1 + 2e4 * 5e-5).
        (DFCSS, {"alpha": 2e4, "proportional": 5e-5, "leak": "integral"}),
    ],
)
def test_weak_control_through_transposed_jacobians_is_backprop(kind, options, tanh):
    x, y = batch(tanh, 1)
    rule = make(kind, tanh, **options)
    J = controlled_jacobian(rule, x.flatten())
    set_feedback(rule, J.t())
    found = rule.targets(rule.activations(x, gradients=False), y)
    error = J.t() @ (output_target(rule, x, y)[0] - rule(x)[0].detach())
    for n, part in enumerate(error.split([15, 15, 5]), 1):
        # The voltage difference is all that the control adds.
        assert nn.functional.cosine_similarity(rule.feedback[n](found.u)[0], part, dim=0) > 0.99999
    assert (
        relative(rule.gradient_scale(1) / rule.options.beta * error, 2 * torch.cat(matrices(rule)[2]) @ found.u[0])
        < 1e-3
    )


def test_strong_gain_through_any_map_of_the_jacobians_rows_is_the_pseudo_inverse(tanh):
    x, y = batch(tanh, 1)
    rule = make(DFCSSA, tanh, alpha=1e-9)
    J, A = controlled_jacobian(rule, x.flatten()), torch.randn(5, 5, dtype=torch.float64)
    set_feedback(rule, J.t() @ (A @ A.t() + torch.eye(5)))
    found = rule.targets(rule.activations(x, gradients=False), y)
    moved, delta = torch.cat(matrices(rule)[2]) @ found.u[0], output_target(rule, x, y)[0] - rule(x)[0].detach()
    assert relative(moved, torch.linalg.pinv(J) @ delta) < 1e-7
    # Over all layers together the change reaches the target, once.
    assert relative(J @ moved, delta) < 1e-6


@pytest.mark.parametrize("kind", [DFCSS, StrongDFC])
def test_an_image_settles_alike_alone_and_in_a_batch(kind, tanh):
    x, y = batch(tanh, 16)
    rule = make(kind, tanh, feedback_init="symmetric", settling_tolerance=1e-2, settling_steps=10)

    def control(rows):
        return rule.targets(rule.activations(x[rows], gradients=False), y[rows]).u

    alone = torch.cat([control(slice(i, i + 1)) for i in range(len(x))])
    torch.testing.assert_close(control(slice(None)), alone, rtol=0, atol=1e-12)


def test_the_linearised_solution_is_taken_however_small_the_error_is(tanh):
    x, y = batch(tanh)
    found = []
    for tolerance in (1e-12, 1e3):
        rule = make(DFCSSA, tanh, settling_tolerance=tolerance, feedback_init="symmetric")
        found.append(rule.targets(rule.activations(x, gradients=False), y).u)
    assert found[0].abs().max() > 0
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("kind", [DFC, DFCSS])
def test_functions_in_place_change_nothing(kind):
    def gradients(inplace):
        torch.manual_seed(0)
        hidden = [nn.Sequential(nn.Flatten(), nn.Linear(16, 9), nn.ELU(inplace=inplace))]
        rule = make(kind, Layers([*hidden, nn.Sequential(nn.Linear(9, 5))], (1, 4, 4)), feedback_init="symmetric")
        return rule.forward_gradients(*batch(rule.network))[1]

    torch.testing.assert_close(gradients(True), gradients(False))


@pytest.mark.parametrize(("function", "side"), [(nn.ReLU(), 2), (nn.SiLU(), 4)], ids=["rising", "falling first"])
def test_control_is_behind_the_maxima_of_rising_functions_alone(function, side):
    first = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), function, nn.MaxPool2d(2))
    rule = make(DFCSS, Layers([first, nn.Sequential(nn.Flatten(), nn.Linear(12, 5))], (1, 4, 4)))
    assert tuple(rule.map(1).shape) == (3, side, side)


def test_first_maps_that_are_products_see_no_dropout_and_leave_the_network_in_training():
    def maps(*dropout):
        torch.manual_seed(0)
        hidden = nn.Sequential(nn.Flatten(), nn.Linear(16, 9), nn.Tanh(), *dropout)
        network = Layers([hidden, nn.Sequential(nn.Linear(9, 5))], (1, 4, 4)).train()
        rule = make(DFCSS, network, feedback_init="symmetric")
        assert all(module.training for module in network.modules())
        return matrices(rule)[2]

    torch.testing.assert_close(maps(nn.Dropout(0.5)), maps())


def test_settled_is_what_is_at_rest_with_less_than_a_quarter_of_the_first_error(tanh):
    rule = make(DFCSS, tanh, settling_tolerance=1e-6, alpha=0.5, leak="total")
    ones = torch.ones(3, 5, dtype=torch.float64)
    error = torch.tensor([[0.24], [0.26], [0.24]]) * ones
    # The control of the last image is not at rest.
    u = error / torch.tensor([[0.5], [0.5], [0.6]])
    before = Activations([ones], [], [])
    found = rule._outcome(Moment(u, [], [], [], [error]), before, lambda output: output)
    assert found.settled.tolist() == [True, False, False]


def test_images_that_have_not_settled_are_left_out_where_asked(tanh):
    options = {"steady_state": "dynamics", "time_steps": 500, "feedback_init": "symmetric"}
    x, y = batch(tanh, 16)
    residual = make(DFCSS, tanh, **options).targets(DFCSS(tanh).activations(x, gradients=False), y).residual
    options["settling_tolerance"] = float(residual.median()) * 1.0001
    rule = make(DFCSS, tanh, skip_unsettled=True, **options)
    found = rule.targets(rule.activations(x, gradients=False), y)
    share = float(rule.settling(found)["settled"])
    assert 0 < share < 1
    for n in (1, 2, 3):
        taught = found.teaching[n].abs().sum(1) > 0
        assert torch.equal(taught, found.settled)
    # In the mean over time too.
    del options["steady_state"]
    mean = make(DFC, tanh, skip_unsettled=True, **options)
    whole, keep = mean.forward_gradients(x, y)[1], found.settled
    alone = make(DFC, tanh, **options).forward_gradients(x[keep], y[keep])[1]
    for a, b in zip(whole, alone, strict=True):
        assert relative(a, b * share) < 1e-10


# --- feedback weights -------------------------------------------------------------------------------------------------


def white(rule, controller, images):
    """The noise that the rule draws: for each step and layer (B, d_n), from a rule of the same seed."""
    sizes = [len(w) for w in matrices(rule)[2]]
    like = torch.zeros(images, 1, dtype=torch.float64)
    draws = []
    for _ in range(controller.steps - 1):
        draws.append([rule.draw(n, images, like.expand(-1, size)) for n, size in enumerate(sizes, 1)])
    return draws


@pytest.mark.parametrize("proactive", [False, True])
def test_the_feedbacks_gradients_are_the_correlations_of_the_dynamics_as_they_are_written(tanh, proactive):
    options = {"noise": [0.03, 0.02, 0.005], "feedback_time_steps": 12, "feedback_proactive": proactive}
    rule, twin = (make(DFCSSA, tanh, seed=4, **options) for _ in range(2))
    twin.feedback.load_state_dict(rule.feedback.state_dict())
    x, _ = batch(tanh, 3)
    c = rule.feedback_controller
    factor = math.sqrt(c.time_step) / c.apical_time
    draws = white(twin, c, 3)
    expected = [torch.zeros_like(w) for w in matrices(rule)[2]]
    for i, image in enumerate(x.flatten(1)):
        goal = rule(x[i : i + 1])[0].detach()
        noise = [[s * factor * xi[i] for s, xi in zip((0.03, 0.02, 0.005), step, strict=True)] for step in draws]
        history = literal(rule, image, lambda r, goal=goal: goal - r, c, noise=noise)
        for before, after in zip(history, history[1:], strict=False):
            for n in range(3):
                expected[n] += torch.outer(before[3][n], after[0]) / (3 * (len(history) - 1))
    # The least deviation that gradients are divided by is 0.01.
    expected = [e / s**2 for e, s in zip(expected, (0.03, 0.02, 0.01), strict=True)]
    found = []
    rule.step = lambda optimizer, parameters, gradients: found.extend(gradients)
    rule.feedback_phase(rule.activations(x, gradients=False))
    assert len(found) == 3
    for a, b in zip(found, expected, strict=True):
        assert relative(a, b) < 1e-9


def test_in_a_single_phase_one_simulation_with_filtered_noise_serves_both_kinds_of_weights(tanh):
    scales, options = (0.03, 0.02, 0.04), {"steady_state": "single-phase", "feedback_apical_time": 0.0}
    options |= {"noise": list(scales), "time_steps": 12, "time_step": 0.02, "alpha": 0.1, "label_confidence": 0.9}
    rule, twin = (make(StrongDFC, tanh, seed=4, **options) for _ in range(2))
    twin.feedback.load_state_dict(rule.feedback.state_dict())
    x, y = batch(tanh, 3)
    c = rule.controller
    draws = white(twin, c, 3)
    keep, slow = c.time_step / 0.07, c.time_step / 0.5
    weights, maps = [torch.zeros_like(w) for w in matrices(rule)[0]], [torch.zeros_like(w) for w in matrices(rule)[2]]
    f = functions(rule)
    for i, image in enumerate(x.flatten(1)):
        filtered, noise = [torch.zeros(size, dtype=torch.float64) for size in (15, 15, 5)], []
        for step in draws:
            filtered = [
                keep / math.sqrt(c.time_step) * xi[i] + (1 - keep) * n for xi, n in zip(step, filtered, strict=True)
            ]
            noise.append([s * n for s, n in zip(scales, filtered, strict=True)])
        wanted = torch.full((5,), 0.1 / 4, dtype=torch.float64)
        wanted[y[i]] = 0.9
        history = literal(rule, image, lambda r, w=wanted: w - r.softmax(0), c, noise=noise)
        for _, v, v_ff, _, r in history:
            for n in range(3):
                teaching = 2 * (f[n](v[n]) - f[n](v_ff[n])) / (len(history) * 3)
                weights[n] -= torch.outer(teaching, r[n])
        running = history[1][0]
        for k, (before, after) in enumerate(zip(history, history[1:], strict=False)):
            running = after[0] if k == 0 else running + slow * (after[0] - running)
            for n in range(3):
                grows = (1 + c.voltage_time / 0.07) ** (2 - n)
                pair = torch.outer(before[3][n], after[0] - running)
                maps[n] += grows / scales[n] ** 2 * pair / (3 * (len(history) - 1))
    found = {True: [], False: []}
    rule.step = lambda optimizer, parameters, gradients: found[optimizer is rule.forward_optimizer].extend(gradients)
    asked = rule.forward_gradients(x, y)[1]
    rule.training_batch(x, y)
    for a, b, again in zip(found[True][::2], weights, asked[::2], strict=True):
        # Asking for them before drew nothing.
        assert relative(a, b) < 1e-9 and torch.equal(a, again)
    for a, b in zip(found[False], maps, strict=True):
        assert relative(a, b) < 1e-9


def test_feedback_learns_a_damped_pseudo_inverse_and_leaves_the_forward_weights_alone(linear):
    rule = make(DFCSSA, linear, feedback_lr=[0.02], **PUBLISHED)
    J = controlled_jacobian(rule, torch.zeros(20, dtype=torch.float64))
    rows = torch.linalg.pinv(J) @ J

    def measured():
        Q = torch.cat(matrices(rule)[2])
        damped = [J.t() @ torch.linalg.inv(J @ J.t() + g * torch.eye(5)) for g in (1, 3, 10, 18, 32, 100)]
        cosine = max(float((Q * M).sum() / Q.norm() / M.norm()) for M in damped)
        return float((rows @ Q).norm() / Q.norm()), cosine, float(torch.linalg.eigvals(J @ Q).real.min())

    share, cosine, _ = measured()
    assert share < 0.5 and cosine < 0.5
    before, generator = state(rule), torch.Generator().manual_seed(2)
    for _ in range(120):
        x = torch.randn(32, 1, 1, 20, generator=generator, dtype=torch.float64)
        rule.feedback_phase(rule.activations(x, gradients=False))
    share, cosine, eigenvalue = measured()
    assert share > 0.98 and cosine > 0.98 and eigenvalue > 1
    assert not of_network(changed(before, rule.state_dict()))


def test_first_feedback_is_random_or_the_product_of_the_weights_above_and_the_outputs_is_the_identity(tanh):
    W, _, random = matrices(make(DFCSSA, tanh))
    _, _, products = matrices(make(DFCSSA, tanh, feedback_init="symmetric"))
    assert torch.equal(random[2], torch.eye(5))
    assert random[0].std() == pytest.approx(math.sqrt(2 / 20), rel=0.2)
    for found, expected in zip(products, [(W[2] @ W[1]).t(), W[2].t(), torch.eye(5)], strict=True):
        torch.testing.assert_close(found, expected.double())


def test_first_feedback_of_a_network_that_reads_words_is_the_product_of_the_weights_above():
    words = nn.Sequential(nn.Embedding(20, 4), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3))
    rule = DFCSSA(words, input_shape=(3,), feedback_init="symmetric")
    for n, product in {1: words[4].weight @ words[2].weight, 2: words[4].weight}.items():
        torch.testing.assert_close(rule.map(n).linear.weight, product.t())


def test_fixed_feedback_from_the_weights_learns_digits_faster_than_random_feedback(here):
    for seed in "01":
        accuracies = {}
        for first in ("symmetric", "random"):
            words = ["--algo", "dfc-ssa", "--data", "digits", "--feedback-init", first, "--feedback-iterations", "0"]
            words += ["--schedule", "sequential", "--max-epochs", "2", "--test-weights", "last"]
            folder = first + seed
            assert main([*words, "--diagnostics-every", "0", "--seed", seed, "--run-dir", folder]) == 0
            accuracies[first] = json.loads((here / folder / "summary.json").read_text())["test_accuracy"]
        assert accuracies["symmetric"] > accuracies["random"] + 0.01


def test_fixed_feedback_stays_as_it_is_and_turns_hidden_updates_to_backprops(tanh):
    x, y = batch(tanh, 32)
    output, backprop = tanh(x), []
    backprop = torch.autograd.grad(nn.functional.cross_entropy(output, y), list(tanh.parameters()))
    fixed = make(DFCSSA, tanh, feedback_init="symmetric", feedback_iterations=[0])
    assert all(angle(fixed.forward_gradients(x, y)[1][i], backprop[i]) < 40 for i in (0, 2, 4))
    assert all(angle(make(DFCSSA, tanh).forward_gradients(x, y)[1][i], backprop[i]) > 70 for i in (0, 2))
    before = state(fixed.feedback)
    fixed.training_batch(x, y)
    assert not changed(before, fixed.feedback.state_dict())


# --- the order of the phases ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, [(True, True)] * 4),
        ({"schedule": "alternating"}, [(True, False), (False, True)] * 2),
        ({"schedule": "warmup", "feedback_warmup_epochs": 1}, [(True, False)] + [(False, True)] * 3),
        ({"feedback_warmup_epochs": 1, "extra_feedback_epochs": 1}, [(True, False), (False, True)] * 2),
    ],
)
def test_epochs_of_both_kinds_of_weights_or_of_one(tanh, monkeypatch, options, expected):
    rule = make(DFCSSA, tanh, feedback_time_steps=5, **options)
    x, y = batch(tanh)
    for epoch, (feedback, forward) in enumerate(expected):
        monkeypatch.setattr(DFCSSA, "current_epoch", epoch)
        before = state(rule)
        rule.training_batch(x, y)
        names = changed(before, rule.state_dict())
        assert bool(of_network(names)) == forward and bool(names - of_network(names)) == feedback


def test_the_warm_up_has_rates_and_noise_of_its_own(tanh, monkeypatch):
    options = {"feedback_lr": [1e-3], "warmup_feedback_lr": [1e-2], "noise": [0.1], "warmup_noise": [0.2]}
    rule = make(DFCSSA, tanh, feedback_warmup_epochs=1, feedback_time_steps=5, **options)
    x, y = batch(tanh)
    for epoch, rate, noise in ((0, 1e-2, 0.2), (1, 1e-3, 0.1)):
        monkeypatch.setattr(DFCSSA, "current_epoch", epoch)
        rule.training_batch(x, y)
        assert rule.noise_scale(2) == noise
        assert all(o.param_groups[0]["lr"] == rate for o in rule.feedback_optimizers.values())


@pytest.mark.parametrize("extra", [1, 2])
def test_noise_decays_by_the_epochs_that_train_feedback_weights_the_warm_up_among_them(tanh, monkeypatch, extra):
    rule = make(DFCSSA, tanh, noise=[0.4], noise_decay=2.0, feedback_warmup_epochs=2, extra_feedback_epochs=extra)
    scales = []
    for epoch in range(9):
        monkeypatch.setattr(DFCSSA, "current_epoch", epoch)
        if rule.turns() == (True, False):
            scales.append(rule.noise_scale(2))
    assert len(scales) > 4
    assert scales == pytest.approx([0.4 / (1 + e / 2) for e in range(1, len(scales) + 1)])


def test_noise_that_is_given_for_the_warm_up_does_not_decay(tanh, monkeypatch):
    rule = make(DFCSSA, tanh, noise=[0.4], noise_decay=2.0, warmup_noise=[0.7], feedback_warmup_epochs=2)
    scales = []
    for epoch in range(3):
        monkeypatch.setattr(DFCSSA, "current_epoch", epoch)
        scales.append(rule.noise_scale(2))
    assert scales == pytest.approx([0.7, 0.7, 0.4 / (1 + 3 / 2)])


def test_without_rates_the_feedback_has_the_usual_ones_in_its_warm_up_too(tanh):
    """As the options say: 3e-4 for Adam."""
    rule = make(DFCSSA, tanh, feedback_lr=[])
    assert rule.feedback_lr == rule.warmup_feedback_lr == dict.fromkeys((1, 2, 3), 3e-4)


@pytest.mark.parametrize("warm", [0, 1])
def test_a_phase_of_other_rates_is_that_of_a_rule_with_these_rates(tanh, warm):
    options = {"feedback_warmup_epochs": warm, "feedback_time_steps": 5}
    rule = make(DFCSSA, tanh, feedback_lr=[1e-2], warmup_feedback_lr=[1e-1], **options)
    other = make(DFCSSA, copy.deepcopy(tanh), feedback_lr=[1e-3], warmup_feedback_lr=[1e-2], **options)
    other.load_state_dict(rule.state_dict())
    x, _ = batch(tanh)
    before = state(rule)
    rule.train_feedback_for(rule.activations(x, gradients=False), rule.feedback_iterations, 0.1)
    other.feedback_phase(other.activations(x, gradients=False))
    assert changed(before, rule.state_dict())
    for value, expected in zip(rule.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(value, expected)


def test_each_weights_own_gradient_is_clipped(tanh):
    plain = {"optimizer": "sgd", "lr": 1.0, "momentum": 0.0}
    plain |= {"feedback_optimizer": "sgd", "feedback_lr": [1.0], "feedback_momentum": 0.0, "feedback_weight_decay": 0.0}
    rule = make(StrongDFC, tanh, clip_each=1e-3, feedback_time_steps=5, **plain)
    before = state(rule)
    rule.training_batch(*batch(tanh))
    after = rule.state_dict()
    assert all((after[name] - before[name]).norm() < 1.0001e-3 for name in before)
    assert sum((after[name] - before[name]).norm() > 0.99e-3 for name in before) > 6


def test_the_gradients_of_all_feedback_weights_may_be_clipped_together(tanh):
    """As Meulemans et al. 2021 do: a step in the direction of all gradients, of the given length."""
    plain = {"feedback_optimizer": "sgd", "feedback_lr": [1.0], "feedback_momentum": 0.0, "feedback_weight_decay": 0.0}
    steps = {}
    for limit in (0.0, 1e-3, 1e9):
        torch.manual_seed(0)
        rule = make(DFCSSA, tanh, clip_feedback=limit, clip_each=1e-5 if limit else 0.0, **plain)
        before = [weight.clone() for weight in rule.feedback.parameters()]
        rule.feedback_phase(rule.activations(batch(tanh)[0], gradients=False))
        after = rule.feedback.parameters()
        steps[limit] = torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)])
    torch.testing.assert_close(steps[1e9], steps[0.0])
    torch.testing.assert_close(steps[1e-3], steps[0.0] * 1e-3 / (steps[0.0].norm() + 1e-6))


def test_ranks_with_some_layers_each_cannot_clip_them_together(tanh):
    rule = make(DFCSSA, tanh, clip_feedback=1.0)
    rule.divide_by(ByLayers(teams=False))
    with pytest.raises(UserError, match="--clip-feedback: expected --feedback-parallel data"):
        rule.feedback_phase(rule.activations(batch(tanh)[0], gradients=False))


# --- other networks ---------------------------------------------------------------------------------------------------


def test_control_acts_on_what_is_pooled_where_maxima_follow_the_nonlinearity():
    rule = make(DFCSSA, shipped_network("vgg"))
    assert [rule.feedback[n].shape for n in (1, 4)] == [torch.Size([3, 8, 8]), torch.Size([5])]
    pooled_later = Layers(
        [
            nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.AvgPool2d(2)),
            nn.Sequential(nn.Flatten(), nn.Linear(27, 5)),
        ],
        (2, 8, 8),
    )
    assert make(DFCSSA, pooled_later).feedback[1].shape == torch.Size([3, 6, 6])


@pytest.mark.parametrize("model", ["vgg", "resnet18", "lc", "convnet", "stochastic"])
def test_the_control_leads_any_network_to_its_target(model):
    torch.manual_seed(0)
    network = shipped_network(model).double()
    rule = make(DFCSS, network, settling_tolerance=1e-9, settling_steps=30, alpha=1e-6, beta=1e-2)
    x, y = make_batch(network)
    a = rule.activations(x.double(), gradients=False)
    found = rule.targets(a, y)
    assert found.residual.max() < 1e-8
    target = rule.first_target(a, y)
    assert (found[network.depth] - target).norm() < 1e-4 * (target - a.s[-1]).norm()


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, options, message",
    [
        (DFC, {"noise_samples": 2}, "--noise-samples: expected 1"),
        (DFC, {"alpha": 0.0}, "--alpha: expected a number above 0"),
        (DFC, {"time_steps": 2}, "--time-steps: expected at least 3"),
        (DFC, {"voltage_time": 0.01}, "--voltage-time: expected at least --time-step"),
        (DFCSSA, {"feedback_apical_time": 1e-4}, "--feedback-apical-time: expected at least --feedback-time-step"),
        (DFCSSA, {"feedback_alpha": -1.0}, "--feedback-alpha: expected 0 or more"),
        (DFCSS, {"settling_steps": 0}, "--settling-steps: expected at least 1"),
        (StrongDFC, {"beta": 0.5}, "--beta: expected 1"),
        (StrongDFC, {"label_confidence": 1.5}, "--label-confidence: expected"),
        (StrongDFC, {"steady_state": "single-phase"}, "--steady-state single-phase: expected"),
        (
            StrongDFC,
            {"steady_state": "single-phase", "feedback_apical_time": 0.0, "noise_time": 1e-3},
            "--noise-time: expected at least the steps",
        ),
    ],
)
def test_bad_values_get_one_sentence(tanh, kind, options, message):
    with pytest.raises(UserError, match=message) as error:
        make(kind, tanh, **options)
    assert "\n" not in str(error.value)


def test_an_operation_without_a_derivative_in_forward_mode_is_refused():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    rule = DFCSSA(nn.Sequential(nn.Linear(4, 8), layer, nn.Flatten(), nn.Linear(40, 3)), input_shape=(5, 4))
    with pytest.raises(UserError, match=r"^DFCSSA needs derivatives in forward mode, found an operation .*; use dfc,"):
        rule.forward_gradients(torch.randn(2, 5, 4), torch.arange(2))
