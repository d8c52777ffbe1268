"""Time and arithmetic of a batch of DTP with L-DRL by engine, in one process, medians of interleaved rounds.

    python benchmarks/engines.py --model vgg --data cifar10 --shape 3 32 32 --rounds 5
    python benchmarks/engines.py --model mlp --data mnist --shape 1 28 28 --rounds 20
    python benchmarks/engines.py --model vgg --data cifar10 --shape 3 32 32 --iterations 1 0.5 0.2 0.1 0.05

``published`` is the literal loss as the published code evaluates it, with F(s) computed again in every iteration;
``literal``, ``reduced`` and ``graph`` are ``--engine``; ``expected`` is ``--probes expected --routing fixed``; ``bp``
is a batch of backpropagation. Floating-point operations are counted by torch and compared with the formula: 8, 7 and 4
convolutions of the layer's size for each iteration, and none in expectation.
The literal forms step by torch's optimizers through the rule, the others without that overhead, as in training.
``--captured`` also measures whole batches that are captured as CUDA graphs, as runs on a GPU have them (on a CPU, for a
dry run, they are learned from plainly). ``--bf16`` also measures batches with ``--precision bf16-mixed``, the products
of which newer CPUs and GPUs compute faster. ``--iterations`` measures the fastest engine for parts of the preset's
iteration counts instead.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from dtp.algorithms import ALGORITHMS, DTP
from dtp.algorithms.base import Algorithm
from dtp.algorithms.captured import PLAIN
from dtp.cli.arguments import parse
from dtp.feedback import forward_with_context, ldrl_loss
from dtp.models import MODELS
from dtp.system.memory import keep_freed_memory

CAPTURED, BF16 = ", captured", ", bf16-mixed"
UNITS = {"published": 8, "literal": 7, "reduced": 4, "graph": 4, "expected": 0}


class Published(DTP):
    """The literal loss as the published code evaluates it: the clean pass F(s) again in every iteration."""

    def feedback_loss(self, n, activations, noise):
        a = activations
        s_out, context = forward_with_context(self.network[n], a.s[n - 1], given=a.contexts[n])
        pair = self.network[n], self.feedback[n]
        return ldrl_loss(*pair, a.s[n - 1], s_out, context, *noise, **self._loss_settings(n))


def make(name: str, o: argparse.Namespace, part: float = 1.0) -> Algorithm:
    """A rule with its network, weights by seed 0, on the device."""
    argv = [
        "--algo",
        "bp" if name == "bp" else "dtp",
        "--model",
        o.model,
        "--data",
        o.data,
        *(o.more if name != "bp" else []),
    ]
    config = parse(argv)
    if name != "bp":
        if name == "expected":
            config.algo.probes, config.algo.routing = "expected", "fixed"
        else:
            config.algo.engine = "literal" if name == "published" else name
        # All of them are what they are, also inf.
        if part != 1:
            config.algo.feedback_iterations = [k and max(1, round(part * k)) for k in config.algo.feedback_iterations]
    torch.manual_seed(0)
    network = MODELS.resolve(o.model).load()(config.model, o.shape, o.classes)
    kind = Published if name == "published" else ALGORITHMS.resolve(config.run.algo).load()
    layout = torch.contiguous_format if o.contiguous else torch.channels_last
    rule = kind(network, config.algo).to(o.device).to(memory_format=layout)
    rule.configure_optimizers()
    return rule


def measure(rules: dict[str, Algorithm], x: torch.Tensor, y: torch.Tensor, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of a batch and of its feedback phase, by name; the first round warms up."""
    captured = {
        name: rule.captured(None if x.device.type == "cuda" else _plain)
        for name, rule in rules.items()
        if name.endswith(CAPTURED)
    }
    for learn in captured.values():
        for _ in range(PLAIN + 1):
            learn(x, y, None, None)
    steps: dict[str, list[float]] = {name: [] for name in rules}
    phases: dict[str, list[float]] = {name: [] for name in rules}
    for _ in range(rounds + 1):
        for name, rule in rules.items():
            before = rule.feedback_timer.seconds
            synchronize(x.device)
            begin = time.perf_counter()
            with torch.autocast(x.device.type, torch.bfloat16, enabled=name.endswith(BF16)):
                if name in captured:
                    captured[name](x, y, None, None)
                else:
                    rule.training_batch(x, y)
            synchronize(x.device)
            steps[name].append(time.perf_counter() - begin)
            phases[name].append(rule.feedback_timer.seconds - before)
    return {
        name: {"step": statistics.median(steps[name][1:]), "feedback": statistics.median(phases[name][1:])}
        for name in rules
    }


def _plain(function: Callable[[], None], generators: Sequence[torch.Generator]) -> Callable[[], None]:
    return function


def choose_algorithms(device: torch.device, tf32: bool) -> None:
    """As a run does: on a GPU the fastest of several algorithms, found by trying all."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = device.type == "cuda"


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def units(rule: DTP, batch: int) -> dict[int, int]:
    """Floating-point operations of one application of each feedback layer's affine map to a batch."""
    found = {}
    for n in rule.trained_feedback:
        weight = next(p for p in rule.feedback[n].parameters() if p.dim() > 1)
        positions = rule.network.shapes[n - 1][1:].numel() if weight.dim() == 4 else 1
        found[n] = 2 * weight.numel() * positions * batch
    return found


