"""How near L-DRL in expectation comes to what many noise probes do: distances of the feedback weights.

    OMP_NUM_THREADS=1 python benchmarks/probes.py --data-dir DIR --output benchmarks/results/probes.json

A small VGG of random weights, which stay as they are, trains its feedback weights in three batches with the published
iterations, noise and rates: with noise samples in each iteration, 16 as a reference, and by ``--probes expected``. A
distance is that of a layer's feedback weights at the end to the reference's, relative to how far those went.

With ``--routing fixed`` the mean is known, with 5 nodes or in the limit of small noise (1 node). With ``noisy`` the
first term of layers with max-pooling is drawn, once per batch with some samples. The reference has an error of its own:
what is exact is as far from it as ``reference, other noise`` is, divided by the square root of 2.

DIR holds train/CLASS/* and test/CLASS/* of CIFAR-10; without it images are smooth random ones. Rows that draw noise are
means over ``--seeds`` of it. A minute or two on one core.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dtp.algorithms import DTP
from dtp.cli.arguments import parse
from dtp.data import DATA
from dtp.models import VGG
from dtp.run.provenance import hardware, versions
from dtp.system.memory import keep_freed_memory

PROBES = "--algo dtp --model vgg --data cifar10 --probes"
REFERENCE_SEED, OTHER_SEED = 1000, 1001


def batches(o: argparse.Namespace) -> list[Tensor]:
    """Normalised images (B, 3, 32, 32), of the data or smooth random ones."""
    if o.data_dir:
        entry = DATA.resolve("imagefolder")
        data = entry.load()(entry.load_options()(data_dir=o.data_dir, batch_size=o.batch_size), seed=0)
        data.prepare_data()
        data.setup()
        return [x for (x, _), _ in zip(data.train_dataloader(), range(o.batches), strict=False)]
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(o.batches * o.batch_size, 3, 8, 8, generator=generator)
    smooth = F.interpolate(coarse, size=32, mode="bilinear")
    return list((smooth / smooth.std()).split(o.batch_size))


def train(words: str, seed: int, images: list[Tensor], o: argparse.Namespace) -> dict[int, Tensor]:
    """Feedback weights by layer, trained on each batch in turn by options of ``dtp``.

    All rules have the same first weights; ``seed`` is that of the noise.
    """
    config = parse(f"{PROBES} {words} --channels {' '.join(map(str, o.channels))}".split())
    torch.manual_seed(0)
    rule = DTP(VGG(config.model, (3, 32, 32), 10), config.algo, seed=seed)
    rule.to(memory_format=torch.channels_last)
    rule.configure_optimizers()
    for x in images:
        rule.feedback_phase(rule.activations(x, gradients=False))
    return {n: rule.reduced_form(n).weight.detach().double() for n in rule.trained_feedback}


def ways(routing: str, o: argparse.Namespace) -> dict[str, str]:
    """Options of each way by its name."""
    found = {
        "reference, other noise": f"sampled --noise-samples {o.reference}",
        "1 sample per iteration": "sampled --noise-samples 1",
    }
    if routing == "fixed":
        found |= {f"expectation, nodes: {count}": f"expected --probe-nodes {count}" for count in (5, 1)}
    else:
        found |= {f"first term from {m}": f"expected --noise-samples {m}" for m in o.samples}
    return {name: f"{words} --routing {routing}" for name, words in found.items()}


def measure(routing: str, images: list[Tensor], o: argparse.Namespace) -> dict[str, dict[int, float]]:
    """By way and layer, distances to the reference, means over seeds; and how far that went."""
    first = train(f"sampled --routing {routing}", 0, [], o)
    reference = train(f"sampled --routing {routing} --noise-samples {o.reference}", REFERENCE_SEED, images, o)
    gone = {n: float((v - first[n]).norm()) for n, v in reference.items()}
    result = {"how far the reference went": {n: float(f"{way:.4g}") for n, way in gone.items()}}
    for name, words in ways(routing, o).items():
        # In expectation there is nothing to draw.
        seeds = [OTHER_SEED] if name.startswith("reference") else [0] if "nodes" in name else o.seeds
        runs = [train(words, seed, images, o) for seed in seeds]
        means = {n: statistics.mean(float((run[n] - reference[n]).norm()) for run in runs) for n in reference}
        result[name] = {n: float(f"{means[n] / gone[n]:.3g}") for n in reference}
        print(f"{routing:6} {name:24} " + "  ".join(f"{d:.4f}" for d in result[name].values()), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder of CIFAR-10 with train/CLASS/*")
    parser.add_argument("--channels", type=int, nargs="*", default=[16, 16, 32, 32, 64])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--reference", type=int, default=16, help="noise samples per iteration of the reference")
    parser.add_argument(
        "--samples", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 64], help="of a drawn first term"
    )
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="of the noise")
    parser.add_argument("--routings", nargs="*", default=["fixed", "noisy"], choices=["fixed", "noisy"])
    parser.add_argument("--output", type=Path)
    o = parser.parse_args()
    keep_freed_memory()
    images = batches(o)
    settings = {name: value for name, value in vars(o).items() if name not in ("data_dir", "output")}
    result = {
        "images": "CIFAR-10" if o.data_dir else "smooth random images",
        **settings,
        "distances": {routing: measure(routing, images, o) for routing in o.routings},
        **hardware(),
        "versions": versions(),
    }
    if o.output:
        o.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
