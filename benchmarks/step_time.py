"""Time of one training batch of each rule as a ratio to backprop's, in one process, medians of interleaved rounds.

python benchmarks/step_time.py --model vgg --shape 3 32 32 --batch-size 32 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from dataclasses import replace
from typing import Any

import torch
from rules import deep_rules

from dtp.algorithms import ALGORITHMS
from dtp.algorithms.feedback_schedule import FeedbackSchedule
from dtp.cli.arguments import parse
from dtp.errors import UserError
from dtp.models import MODELS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--shape", type=int, nargs=3, default=[1, 28, 28], help="channels, height, width of the images")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--algos", nargs="*", help="default: all rules that take the network")
    parser.add_argument("--data", default="cifar10", help="whose preset is used, where there is one")
    parser.add_argument("--cpu-time", action="store_true", help="least CPU time of the thread, for a busy machine")
    options = parser.parse_args()
    clock, summary = (time.thread_time, min) if options.cpu_time else (time.perf_counter, statistics.median)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(options.batch_size, *options.shape, device=device)
    y = torch.randint(10, (options.batch_size,), device=device)
    rules = {}
    for algo in options.algos or deep_rules():
        config = parse(["--algo", algo, "--model", options.model, "--data", options.data])
        algo_options: Any = config.algo
        schedule = FeedbackSchedule.of(algo_options)
        if schedule.warmup_epochs or schedule.period > 1:
            # Both kinds of weights in every batch: an epoch of one kind is none to be compared.
            both = {"schedule": "sequential", "feedback_warmup_epochs": 0, "extra_feedback_epochs": 0}
            algo_options = replace(algo_options, **both)
        torch.manual_seed(0)
        network = MODELS.resolve(options.model).load()(config.model, options.shape, 10)
        try:
            rules[algo] = ALGORITHMS.resolve(algo).load()(network, algo_options).to(device)
        except UserError as error:
            if options.algos:
                sys.exit(f"{algo}: {error}")
            print(f"Left out {algo}: {error}", file=sys.stderr)
            continue
        rules[algo].configure_optimizers()
    seconds: dict[str, list[float]] = {algo: [] for algo in rules}
    for _ in range(options.rounds + 1):
        for algo, rule in rules.items():
            begin = clock()
            rule.training_batch(x, y)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[algo].append(clock() - begin)
    found = {algo: summary(times[1:]) for algo, times in seconds.items()}
    result = {
        "model": options.model,
        "batch_size": options.batch_size,
        "shape": options.shape,
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "milliseconds": {algo: round(1000 * value, 2) for algo, value in found.items()},
        "ratio_to_bp": {algo: round(value / found["bp"], 2) for algo, value in found.items() if "bp" in found},
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
