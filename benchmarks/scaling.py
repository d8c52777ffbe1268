"""A model of the time of a batch of DTP with L-DRL on 1 to 64 GPUs, by images, layers, hybrid, in expectation.

    python benchmarks/scaling.py --output benchmarks/results/scaling_vgg_imagenet32

Measured here: seconds of each feedback layer on one thread for whole and divided batches, seconds of the rest of a
batch (forward pass, targets, forward step), and the rate of the reduced form; of ``expected`` (``--probes expected
--routing fixed --feedback-parallel data``) the seconds of the feedback phase, and the rate at which a thread reads and
writes memory, which is what that phase does. Counted are the operations of a phase and what ranks add. Assumed, and
stated in the result: rates of a GPU at the same arithmetic and at the same reading and writing, what a feedback
iteration and any other operation take at least (launches of kernels), and latency and bandwidth of a sum over ranks
within a node and between nodes. Change them by the options of the same names. Speed-up is for a batch of constant size
(strong scaling).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from engines import arithmetic, make
from torch.utils._python_dispatch import TorchDispatchMode

from dtp.algorithms.target_propagation import RulePhase
from dtp.distributed.assignment import Assignment, by_layer, hybrid
from dtp.feedback.loop import time_iterations
from dtp.system.memory import keep_freed_memory

RANKS = [1, 2, 4, 8, 16, 32, 64]
MODES = ["data", "layer", "hybrid", "expected"]
LABELS = {"expected": "data, in expectation"}


@dataclass(frozen=True)
class Machine:
    """What is assumed of the GPUs.

    Attributes:
        gpu_tflops: rate of the feedback phase's convolutions and of the rest of a batch, 1e12 operations a second.
        gpu_gb: rate of the feedback phase in expectation, 1e9 bytes read or written a second.
        launch_us: least time of one feedback iteration of one layer.
        operation_us: least time of any other operation.
        node: GPUs of a node.
        link_gb, link_us: bandwidth in 1e9 bytes a second and latency of a step of a sum over ranks within a node.
        network_gb, network_us: the same for one GPU between nodes.
    """

    gpu_tflops: float = 25.0
    gpu_gb: float = 1000.0
    launch_us: float = 40.0
    operation_us: float = 5.0
    node: int = 4
    link_gb: float = 200.0
    link_us: float = 10.0
    network_gb: float = 12.5
    network_us: float = 20.0

    def sum_over(self, ranks: int, size: float) -> float:
        """Seconds that a sum over ranks of ``size`` bytes takes, in a ring within nodes and one over nodes."""
        if ranks == 1:
            return 0.0
        within, nodes = min(ranks, self.node), math.ceil(ranks / self.node)
        seconds = 2 * (within - 1) / within * size / self.link_gb / 1e9
        seconds += 2 * math.log2(max(within, 2)) * self.link_us / 1e6
        if nodes > 1:
            seconds += 2 * (nodes - 1) / nodes * size / within / self.network_gb / 1e9
            seconds += 2 * math.log2(nodes) * self.network_us / 1e6
        return seconds


@dataclass(frozen=True)
class Measured:
    """What was measured on one thread, and counted.

    Attributes:
        layers: seconds of a batch's iterations of each layer, by number of images.
        rest: seconds of all but the feedback phase, by number of images.
        iterations: K_n of each layer.
        sizes: bytes of each layer's feedback weights.
        forward: bytes of the forward weights.
        tflops: rate of the feedback phase.
        expected: seconds of the feedback phase in expectation, by number of images.
        moments: bytes of what ranks add of it.
        operations: of the feedback phase in expectation, and of the rest of a batch.
        gb: rate of a large elementwise operation, 1e9 bytes read or written a second.
    """

    layers: dict[int, dict[int, float]]
    rest: dict[int, float]
    iterations: dict[int, int]
    sizes: dict[int, int]
    forward: int
    tflops: float
    expected: dict[int, float]
    moments: int
    operations: dict[str, int]
    gb: float


def measure(o: argparse.Namespace) -> dict:
    """What the modes that draw their noise need: on images of noise, with the preset's network and iterations."""
    rule, layers, rest = make("reduced", o), {}, {}
    for images in _shares(o):
        x, y = _images(images, o)
        activations = rule.activations(x)
        problems = RulePhase(rule, activations).problems(rule.trained_feedback)
        for problem in problems:
            layers.setdefault(problem.layer, {})[images] = min(time_iterations(problem) for _ in range(o.rounds))
        rest[images] = min(_seconds(lambda x=x, y=y: _rest(rule, x, y)) for _ in range(o.rounds + 1))
    operations = arithmetic("reduced", make("reduced", o), torch.randn(16, *o.shape))["counted_tflop"] / 16
    whole = sum(found[o.batch_size] for found in layers.values())
    return {
        "layers": layers,
        "rest": rest,
        "iterations": dict(rule.feedback_iterations),
        "sizes": {n: sum(p.numel() * p.element_size() for p in rule.feedback[n].parameters()) for n in layers},
        "forward": sum(p.numel() * p.element_size() for p in rule.forward_parameters),
        "tflops": operations * o.batch_size / whole,
    }


