"""A model of the time of a batch of DTP with L-DRL on 1 to 64 GPUs, by images, by layers and hybrid: table and figure.

    python benchmarks/scaling.py --output benchmarks/results/scaling_vgg_imagenet32

Measured here: seconds of each feedback layer on one thread for whole and divided batches, seconds of the rest of a
batch (forward pass, targets, forward step), and the rate of the reduced form. Assumed, and stated in the result: the
rate of a GPU at the same arithmetic, what a feedback iteration takes at least (launches of kernels), and latency and
bandwidth of a sum over ranks within a node and between nodes. Change them by the options of the same names. Speed-up is
for a batch of constant size (strong scaling).
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

from dtp.algorithms.target_propagation import RulePhase
from dtp.distributed.assignment import Assignment, by_layer, hybrid
from dtp.feedback.loop import time_iterations
from dtp.memory import keep_freed_memory

RANKS = [1, 2, 4, 8, 16, 32, 64]
MODES = ["data", "layer", "hybrid"]


@dataclass(frozen=True)
class Machine:
    """What is assumed of the GPUs.

    Attributes:
        gpu_tflops: rate of the feedback phase's convolutions and of the rest of a batch, 1e12 operations a second.
        launch_us: least time of one feedback iteration of one layer.
        node: GPUs of a node.
        link_gb, link_us: bandwidth in 1e9 bytes a second and latency of a step of a sum over ranks within a node.
        network_gb, network_us: the same for one GPU between nodes.
    """

    gpu_tflops: float = 25.0
    launch_us: float = 40.0
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
    """What was measured on one thread.

    Attributes:
        layers: seconds of a batch's iterations of each layer, by number of images.
        rest: seconds of all but the feedback phase, by number of images.
        iterations: K_n of each layer.
        sizes: bytes of each layer's feedback weights.
        forward: bytes of the forward weights.
        tflops: rate of the feedback phase.
    """

    layers: dict[int, dict[int, float]]
    rest: dict[int, float]
    iterations: dict[int, int]
    sizes: dict[int, int]
    forward: int
    tflops: float


def measure(o: argparse.Namespace) -> Measured:
    """On images of noise, with the preset's network and iterations."""
    rule, layers, rest = make("reduced", o), {}, {}
    counts = sorted({max(1, o.batch_size // ranks) for ranks in RANKS})
    for images in counts:
        x, y = torch.randn(images, *o.shape), torch.randint(o.classes, (images,))
        activations = rule.activations(x)
        problems = RulePhase(rule, activations).problems(rule.trained_feedback)
        for problem in problems:
            layers.setdefault(problem.layer, {})[images] = min(time_iterations(problem) for _ in range(o.rounds))
        rest[images] = min(_seconds(lambda x=x, y=y: _rest(rule, x, y)) for _ in range(o.rounds + 1))
    operations = arithmetic("reduced", make("reduced", o), torch.randn(16, *o.shape))["counted_tflop"] / 16
    whole = sum(found[o.batch_size] for found in layers.values())
    return Measured(
        layers,
        rest,
        dict(rule.feedback_iterations),
        {n: sum(p.numel() * p.element_size() for p in rule.feedback[n].parameters()) for n in layers},
        sum(p.numel() * p.element_size() for p in rule.forward_parameters),
        operations * o.batch_size / whole,
    )


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

    if mode == "data":
        work = sum(layer(n, share) for n in found.layers)
        meeting = 0.0
        for k in range(max(found.iterations.values())):
            size = sum(found.sizes[n] for n, most in found.iterations.items() if most > k)
            meeting += machine.sum_over(ranks, size)
        meeting += machine.sum_over(ranks, found.forward)
        return {"seconds": work + found.rest[share] * faster + meeting, "sums": meeting, "plan": ""}
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
    seconds = work + found.rest[batch] * faster + exchange
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
    for mode, marker in zip(MODES, "os^", strict=True):
        rows = [row for row in table if row["mode"] == mode]
        ranks = [row["gpus"] for row in rows]
        left.plot(ranks, [row["speedup"] for row in rows], marker=marker, label=mode)
        right.plot(ranks, [row["milliseconds"] for row in rows], marker=marker, label=mode)
    left.plot(RANKS, RANKS, color="0.7", linestyle="--", label="ideal")
    for axis, label in ((left, "times faster than one GPU"), (right, "milliseconds per batch")):
        axis.set(xscale="log", yscale="log", xlabel="GPUs", ylabel=label, xticks=RANKS, xticklabels=map(str, RANKS))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(title="--feedback-parallel", fontsize=8, title_fontsize=8)
    left.set_yticks(RANKS, map(str, RANKS))
    times = [row["milliseconds"] for row in table]
    ticks = [t for t in (5, 10, 20, 50, 100, 200, 500, 1000, 2000) if 0.8 * min(times) <= t <= 1.25 * max(times)]
    right.set_yticks(ticks, map(str, ticks))
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
    parser.add_argument("--again", action="store_true", help="take what was measured from the JSON file at --output")
    for name, value in asdict(Machine()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    o = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    o.device, o.contiguous, o.more = torch.device("cpu"), False, []
    machine = Machine(**{name: getattr(o, name) for name in asdict(Machine())})
    if o.again:
        saved = json.loads(o.output.with_suffix(".json").read_text())["measured"]
        found = Measured(**{name: _keys(value) for name, value in saved.items()})
    else:
        found = measure(o)
    table = []
    for mode in MODES:
        alone = predict(mode, 1, o.batch_size, found, machine)["seconds"]
        for ranks in RANKS:
            p = predict(mode, ranks, o.batch_size, found, machine)
            row = {"mode": mode, "gpus": ranks, "milliseconds": round(1000 * p["seconds"], 2)}
            row |= {"speedup": round(alone / p["seconds"], 2), "part_in_sums": round(p["sums"] / p["seconds"], 3)}
            table.append({**row, **({"assignment": p["plan"]} if p["plan"] else {})})
    print("| GPUs |" + " | ".join(f"{mode}, ms | times faster" for mode in MODES) + " |")
    print("|---|" + "---|---|" * len(MODES))
    for ranks in RANKS:
        rows = [row for row in table if row["gpus"] == ranks]
        print(f"| {ranks} | " + " | ".join(f"{r['milliseconds']:.0f} | {r['speedup']:.1f}" for r in rows) + " |")
    if o.output:
        host = {"processor": platform.processor() or "cpu", "cores": os.cpu_count(), "torch": torch.__version__}
        setting = {"model": o.model, "data": o.data, "batch_size": o.batch_size, "classes": o.classes, "threads": 1}
        result = {**setting, "host": host, "assumed": asdict(machine), "measured": asdict(found), "predicted": table}
        o.output.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
        what = f"{o.model} on {o.data}, batches of {o.batch_size}, GPUs of {machine.gpu_tflops:g} TFLOP/s"
        title = f"A model, not a measurement: {what}"
        draw(table, o.output.with_suffix(".png"), title)


def _keys(value):
    """JSON's keys back to layer numbers and numbers of images."""
    return {int(key): _keys(item) for key, item in value.items()} if isinstance(value, dict) else value


if __name__ == "__main__":
    main()
