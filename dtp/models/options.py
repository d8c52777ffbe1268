"""The networks: name, class, one line, command-line options. Imports no torch, so that ``--help`` is quick."""

from dataclasses import dataclass, field
from typing import Literal

from dtp.fields import option
from dtp.registry import Registry

MODELS = Registry("model", "dtp.models.network:Network")
model = MODELS.register

ActivationName = Literal["elu", "relu", "leaky-relu", "tanh", "sigmoid", "sl-relu"]
Init = Literal["default", "xavier", "xavier-normal", "kaiming", "orthogonal"]


@dataclass
class ModelOptions:
    """The forward network."""

    # Nonlinearity of every layer but the last. L-DRL needs a smooth one (elu or tanh): dead ReLU units leak targets.
    activation: ActivationName = option("elu", same_work=True)
    # Slope of leaky-relu below 0, and least slope of sl-relu; above 0 and below 1.
    leaky_slope: float = option(0.01, above=0, below=1, same_work=True, same_network=True)
    # First weights: PyTorch's own, Glorot's uniform (xavier) or normal ones, He's uniform ones for relu (kaiming), or
    # orthogonal matrices; all but PyTorch's own with biases of 0.
    init: Init = option("default", same_work=True, same_network=True)


@model("mlp", "mlp:MLP", "fully connected, any widths")
@dataclass
class MLPOptions(ModelOptions):
    """Fully connected layers."""

    # Units of each hidden layer, each at least 1; without values the network is one linear layer.
    widths: list[int] = option([256, 256], least=1)
    # Whether layers have biases.
    bias: bool = option(True, same_work=True)
    # Whether the last hidden layer has one too, where layers have; the code of Meulemans et al. leaves it out for some
    # rules.
    last_hidden_bias: bool = option(True, before=True, only_with={"bias": True})
    # Share of the units of each hidden layer that each training batch drops, after the nonlinearity; from 0 to below 1.
    dropout: float = option(0.0, least=0, below=1, same_work=True, before=0.0)
    # Standardise over the batch, without parameters: after no layer (none), after the nonlinearity of each hidden layer
    # (hidden), or of the output too (all).
    standardise: Literal["none", "hidden", "all"] = option("none", same_work=True)
    # Standardise by the statistics of the test batch in evaluation too, as the code of Shibuya et al. does, in place of
    # running ones. Results then depend on the batches.
    batch_statistics_at_test: bool = option(False, same_work=True, same_network=True)


@model("lenet", "lenet:LeNet", "2 convolutions, 2 linear layers")
@dataclass
class LeNetOptions(ModelOptions):
    """Two convolutions with overlapping max-pooling and two linear layers."""

    # Channels of the two convolutions, each at least 1.
    channels: list[int] = option([32, 64], least=1)
    # Units of the hidden linear layer, at least 1.
    hidden: int = option(512, least=1)


@model("lenet5", "lenet:LeNet5", "LeNet-5, 3 convolutions, 2 linear layers")
@dataclass
class LeNet5Options(ModelOptions):
    """LeNet-5 of Sanfiz and Akrout 2021 (biotorch); default as theirs for MNIST."""

    activation: ActivationName = "relu"
    init: Init = "xavier"
    # Channels of the three convolutions, each at least 1.
    channels: list[int] = option([6, 16, 120], least=1)
    # Side of the kernels of the convolutions, at least 1.
    kernel: int = option(5, least=1)
    # Zeros around the image, on each side, 0 or more: 2 make 32 pixels of the 28 of MNIST.
    padding: int = option(2, least=0)
    # Units of the hidden linear layer, at least 1.
    hidden: int = option(84, least=1)


@model("vgg", "vgg:VGG", "Ernoult's SimpleVGG, 6 layers")
@dataclass
class VGGOptions(ModelOptions):
    """3x3 convolutions, each followed by 2x2 max-pooling, and one linear layer."""

    # Channels of each convolution, at least 1; their number is the number of convolutions.
    channels: list[int] = option([128, 128, 256, 256, 512], least=1)


@model("resnet34", "resnet:ResNet34", "ResNet-34 for small images")
@model("resnet18", "resnet:ResNet18", "ResNet-18 for small images")
@dataclass
class ResNetOptions(ModelOptions):
    """Residual units of two 3x3 convolutions in four stages, for images of about 32x32 pixels."""

    # Channels of the stem and of the four stages, each at least 1; from the second stage on the stride is 2.
    channels: list[int] = option([64, 64, 128, 256, 512], least=1)
    # Batch normalisation after every convolution. Rules with feedback treat it as fixed while they compare passes.
    batch_norm: bool = False
    # What a layer of the learning rule is: one residual unit, or a whole stage (as in the code of Ernoult et al.).
    residual_layers: Literal["unit", "stage"] = "unit"
    # What passes a unit by where the shape changes: a 1x1 convolution (projection, option B of He et al. 2016), or the
    # input itself, every second pixel with channels of zeros around (padding, option A).
    shortcut: Literal["projection", "padding"] = option("projection", before="projection")