def measure_expected(o: argparse.Namespace) -> dict:
    """The same of the mode in expectation, and what is counted."""
    rule, seconds, added = make("expected", o), {}, []
    for images in _shares(o):
        x, y = _images(images, o)
        activations = rule.activations(x)
        # The first times find memory.
        seconds[images] = min(_seconds(lambda a=activations: rule.feedback_phase(a)) for _ in range(o.rounds + 3))

    class Alone:
        """The only rank."""

        def mean(self, tensors):
            added.extend(tensors)
            return tensors

    with Operations() as phase:
        whole = RulePhase(rule, activations)
        whole.train(whole.problems(whole.layers), Alone())
    with Operations() as others:
        _rest(rule, x, y)
    large = torch.zeros(64 << 20)
    rate = 2 * large.numel() * large.element_size() / min(_seconds(lambda: large.add_(1)) for _ in range(5))
    return {
        "expected": seconds,
        "moments": sum(t.numel() * t.element_size() for t in added),
        "operations": {"expected": phase.count, "rest": others.count},
        "gb": rate / 1e9,
    }


class Operations(TorchDispatchMode):
    """Counts operations, those left out that only look at a tensor in another shape."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def _shares(o: argparse.Namespace) -> list[int]:
    """Images of a GPU, for each number of GPUs."""
    return sorted({max(1, o.batch_size // ranks) for ranks in RANKS})


def _images(count: int, o: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, *o.shape), torch.randint(o.classes, (count,))


def _rest(rule, x: torch.Tensor, y: torch.Tensor) -> None:
    activations = rule.activations(x)
    rule.forward_step(activations, rule.targets(activations, y), y)


def _seconds(function) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def predict(mode: str, ranks: int, batch: int, found: Measured, machine: Machine) -> dict[str, float | str]:
    """Seconds of a batch on so many GPUs, and what of them is spent in sums over ranks."""
    faster = found.tflops / machine.gpu_tflops
    share = max(1, batch // ranks)

    def layer(n: int, images: int) -> float:
        return max(found.layers[n][images] * faster, found.iterations[n] * machine.launch_us / 1e6)

    def rest(images: int) -> float:
        return max(found.rest[images] * faster, found.operations["rest"] * machine.operation_us / 1e6)

    if mode == "expected":
        work = found.expected[share] * found.gb / machine.gpu_gb
        work = max(work, found.operations["expected"] * machine.operation_us / 1e6)
        meeting = machine.sum_over(ranks, found.moments) + machine.sum_over(ranks, found.forward)
        return {"seconds": work + rest(share) + meeting, "sums": meeting, "plan": ""}
    if mode == "data":
        work = sum(layer(n, share) for n in found.layers)
        meeting = 0.0
        for k in range(max(found.iterations.values())):
            size = sum(found.sizes[n] for n, most in found.iterations.items() if most > k)
            meeting += machine.sum_over(ranks, size)
        meeting += machine.sum_over(ranks, found.forward)
        return {"seconds": work + rest(share) + meeting, "sums": meeting, "plan": ""}
    costs = {n: layer(n, batch) for n in found.layers}
    plans = [by_layer(costs, ranks)]
    if mode == "hybrid":
        # A run measures its meetings over all ranks; the best of teams that meet within less is what it could have.
        most, sizes = max(found.iterations.values()), sum(found.sizes.values())
        plans += [hybrid(costs, ranks, most * machine.sum_over(size, sizes)) for size in RANKS if size <= ranks]
    plan = min(plans, key=lambda plan: _of_teams(plan, found, machine, batch, layer))
    work, meeting = _of_teams(plan, found, machine, batch, layer)
    # Weights and momentum of all feedback layers, and the forward gradients; the rest of the batch is done by all.
    exchange = machine.sum_over(ranks, 2 * sum(found.sizes.values())) + machine.sum_over(ranks, found.forward)
    seconds = work + rest(batch) + exchange
    return {"seconds": seconds, "sums": meeting + exchange, "plan": str(plan)}


def _of_teams(plan: Assignment, found: Measured, machine: Machine, batch: int, layer) -> tuple[float, float]:
    """Time of the team that ends last, and what of it are sums over its ranks."""
    times = []
    for team in plan.teams:
        size = len(team.ranks)
        nearest = min(found.rest, key=lambda images: abs(images - batch / size))
        work = sum(layer(n, nearest) * (batch / size / nearest if size > 1 else 1) for n in team.layers)
        sums = 0.0
        if size > 1:
            most = max(found.iterations[n] for n in team.layers)
            for k in range(most):
                sums += machine.sum_over(size, sum(found.sizes[n] for n in team.layers if found.iterations[n] > k))
        times.append((work + sums, sums))
    return max(times)


def draw(table: list[dict], path: Path, title: str) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for mode, marker in zip(MODES, "os^D", strict=True):
        rows = [row for row in table if row["mode"] == mode]
        ranks = [row["gpus"] for row in rows]
        left.plot(ranks, [row["speedup"] for row in rows], marker=marker, label=LABELS.get(mode, mode))
        right.plot(ranks, [row["milliseconds"] for row in rows], marker=marker, label=LABELS.get(mode, mode))
    left.plot(RANKS, RANKS, color="0.7", linestyle="--", label="ideal")
    for axis, label in ((left, "times faster than one GPU"), (right, "milliseconds per batch")):
        axis.set(xscale="log", yscale="log", xlabel="GPUs", ylabel=label, xticks=RANKS, xticklabels=map(str, RANKS))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    left.legend(title="--feedback-parallel", fontsize=8, title_fontsize=8)
    left.set_yticks(RANKS, map(str, RANKS))
    times = [row["milliseconds"] for row in table]
    ticks = [digit * 10**power for power in range(-1, 4) for digit in (1, 2, 5)]
    ticks = [tick for tick in ticks if 0.8 * min(times) <= tick <= 1.25 * max(times)]
    right.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vgg")
    parser.add_argument("--data", default="imagenet32", help="whose preset is used")
    parser.add_argument("--shape", type=int, nargs=3, default=[3, 32, 32], help="channels, height, width of the images")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, help="path without suffix, of a JSON file and a figure")
    parser.add_argument("--again", action="store_true", help="take from the JSON file at --output what it has")
    for name, value in asdict(Machine()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    o = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    o.device, o.contiguous, o.more = torch.device("cpu"), False, []
    machine = Machine(**{name: getattr(o, name) for name in asdict(Machine())})
    known = json.loads(o.output.with_suffix(".json").read_text())["measured"] if o.again else {}
    known = {name: _keys(value) for name, value in known.items()}
    for part, function in (("layers", measure), ("expected", measure_expected)):
        known |= {} if part in known else function(o)
    found = Measured(**known)
    table = []
    for mode in MODES:
        alone = predict(mode, 1, o.batch_size, found, machine)["seconds"]
        for ranks in RANKS:
            p = predict(mode, ranks, o.batch_size, found, machine)
            row = {"mode": mode, "gpus": ranks, "milliseconds": round(1000 * p["seconds"], 2)}
            row |= {"speedup": round(alone / p["seconds"], 2), "part_in_sums": round(p["sums"] / p["seconds"], 3)}
            table.append({**row, **({"assignment": p["plan"]} if p["plan"] else {})})
    print("| GPUs | " + " | ".join(f"{mode}, ms | times faster" for mode in MODES) + " |")
    print("|---|" + "---|---|" * len(MODES))
    for ranks in RANKS:
        rows = [row for row in table if row["gpus"] == ranks]
        print(f"| {ranks} | " + " | ".join(f"{_short(r['milliseconds'])} | {r['speedup']:.1f}" for r in rows) + " |")
    if o.output:
        host = {"processor": platform.processor() or "cpu", "cores": os.cpu_count(), "torch": torch.__version__}
        setting = {"model": o.model, "data": o.data, "batch_size": o.batch_size, "classes": o.classes, "threads": 1}
        result = {**setting, "host": host, "assumed": asdict(machine), "measured": asdict(found), "predicted": table}
        o.output.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
        what = f"{o.model} on {o.data}, batches of {o.batch_size}, GPUs of {machine.gpu_tflops:g} TFLOP/s"
        title = f"A model, not a measurement: {what}"
        draw(table, o.output.with_suffix(".png"), title)


def _short(milliseconds: float) -> str:
    return f"{milliseconds:.0f}" if milliseconds >= 20 else f"{milliseconds:.1f}"


def _keys(value):
    """JSON's keys back to layer numbers and numbers of images."""
    if not isinstance(value, dict):
        return value
    return {int(key) if key.isdigit() else key: _keys(item) for key, item in value.items()}


if __name__ == "__main__":
    main()
