"""What must hold on a CUDA device; skipped where there is none."""

import json
import subprocess
import sys

import pytest
import torch

from dtp.algorithms import DTP
from dtp.algorithms.metrics import RunningMeans, as_vector
from dtp.algorithms.options import DTPOptions
from dtp.cli.train import main
from dtp.feedback import (
    Context,
    FeedbackSettings,
    SwitchesContext,
    derive_feedback,
    forward_with_context,
    ldrl_loss,
)
from dtp.models import LeNet
from dtp.models.options import LeNetOptions
from dtp.run.folder import newest_checkpoint
from tests.conftest import make_batch
from tests.runs import ROOT

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def float32_without_tf32():
    """Torch lets convolutions use TF32 by default, which would pass for float32 in what is compared here.

    Runs choose it, and algorithms, for the whole process: afterwards all is as it was.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    yield
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


@pytest.fixture
def pair():
    """The same rule in float64 on the CPU and on the GPU, with a batch."""
    network = LeNet(LeNetOptions(channels=[4, 6], hidden=16), (1, 16, 16), 10).double()
    batch = make_batch(network, 16)
    cpu = DTP(network, DTPOptions(feedback_init="symmetric")).double()
    gpu = DTP(LeNet(network.options, (1, 16, 16), 10), DTPOptions(feedback_init="symmetric")).double()
    gpu.load_state_dict(cpu.state_dict())
    return cpu, gpu.cuda(), batch


def test_forward_gradients_equal_those_on_the_cpu(pair):
    cpu, gpu, (x, y) = pair
    _, expected = cpu.forward_gradients(x, y)
    _, found = gpu.forward_gradients(x.cuda(), y.cuda())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("routing", ["noisy", "fixed"])
def test_feedback_gradients_equal_those_on_the_cpu_for_the_same_noise(pair, routing):
    cpu, gpu, (x, _) = pair
    noise = {n: [0.1 * torch.randn(16, *cpu.network.shapes[m]).double() for m in (n - 1, n)] for n in (2, 3, 4)}
    gradients = []
    for rule, device in ((cpu, "cpu"), (gpu, "cuda")):
        a = rule.activations(x.to(device))
        for n in rule.feedback.numbers:
            eps, eta = (part.to(device) for part in noise[n])
            clean = a.s[n - 1], a.s[n], a.contexts[n]
            loss = ldrl_loss(rule.network[n], rule.feedback[n], *clean, eps, eta, routing=routing)
            gradients.append([g.cpu() for g in torch.autograd.grad(loss, list(rule.feedback[n].parameters()))])
    for expected, found in zip(gradients[:3], gradients[3:], strict=True):
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("pool", [torch.nn.MaxPool2d(2), torch.nn.MaxPool2d(3, 2, 1)], ids=str)
@pytest.mark.parametrize("mode", ["add", "write"])
def test_unpooling_gives_the_values_and_gradients_of_the_cpu(mode, pool, layout):
    feedback = derive_feedback([pool], [torch.Size((8, 32, 32))], [1], FeedbackSettings(unpool=mode))[1]
    x = torch.randn(16, 8, 32, 32, dtype=torch.float64).to(memory_format=layout)
    pooled, context = forward_with_context(pool, x)
    y, upward = torch.randn_like(pooled), torch.randn_like(x)
    results = []
    for device in ("cpu", "cuda"):
        known = Context([SwitchesContext(context[0].indices.to(device), context[0].shape)])
        given = y.to(device).requires_grad_()
        found = feedback(given, known)
        results.append([t.detach().cpu() for t in (found, *torch.autograd.grad(found, given, upward.to(device)))])
    for found, expected in zip(*reversed(results), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0 if mode == "write" else 1e-12)


def trained(engine: str, batches: int = 3, device: str = "cuda", **options) -> tuple[DTP, torch.Tensor]:
    """A rule after some batches on a device in float64, and all its weights."""
    torch.manual_seed(0)
    network = LeNet(LeNetOptions(channels=[4, 6], hidden=16), (1, 16, 16), 10)
    settings = {"feedback_iterations": [20], "feedback_lr": [0.01], **options}
    rule = DTP(network, DTPOptions(engine=engine, **settings)).double().to(device)
    rule = rule.to(memory_format=torch.channels_last)
    rule.configure_optimizers()
    torch.manual_seed(1)
    for _ in range(batches):
        x, y = make_batch(network, 16)
        rule.training_batch(x.to(device), y.to(device))
    return rule, torch.cat([p.detach().flatten() for p in rule.parameters()])


ENGINE_OPTIONS = [
    {"routing": "noisy"},
    {"routing": "fixed"},
    {"noise_samples": 3},
    {"feedback_momentum": 0.0},
    {"feedback_optimizer": "adam", "feedback_lr": [1e-3]},
    {"unpool": "write", "ldrl_scale": "paper"},
]


@pytest.mark.parametrize("options", ENGINE_OPTIONS)
@pytest.mark.parametrize("engine", ["reduced", "graph"])
def test_engines_take_the_steps_of_the_literal_form(engine, options):
    _, expected = trained("literal", **options)
    _, found = trained(engine, **options)
    assert float((found - expected).norm() / expected.norm()) < 1e-10


def test_the_graph_is_captured_and_replayed(recwarn):
    rule, _ = trained("graph", 4)
    assert not [w for w in recwarn if "CUDA graph" in str(w.message)]
    assert set(rule.engine.used.values()) == {"graph"} and all(graph._replays for graph in rule.engine._graphs.values())


def test_the_automatic_engine_on_a_gpu_is_the_graph():
    rule, found = trained("auto")
    _, expected = trained("graph")
    assert set(rule.engine.used.values()) == {"graph"}
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def feedback_phase_without_waiting(rule: DTP) -> None:
    """A further feedback phase, in which whatever makes the host wait for the device raises RuntimeError."""
    x, _ = make_batch(rule.network, 16)
    activations = rule.activations(x.cuda())
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        rule.feedback_phase(activations)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("unpool", ["add", "write"])
def test_a_replayed_feedback_phase_does_not_wait_for_the_device(unpool):
    feedback_phase_without_waiting(trained("graph", unpool=unpool)[0])


def test_what_is_logged_of_layers_that_stop_early_can_be_read():
    rule, _ = trained("auto", routing="fixed", feedback_stop_distance=0.5)
    x, _ = make_batch(rule.network, 16)
    means = RunningMeans()
    means.add(*as_vector(rule.feedback_phase(rule.activations(x.cuda()))))
    assert {f"feedback_steps_{n}" for n in rule.trained_feedback} < set(means.compute())


EXPECTED = {"probes": "expected", "routing": "fixed"}


@pytest.mark.parametrize("slope", ["own", "clean"])
def test_training_in_expectation_gives_the_weights_that_it_gives_on_the_cpu(slope):
    _, expected = trained("auto", device="cpu", feedback_slope=slope, **EXPECTED)
    rule, found = trained("auto", feedback_slope=slope, **EXPECTED)
    assert set(rule.engine.used.values()) == {"expected"}
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("slope", ["own", "clean"])
def test_a_feedback_phase_in_expectation_does_not_wait_for_the_device(slope):
    feedback_phase_without_waiting(trained("auto", 1, feedback_slope=slope, **EXPECTED)[0])


@pytest.mark.parametrize("engine", ["reduced", "graph"])
def test_float32_error_of_an_engine_is_no_larger_than_that_of_the_literal_form(engine):
    errors = {}
    for name in ("literal", engine):
        rules = []
        for dtype in (torch.float64, torch.float32):
            torch.manual_seed(0)
            network = LeNet(LeNetOptions(channels=[8, 16], hidden=32), (1, 16, 16), 10)
            form = "literal" if dtype == torch.float64 else name
            rule = DTP(network, DTPOptions(engine=form, feedback_iterations=[20], feedback_lr=[0.01])).to("cuda", dtype)
            rule.configure_optimizers()
            noise = {n: [] for n in rule.trained_feedback}
            generator = torch.Generator().manual_seed(5)
            for n in rule.trained_feedback:
                for _ in range(20):
                    shapes = (rule.network.shapes[n - 1], rule.network.shapes[n])
                    noise[n].append([0.2 * torch.randn(32, *s, generator=generator).to("cuda", dtype) for s in shapes])
            given = {n: [part for pair in pairs for part in pair] for n, pairs in noise.items()}
            rule.draw_noise = lambda n, like, given=given: given[n].pop(0)
            x = torch.randn(32, 1, 16, 16, generator=torch.Generator().manual_seed(6)).to("cuda", dtype)
            rule.feedback_phase(rule.activations(x, gradients=False))
            rules.append(torch.cat([p.detach().double().flatten() for p in rule.feedback.parameters()]))
        errors[name] = float((rules[1] - rules[0]).norm() / rules[0].norm())
    print(f"relative float32 error after 20 steps: {errors}")
    assert errors[engine] < max(2 * errors["literal"], 1e-5)


def test_a_run_stopped_and_resumed_on_the_gpu_ends_as_one_never_stopped(tmp_path):
    base = "--accelerator gpu --max-epochs 2 --data digits --algo dtp --diagnostics-every 0"
    assert main(f"{base} --run-dir {tmp_path / 'whole'}".split()) == 0
    assert main(f"{base} --run-dir {tmp_path / 'parts'} --max-steps 25".split()) == 0
    assert main(f"{base} --run-dir {tmp_path / 'parts'} --resume auto".split()) == 0
    whole, parts = (
        torch.load(max((tmp_path / name / "checkpoints").glob("*.ckpt")), map_location="cpu", weights_only=True)
        for name in ("whole", "parts")
    )
    for name, value in whole["state_dict"].items():
        torch.testing.assert_close(parts["state_dict"][name], value, rtol=1e-5, atol=1e-7)


def test_a_deterministic_run_stopped_and_resumed_on_the_gpu_ends_bit_for_bit_as_one_never_stopped(tmp_path):
    """In processes of their own: what it needs of cuBLAS must be said before CUDA starts."""
    base = "--accelerator gpu --max-epochs 2 --data digits --model lenet --algo dtp --diagnostics-every 0"
    base += " --limit-train-batches 5 --deterministic"
    for name, more in (("whole", ""), ("parts", "--max-steps 7"), ("parts", "--resume auto")):
        command = f"{ROOT / 'main.py'} {base} --run-dir {tmp_path / name} {more}"
        subprocess.run([sys.executable, *command.split()], check=True)
    whole, parts = (
        torch.load(newest_checkpoint(tmp_path / name), map_location="cpu", weights_only=True)["state_dict"]
        for name in ("whole", "parts")
    )
    assert all(torch.equal(parts[name], value) for name, value in whole.items())


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_a_run_on_the_gpu_learns_digits(precision, tmp_path):
    command = f"--precision {precision} --accelerator gpu --max-epochs 10 --run-dir {tmp_path / 'run'}"
    assert main(command.split()) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test_accuracy"] > 0.9 and 0 < summary["feedback_seconds"] < summary["wall_seconds"]


@pytest.mark.parametrize(
    "options",
    [{}, {"routing": "fixed", "noise_samples": 2}, {"unpool": "write"}, {"probes": "expected", "noise_samples": 16}],
)
@pytest.mark.filterwarnings("ignore:--probes expected")
def test_replayed_batches_draw_the_noise_of_plain_ones_and_leave_their_weights(options):
    """Three batches that are learned from plainly, then three that are captured and replayed."""
    plain, expected = trained("graph", 6, **options)
    rule, _ = trained("graph", 0, **options)
    assert rule.fixed_sequence()
    captured = rule.captured()
    torch.manual_seed(1)
    for _ in range(6):
        x, y = make_batch(rule.network, 16)
        captured(x.cuda(), y.cuda(), rule.kind_of_batch(), rule.fixed_numbers())
    assert captured._graph is not None
    found = torch.cat([p.detach().flatten() for p in rule.parameters()])
    assert float((found - expected).norm() / expected.norm()) < 1e-10
    states, known = (r.noise_streams.state_dict()["states"] for r in (rule, plain))
    assert states.keys() == known.keys() != set() and all(torch.equal(states[n], known[n]) for n in known)


@pytest.mark.parametrize(
    "command",
    [
        "--algo bp",
        "--probes expected --feedback-iterations inf",
        "--probes expected",
        "--feedback-iterations 7",
        "--model lenet --feedback-iterations 5 --noise-samples 2",
    ],
)
def test_captured_batches_learn_what_plain_ones_do(command, tmp_path):
    base = f"--accelerator gpu --precision 64 --max-epochs 3 --data digits {command} --diagnostics-every 0"
    for name in ("auto", "no"):
        assert main(f"{base} --capture {name} --run-dir {tmp_path / name}".split()) == 0
    captured, plain = (
        torch.load(max((tmp_path / name / "checkpoints").glob("*.ckpt")), map_location="cpu", weights_only=True)
        for name in ("auto", "no")
    )
    for name, value in plain["state_dict"].items():
        torch.testing.assert_close(captured["state_dict"][name], value, rtol=1e-7, atol=1e-10)
    states, known = (checkpoint["noise"][0]["states"] for checkpoint in (captured, plain))
    assert states.keys() == known.keys() and all(torch.equal(states[n], known[n]) for n in known)
    # Or it was no test.
    assert json.loads((tmp_path / "auto" / "summary.json").read_text())["captured"]