@model("resnet56", "resnet:ResNet56", "ResNet-56 for CIFAR-10")
@model("resnet20", "resnet:ResNet20", "ResNet-20 for CIFAR-10")
@dataclass
class CifarResNetOptions(ResNetOptions):
    """Residual units in three stages; default as He et al. 2016 for CIFAR-10, in the form of biotorch."""

    activation: ActivationName = "relu"
    init: Init = "xavier"
    # Channels of the stem and of the three stages, each at least 1; from the second stage on the stride is 2.
    channels: list[int] = option([16, 16, 32, 64], least=1)
    batch_norm: bool = True
    shortcut: Literal["projection", "padding"] = "padding"


@model("convnet", "locally_connected:ConvNet", "the same with shared weights")
@model("lc", "locally_connected:LocallyConnected", "Bartunov's locally connected network")
@dataclass
class LocallyConnectedOptions(ModelOptions):
    """Bartunov et al. 2018: strided layers without pooling, then fully connected ones; default as theirs for MNIST."""

    activation: ActivationName = "tanh"
    init: Init = "xavier"
    # Sides of the kernels of the strided layers, each at least 1, as many as --channels.
    kernels: list[int] = option([3, 3], least=1)
    # Channels of the strided layers, each at least 1.
    channels: list[int] = option([32, 64], least=1)
    # Strides of the strided layers, each at least 1, as many as --channels.
    strides: list[int] = option([2, 2], least=1)
    # Units of the fully connected hidden layers after them; may have no values.
    hidden: list[int] = option([1024], least=1)


@model("square", "square:Square", "square layers, for GAIT-prop")
@dataclass
class SquareOptions(ModelOptions):
    """Square layers for exact inverses (GAIT-prop): every layer has as many units as it reads from the one below."""

    activation: ActivationName = "leaky-relu"
    leaky_slope: float = 0.1
    init: Init = "orthogonal"
    # Units of each hidden layer, none larger than the one before it; units that the next layer does not read are
    # auxiliary. The first layer reads the whole image.
    widths: list[int] = option([500, 500, 500, 500, 500, 500], least=1)
    # Units of the output layer, of which the first are the classes and the rest auxiliary; 0: as the last hidden layer.
    outputs: int = option(0, least=0)
    # Whether the output layer is linear, as in the code of Dalm et al.; else it has the nonlinearity too.
    linear_output: bool = option(False, before=False)


@model("discrete", "discrete:Discrete", "fully connected, with signs alone between some layers (Lee 2018)")
@dataclass
class DiscreteOptions(ModelOptions):
    """Fully connected layers, some of which hear nothing but signs (Lee 2018); default as his for MNIST."""

    activation: ActivationName = "tanh"
    init: Init = "orthogonal"
    # Units of each hidden layer, each at least 1.
    widths: list[int] = option([500, 500], least=1)
    # Hidden layers, counted from 1, whose activations reach the next layer as signs, -1 or 1. What comes back from
    # there to a feedback layer are signs as well.
    discretised: list[int] = field(default_factory=lambda: [1])
    # What signs are to errors that go down through them, as those of bp do: the identity (straight-through), or their
    # true derivative 0, by which layers below learn nothing, but decay with --weight-decay (zero). With test-only the
    # training of any rule is without signs, and evaluation alone has them. Rules whose first target is a gradient
    # through a sign (vanilla-dtp where the last hidden layer is discretised) need the identity too.
    sign_gradient: Literal["straight-through", "zero", "test-only"] = "straight-through"


@model("stochastic", "stochastic:Stochastic", "fully connected, of stochastic binary units (Lee 2018)")
@dataclass
class StochasticOptions(ModelOptions):
    """Fully connected layers of binary units that are drawn anew in every pass (Lee 2018); default as his for MNIST."""

    # Without effect: units are 1 with the probability that a sigmoid gives.
    activation: Literal["sigmoid"] = "sigmoid"
    init: Init = "xavier"
    # Units of each hidden layer, each at least 1.
    widths: list[int] = option([200, 200], least=1)
    # Standard deviation of Gaussian noise on the images in training, 0 or more.
    input_noise: float = option(0.3, least=0)
    # Passes whose class probabilities evaluation averages, at least 1. Training takes one.
    passes: int = option(100, least=1)


@model(
    "tied-autoencoder",
    "tied_autoencoder:TiedAutoencoder",
    "two layers with one weight matrix, for --task autoencoder (Lee 2018)",
)
@dataclass
class TiedAutoencoderOptions(ModelOptions):
    """Encoder and decoder that share one weight matrix (Lee 2018); default as his for MNIST."""

    activation: ActivationName = "sigmoid"
    init: Init = "orthogonal"
    # Hidden units, at least 1.
    hidden: int = option(1000, least=1)
