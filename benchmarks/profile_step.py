"""Where the time of a batch goes: the operations or kernels that take most of it, and how long the device idles.

python benchmarks/profile_step.py --model vgg --data cifar10 --shape 3 32 32 --engine graph --tf32
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from engines import UNITS, choose_algorithms, make, synchronize
from torch.profiler import ProfilerActivity, profile

from dtp.system.memory import keep_freed_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vgg")
    parser.add_argument("--data", default="cifar10", help="whose preset is used")
    parser.add_argument("--shape", type=int, nargs=3, default=[3, 32, 32])
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--engine", default="reduced", choices=[*UNITS, "bp"])
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--rows", type=int, default=25)
    parser.add_argument("--contiguous", action="store_true")
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument("--output", type=Path)
    parser.add_argument("more", nargs="*", help="further options of --algo dtp, after --")
    o = parser.parse_args()
    keep_freed_memory()
    o.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    choose_algorithms(o.device, o.tf32)
    rule = make(o.engine, o)
    x = torch.randn(o.batch_size, *o.shape, device=o.device)
    y = torch.randint(o.classes, (o.batch_size,), device=o.device)
    for _ in range(3):
        rule.training_batch(x, y)
    on_gpu = o.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    synchronize(o.device)
    begin = time.perf_counter()
    with profile(activities=activities) as profiler:
        for _ in range(o.batches):
            rule.training_batch(x, y)
        synchronize(o.device)
    seconds = (time.perf_counter() - begin) / o.batches
    if on_gpu:
        rows = on_the_device(trace_of(profiler))
    else:
        rows = [Row(row.key, row.self_cpu_time_total, row.count) for row in profiler.key_averages()]
    rows.sort(key=lambda row: -row.microseconds)
    busy = sum(row.microseconds for row in rows) / 1e6 / o.batches
    result = {
        "engine": o.engine,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "tf32": o.tf32,
        "tried_algorithms": torch.backends.cudnn.benchmark,
        "torch": torch.__version__,
        "milliseconds_per_batch": round(1000 * seconds, 3),
        # Kernels of several streams may run at the same time: then this is more than the time that passed.
        "milliseconds_of_kernels_per_batch": round(1000 * busy, 3),
        "kernels_per_batch": round(sum(row.count for row in rows) / o.batches),
        "most": [
            {
                "name": row.name[:100],
                "milliseconds": round(row.microseconds / 1000 / o.batches, 3),
                "calls": round(row.count / o.batches, 1),
            }
            for row in rows[: o.rows]
        ],
    }
    text = json.dumps(result, indent=2)
    print(text)
    if o.output:
        o.output.write_text(text + "\n")


@dataclass(frozen=True)
class Row:
    """All calls of one operation or kernel."""

    name: str
    microseconds: float
    count: int


def on_the_device(events: Iterable[dict[str, Any]]) -> list[Row]:
    """What ran on the device: kernels, copies and fills, by name, from the events of a trace.

    Annotations and the steps of the profiler have ranges on the device as well, which hold the kernels.
    """
    durations = defaultdict(list)
    for event in events:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            durations[event["name"]].append(event["dur"])
    return [Row(name, sum(each), len(each)) for name, each in durations.items()]


def trace_of(profiler: profile) -> list[dict[str, Any]]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return json.loads(path.read_text())["traceEvents"]


if __name__ == "__main__":
    main()