def arithmetic(name: str, rule: DTP, x: torch.Tensor) -> dict[str, float]:
    """Counted operations of a feedback phase, and what the formula says."""
    activations = rule.activations(x, gradients=False)
    with FlopCounterMode(display=False) as counter:
        rule.feedback_phase(activations)
    each = UNITS[name]
    formula = sum(each and each * rule.feedback_iterations[n] * unit for n, unit in units(rule, len(x)).items())
    return {"counted_tflop": counter.get_total_flops() / 1e12, "formula_tflop": formula / 1e12}


def peaks(device: torch.device, rounds: int = 5) -> dict[str, float]:
    """Rates in TFLOP/s of a large matrix product and of a large convolution."""
    on_gpu = device.type == "cuda"
    size, images, calls = (8192, 1024, 10) if on_gpu else (2048, 64, 1)
    a = torch.randn(size, size, device=device)
    maps = torch.randn(images, 128, 16, 16, device=device).to(memory_format=torch.channels_last)
    kernels = torch.randn(128, 128, 3, 3, device=device).to(memory_format=torch.channels_last)
    work = {
        "matrix_product": (lambda: a @ a, 2 * size**3),
        "convolution": (lambda: torch.conv2d(maps, kernels, padding=1), 2 * 128 * 128 * 9 * 256 * images),
    }
    found = {}
    for name, (function, operations) in work.items():
        seconds = []
        for _ in range(rounds + 2):
            synchronize(device)
            begin = time.perf_counter()
            for _ in range(calls):
                function()
            synchronize(device)
            seconds.append((time.perf_counter() - begin) / calls)
        found[name] = operations / min(seconds) / 1e12
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vgg")
    parser.add_argument("--data", default="cifar10", help="whose preset is used")
    parser.add_argument("--shape", type=int, nargs=3, default=[3, 32, 32], help="channels, height, width of the images")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    usual = ["published", "literal", "reduced", "graph", "expected"]
    parser.add_argument("--engines", nargs="*", default=usual, choices=UNITS)
    parser.add_argument("--iterations", type=float, nargs="*", help="parts of the preset's iteration counts")
    parser.add_argument(
        "--captured", action="store_true", help="bp, graph and expected also with their batches captured whole"
    )
    parser.add_argument(
        "--bf16", action="store_true", help="bp and the engines also with --precision bf16-mixed; ratios to bp in 32"
    )
    parser.add_argument("--contiguous", action="store_true", help="maps whole in memory, not channels innermost")
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument("--output", type=Path)
    parser.add_argument("more", nargs="*", help="further options of --algo dtp, after --")
    o = parser.parse_args()
    if o.iterations and (o.captured or o.bf16):
        parser.error("--iterations: expected without --captured and --bf16, for it measures one form of a batch")
    keep_freed_memory()
    o.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    choose_algorithms(o.device, o.tf32)
    torch.manual_seed(0)
    x = torch.randn(o.batch_size, *o.shape, device=o.device)
    y = torch.randint(o.classes, (o.batch_size,), device=o.device)
    result = {
        "model": o.model,
        "shape": o.shape,
        "batch_size": o.batch_size,
        "rounds": o.rounds,
        "options": o.more,
        "memory_format": "contiguous" if o.contiguous else "channels-last",
        "tf32": o.tf32,
        "tried_algorithms": torch.backends.cudnn.benchmark,
        "device": torch.cuda.get_device_name() if o.device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if o.iterations:
        names = {f"{part:g} of the iterations": part for part in o.iterations}
        engine = "graph" if o.device.type == "cuda" else "reduced"
        rules = {"bp": make("bp", o), **{name: make(engine, o, part) for name, part in names.items()}}
        times = measure(rules, x, y, o.rounds)
        result["iterations"] = {name: list(rules[name].feedback_iterations.values()) for name in names}
    else:
        rules = {"bp": make("bp", o), **{name: make(name, o) for name in o.engines}}
        if o.bf16:
            rules |= {name + BF16: make(name, o) for name in ("bp", *o.engines)}
        if o.captured:
            rules |= {name + CAPTURED: make(name, o) for name in ("bp", "graph", "expected")}
        times = measure(rules, x, y, o.rounds)
        if literal := times.get("literal"):
            result["speedup_over_literal"] = {
                # The feedback phase of a captured batch is not timed by itself.
                name: {part: round(literal[part] / seconds, 2) for part, seconds in times[name].items() if seconds}
                for name in times
                if not name.startswith("bp")
            }
        # A replayed graph dispatches nothing that could be counted: its operations are those of the reduced form.
        counted_as = {name: "reduced" if name == "graph" else name for name in o.engines}
        result["arithmetic"] = {name: arithmetic(name, make(counted_as[name], o), x) for name in o.engines}
        result["peak_tflop_per_second"] = peaks(o.device)
        rate = max(result["peak_tflop_per_second"].values())
        for name in o.engines:
            counted = result["arithmetic"][name]
            counted["part_of_peak"] = counted["counted_tflop"] / times[name]["feedback"] / rate
    result["milliseconds"] = {
        name: {part: round(1000 * seconds, 2) for part, seconds in found.items()} for name, found in times.items()
    }
    result["ratio_to_bp"] = {name: round(found["step"] / times["bp"]["step"], 2) for name, found in times.items()}
    text = json.dumps(result, indent=2)
    print(text)
    if o.output:
        o.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
