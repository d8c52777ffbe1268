"""What must hold on a CUDA device; skipped where there is none."""

import json

import pytest
import torch

from dtp.algorithms import DTP
from dtp.algorithms.options import DTPOptions
from dtp.cli import main
from dtp.feedback import ldrl_loss
from dtp.models import LeNet
from dtp.models.options import LeNetOptions
from tests.conftest import make_batch

pytestmark = pytest.mark.gpu


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


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_a_run_on_the_gpu_learns_digits(precision, tmp_path):
    command = f"--precision {precision} --accelerator gpu --max-epochs 10 --run-dir {tmp_path / 'run'}"
    assert main(command.split()) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test_accuracy"] > 0.9 and 0 < summary["feedback_seconds"] < summary["wall_seconds"]
