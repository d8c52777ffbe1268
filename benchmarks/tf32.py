"""What TensorFloat32 does to the feedback weights, by engine, emulated on any machine.

    python benchmarks/tf32.py --output benchmarks/results/tf32.json

Inputs of every matrix product and convolution of the feedback phase are rounded to TF32's mantissa of 10 bits (or
bfloat16's of 7); sums are in float32, as in the hardware. The feedback layers of a VGG of the given channels train
for 20 momentum steps on the same noise, and are compared with the literal form in float64: the difference, relative to
the way that the weights have gone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dtp.algorithms import DTP
from dtp.algorithms.options import DTPOptions
from dtp.models import VGG
from dtp.models.options import VGGOptions

PRODUCTS = {"convolution", "convolution_backward", "mm", "addmm", "bmm", "baddbmm", "linear"}
FORMATS = {"float32": 23, "tf32": 10, "bfloat16": 7}


class RoundedProducts(TorchDispatchMode):
    """Round the float32 inputs of products to ``bits`` bits of mantissa, to nearest."""

    def __init__(self, bits: int):
        super().__init__()
        self.bits = bits

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if self.bits < 23 and function.overloadpacket.__name__ in PRODUCTS:
            args = tuple(self._rounded(a) for a in args)
        return function(*args, **(kwargs or {}))

    def _rounded(self, x):
        if not isinstance(x, Tensor) or x.dtype != torch.float32:
            return x
        dropped = 23 - self.bits
        # Half a unit of the last place that stays, then the rest cut off.
        as_integers = x.contiguous().view(torch.int32) + (1 << (dropped - 1))
        return (as_integers >> dropped << dropped).view(torch.float32)


class SameNoise(DTP):
    """DTP whose noise is the same numbers for every number format: drawn in float64."""

    def __init__(self, network, options=None, seed=0):
        super().__init__(network, options, seed)
        self.generators: dict[int, torch.Generator] = {}

    def draw_noise(self, n, like):
        generator = self.generators.setdefault(n, torch.Generator().manual_seed(n))
        noise = torch.randn(like.shape, generator=generator, dtype=torch.float64)
        return (self.noise_scale(n) * noise).to(like)


def train(engine: str, bits: int, dtype: torch.dtype, o: argparse.Namespace, trained: bool) -> dict[int, Tensor]:
    """Feedback weights by layer after 20 steps; ``trained``: from the transposes, where gradients are small."""
    torch.manual_seed(0)
    network = VGG(VGGOptions(channels=o.channels), (3, 32, 32), 10)
    options = DTPOptions(
        engine=engine,
        routing=o.routing,
        noise=[0.4, 0.4, 0.2, 0.2, 0.08],
        feedback_iterations=[20],
        feedback_init="symmetric" if trained else "random",
    )
    rule = SameNoise(network, options).to(dtype)
    rule.configure_optimizers()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(o.batch_size, 3, 32, 32, generator=generator).to(dtype)
    # The clean pass is exact: what is asked is the error of the feedback phase, not that of another set of switches.
    activations = rule.activations(x, gradients=False)
    with RoundedProducts(bits):
        rule.feedback_phase(activations)
    return {n: rule.reduced_form(n).weight.detach().double() for n in rule.trained_feedback}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, nargs="*", default=[32, 32, 64, 64, 128])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--routing", choices=["noisy", "fixed"], default="fixed")
    parser.add_argument("--output", type=Path)
    o = parser.parse_args()
    result = {"channels": o.channels, "batch_size": o.batch_size, "routing": o.routing, "torch": torch.__version__}
    for start in ("random", "transposes"):
        trained = start == "transposes"
        first = train("literal", 23, torch.float64, o, trained)
        begun = initial(o, trained)
        for engine in ("literal", "reduced"):
            for name, bits in FORMATS.items():
                found = train(engine, bits, torch.float32, o, trained)
                # Relative to the way that the weights have gone, not to their size.
                errors = {n: float((found[n] - first[n]).norm() / (first[n] - begun[n]).norm()) for n in first}
                result[f"{engine}, {name}, from {start}"] = {str(n): float(f"{e:.2g}") for n, e in errors.items()}
    text = json.dumps(result, indent=2)
    print(text)
    if o.output:
        o.output.write_text(text + "\n")


def initial(o: argparse.Namespace, trained: bool) -> dict[int, Tensor]:
    """The weights that :func:`train` begins with."""
    torch.manual_seed(0)
    network = VGG(VGGOptions(channels=o.channels), (3, 32, 32), 10)
    rule = DTP(network, DTPOptions(feedback_init="symmetric" if trained else "random"))
    return {n: rule.reduced_form(n).weight.detach().double() for n in rule.trained_feedback}


if __name__ == "__main__":
    main()
