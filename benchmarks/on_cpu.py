"""What two ways of computing on a CPU save of a batch, as ratios to torch's usual ones.

    python benchmarks/on_cpu.py --output benchmarks/results/on_cpu.json

Optimizers that step in one pass over the weights, and windows of locally connected layers with images last in memory
in place of F.unfold and F.fold. In one process, medians of interleaved rounds, with the same batches and first weights.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F

from dtp.algorithms import ALGORITHMS
from dtp.cli.arguments import parse
from dtp.feedback import steppers
from dtp.models import MODELS
from dtp.models.modules import LocallyConnected2d

SHAPES = {"mnist": (1, 28, 28), "fashion-mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
PRESETS = [
    "bp_mlp_mnist_bartunov",
    "vanilla-dtp_mlp_mnist_bartunov-parallel",
    "vanilla-dtp_mlp_cifar10_bartunov-parallel",
    "dfa_mlp_mnist_meulemans-2021",
    "dtp_lenet_cifar10_expected",
    "bp_lc_mnist",
    "vanilla-dtp_lc_mnist_bartunov-parallel",
    "bp_lc_cifar10",
]


def columns(layer, x):
    return F.unfold(F.pad(x, layer.zeros), layer.kernel_size, stride=layer.stride).permute(2, 1, 0)


def adjoint(layer, y, weight):
    seen = torch.bmm(y.flatten(2).permute(2, 0, 1), weight).permute(1, 2, 0)
    padded = F.fold(seen, layer.padded_size, layer.kernel_size, stride=layer.stride)
    return F.pad(padded, [-zeros for zeros in layer.zeros])


STEPS = [(steppers, "_may_be_fused", lambda *_: False)]
WINDOWS = [(LocallyConnected2d, "columns", columns), (LocallyConnected2d, "adjoint", adjoint)]
# What is torch's usual way in each.
WAYS = {"ours": [], "steps in several passes": STEPS, "F.unfold and F.fold": WINDOWS, "both": STEPS + WINDOWS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=PRESETS, help="their rules, networks and settings")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, help="where the result is written too")
    options = parser.parse_args()
    result = {
        "command": "python benchmarks/on_cpu.py",
        "device": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rows": [measured(preset, options.rounds) for preset in options.presets],
    }
    print(json.dumps(result, indent=2))
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")


def measured(preset: str, rounds: int) -> dict[str, object]:
    """Milliseconds of a batch, and how many times longer it takes in each of the usual ways."""
    config = parse(["--config", preset])
    shape, dtype = SHAPES[config.run.data], torch.float64 if config.run.precision == "64" else torch.float32
    x, y = torch.randn(config.data.batch_size, *shape, dtype=dtype), torch.randint(10, (config.data.batch_size,))
    rules = {}
    for way in WAYS:
        if config.run.model != "lc" and any(patch in WINDOWS for patch in WAYS[way]):
            continue
        torch.manual_seed(0)
        network = MODELS.resolve(config.run.model).load()(config.model, shape, 10).to(dtype)
        rules[way] = ALGORITHMS.resolve(config.run.algo).load()(network, config.algo)
        rules[way].configure_optimizers()
    seconds: dict[str, list[float]] = {way: [] for way in rules}
    for _ in range(rounds + 2):
        for way, rule in rules.items():
            with ExitStack() as patched:
                for owner, name, usual in WAYS[way]:
                    patched.enter_context(mock.patch.object(owner, name, usual))
                begin = time.perf_counter()
                rule.training_batch(x, y)
                seconds[way].append(time.perf_counter() - begin)
    found = {way: statistics.median(times[2:]) for way, times in seconds.items()}
    return {
        "preset": preset,
        "milliseconds": round(1000 * found["ours"], 1),
        "times_longer": {way: round(value / found["ours"], 2) for way, value in found.items() if way != "ours"},
    }


if __name__ == "__main__":
    main()
