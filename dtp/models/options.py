"""Command-line options of the networks. Imports no torch, so that ``--help`` is quick."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class ModelOptions:
    """The forward network."""

    # Nonlinearity of every layer but the last. L-DRL needs a smooth one (elu or tanh): dead ReLU units leak targets.
    activation: Literal["elu", "relu", "leaky-relu", "tanh"] = "elu"


@dataclass
class MLPOptions(ModelOptions):
    """Fully connected layers."""

    # Units of each hidden layer, each at least 1; without values the network is one linear layer.
    widths: list[int] = field(default_factory=lambda: [256, 256])


@dataclass
class LeNetOptions(ModelOptions):
    """Two convolutions with overlapping max-pooling and two linear layers."""

    # Channels of the two convolutions, each at least 1.
    channels: list[int] = field(default_factory=lambda: [32, 64])
    # Units of the hidden linear layer, at least 1.
    hidden: int = 512


@dataclass
class VGGOptions(ModelOptions):
    """3x3 convolutions, each followed by 2x2 max-pooling, and one linear layer."""

    # Channels of each convolution, at least 1; their number is the number of convolutions.
    channels: list[int] = field(default_factory=lambda: [128, 128, 256, 256, 512])
