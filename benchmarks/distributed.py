"""Time, collectives and bytes of the feedback phase of a batch on one rank and on several, one thread each.

    python benchmarks/distributed.py --model vgg --data cifar10 --shape 3 32 32 --rounds 5

All ways are measured in turn in the same processes, between barriers, so that the slowest rank counts: ``one`` on rank
0 alone; ``data``, ``data, once per batch``, ``layer`` and ``hybrid`` as in training; ``naive``: one collective for each
layer and iteration, waited for at once; ``one, expected`` and ``data, expected``: the mean over the noise, ``--probes
expected --routing fixed``; ``ddp``: torch's DistributedDataParallel with a search for unused parameters around the
literal loss, one backward pass for each layer and iteration (a single round, for its collectives and bytes).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from engines import make, synchronize
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dtp.algorithms.target_propagation import TargetPropagation
from dtp.distributed.averaging import GradientAverage
from dtp.distributed.division import ByImages, ByImagesOncePerBatch, ByLayers, Division
from dtp.system.memory import keep_freed_memory


class Naive(ByImages):
    """Gradients averaged for each layer and iteration on its own, with nothing to do meanwhile."""

    def train(self, phase):
        problems = phase.problems(phase.layers)
        averages = {p.layer: GradientAverage({p.layer: p.parameters}) for p in problems}

        def average(gradients):
            means = {n: averages[n]({n: values})()[n] for n, values in gradients.items()}
            return lambda: means

        return phase.train(problems, average)


DIVISIONS = {
    "one": Division,
    "data": ByImages,
    "data, once per batch": ByImagesOncePerBatch,
    "layer": lambda: ByLayers(teams=False, say=lambda text: None),
    "hybrid": lambda: ByLayers(teams=True, say=lambda text: None),
    "naive": Naive,
    "one, expected": Division,
    "data, expected": ByImages,
}


class Counter:
    """Sums over ranks, and their bytes, while it is entered."""

    def __enter__(self) -> Counter:
        self.collectives = self.bytes = 0
        self._original = dist.all_reduce

        def counting(tensor, *args, **kwargs):
            self.collectives += 1
            self.bytes += tensor.numel() * tensor.element_size()
            return self._original(tensor, *args, **kwargs)

        dist.all_reduce = counting
        return self

    def __exit__(self, *error) -> None:
        dist.all_reduce = self._original


class LayerLosses(nn.Module):
    """The literal loss of one layer and iteration, as a module whose parameters are all feedback weights."""

    def __init__(self, rule: TargetPropagation):
        super().__init__()
        self.weights, self._rule = rule.feedback, [rule]

    def forward(self, n: int, activations, noise):
        return self._rule[0].feedback_loss(n, activations, noise)


def with_ddp(rule: TargetPropagation, x: torch.Tensor) -> dict[str, float]:
    """A feedback phase under DistributedDataParallel: seconds, collectives, bytes of the gradients."""
    activations = rule.activations(x, gradients=False)
    model = DistributedDataParallel(LayerLosses(rule), find_unused_parameters=True)
    found = {"collectives": 0, "bytes": 0}

    def hook(state, bucket):
        found["collectives"] += 1
        found["bytes"] += bucket.buffer().numel() * bucket.buffer().element_size()
        work = dist.all_reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True)
        return work.get_future().then(lambda future: future.value()[0])

    model.register_comm_hook(None, hook)
    dist.barrier()
    begin = time.perf_counter()
    for n, count in rule.feedback_iterations.items():
        for _ in range(count):
            rule.feedback_optimizers[n].zero_grad()
            model(n, activations, rule.feedback_noise(n, activations)).backward()
            rule.feedback_optimizers[n].step()
            # Which parameters were used is summed over ranks in each backward pass too, by DDP itself.
            found["collectives"] += 1
    dist.barrier()
    return {**found, "seconds": time.perf_counter() - begin}


def divided(name: str, o: argparse.Namespace) -> TargetPropagation:
    rule = make("expected" if name.endswith("expected") else "reduced", o)
    rule.divide_by(DIVISIONS[name]())
    return rule


def in_rank(rank: int, o: argparse.Namespace, port: int) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    o.device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("nccl" if o.device.type == "cuda" else "gloo", rank=rank, world_size=o.ranks)
    torch.manual_seed(0)
    x = torch.randn(o.batch_size, *o.shape).to(o.device)
    rules = {name: divided(name, o) for name in o.ways}
    seconds: dict[str, list[float]] = {name: [] for name in rules}
    traffic, assignments = {}, {}
    for turn in range(o.rounds + 1):
        for name, rule in rules.items():
            activations = rule.activations(x[rank :: o.ranks] if rule.division.shares_images else x, gradients=False)
            dist.barrier()
            begin = time.perf_counter()
            with Counter() as counter:
                if not name.startswith("one") or rank == 0:
                    rule.feedback_phase(activations)
                    synchronize(o.device)
            dist.barrier()
            seconds[name].append(time.perf_counter() - begin)
            if turn == 1:
                traffic[name] = {"collectives": counter.collectives, "megabytes": counter.bytes / 1e6}
                if isinstance(rule.division, ByLayers):
                    assignments[name] = str(rule.division.assignment)
    if o.ddp:
        found = with_ddp(make("literal", o), x[rank :: o.ranks])
        traffic["ddp"] = {"collectives": found["collectives"], "megabytes": found["bytes"] / 1e6}
        seconds["ddp"] = [0.0, found["seconds"]]
    if rank == 0:
        report(o, rules, seconds, traffic, assignments)
    dist.barrier()
    dist.destroy_process_group()


def report(o: argparse.Namespace, rules, seconds, traffic, assignments) -> None:
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    result = {
        "model": o.model,
        "shape": o.shape,
        "batch_size": o.batch_size,
        "iterations": list(next(iter(rules.values())).feedback_iterations.values()),
        "ranks": o.ranks,
        "threads_per_rank": 1,
        "rounds": o.rounds,
        "device": torch.cuda.get_device_name() if o.device.type == "cuda" else f"{platform.processor() or 'cpu'}",
        "cores": os.cpu_count(),
        "load_at_the_end": os.getloadavg()[0],
        "torch": torch.__version__,
        "milliseconds": {name: round(1000 * value, 2) for name, value in medians.items()},
        "all_milliseconds": {name: [round(1000 * t, 1) for t in times[1:]] for name, times in seconds.items()},
        "times_faster_than_one": {n: round(medians["one"] / m, 2) for n, m in medians.items() if "one" in medians},
        "expected_times_faster_than_one": {
            n: round(medians["one, expected"] / m, 2)
            for n, m in medians.items()
            if n.endswith("expected") and "one, expected" in medians
        },
        "traffic_per_batch": traffic,
        "assignments": assignments,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if o.output:
        o.output.write_text(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vgg")
    parser.add_argument("--data", default="cifar10", help="whose preset is used")
    parser.add_argument("--shape", type=int, nargs=3, default=[3, 32, 32], help="channels, height, width of the images")
    parser.add_argument("--batch-size", type=int, default=128, help="over all ranks")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="*", default=list(DIVISIONS), choices=DIVISIONS)
    parser.add_argument("--ddp", action="store_true", help="also one round under DistributedDataParallel")
    parser.add_argument("--port", type=int, default=29611)
    parser.add_argument("--output", type=Path)
    parser.add_argument("more", nargs="*", help="further options of --algo dtp, after --")
    o = parser.parse_args()
    o.contiguous = False
    # Each rank imports torch with one thread, as a rank on one core has.
    os.environ["OMP_NUM_THREADS"] = "1"
    mp.start_processes(in_rank, (o, o.port), nprocs=o.ranks, start_method="spawn")


if __name__ == "__main__":
    main()
