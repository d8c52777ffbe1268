"""Forward networks: stacks of layers. ``--model`` chooses one; your own is a subclass of :class:`Network`."""

from dtp.registry import Entry, Registry, lazy_attributes

_OPTIONS = "dtp.models.options:"
_BARTUNOV = "dtp.models.locally_connected:"

MODELS = Registry(
    "model",
    "dtp.models.network:Network",
    [
        Entry("mlp", "dtp.models.mlp:MLP", _OPTIONS + "MLPOptions", "fully connected, any widths"),
        Entry("lenet", "dtp.models.lenet:LeNet", _OPTIONS + "LeNetOptions", "2 convolutions, 2 linear layers"),
        Entry("vgg", "dtp.models.vgg:VGG", _OPTIONS + "VGGOptions", "Ernoult's SimpleVGG, 6 layers"),
        Entry("resnet18", "dtp.models.resnet:ResNet18", _OPTIONS + "ResNetOptions", "ResNet-18 for small images"),
        Entry("resnet34", "dtp.models.resnet:ResNet34", _OPTIONS + "ResNetOptions", "ResNet-34 for small images"),
        Entry(
            "lc",
            _BARTUNOV + "LocallyConnected",
            _OPTIONS + "LocallyConnectedOptions",
            "Bartunov's locally connected network",
        ),
        Entry("convnet", _BARTUNOV + "ConvNet", _OPTIONS + "LocallyConnectedOptions", "the same with shared weights"),
        Entry("square", "dtp.models.square:Square", _OPTIONS + "SquareOptions", "square layers, for GAIT-prop"),
        Entry(
            "discrete",
            "dtp.models.discrete:Discrete",
            _OPTIONS + "DiscreteOptions",
            "fully connected, with signs alone between some layers (Lee 2018)",
        ),
        Entry(
            "stochastic",
            "dtp.models.stochastic:Stochastic",
            _OPTIONS + "StochasticOptions",
            "fully connected, of stochastic binary units (Lee 2018)",
        ),
        Entry(
            "tied-autoencoder",
            "dtp.models.tied_autoencoder:TiedAutoencoder",
            _OPTIONS + "TiedAutoencoderOptions",
            "two layers with one weight matrix, for --task autoencoder (Lee 2018)",
        ),
    ],
)

CLASSES = {"Network": "dtp.models.network:Network", "as_network": "dtp.models.cutting:as_network"} | {
    entry.target.partition(":")[2]: entry.target for entry in MODELS.entries.values()
}
__all__ = ["MODELS", *CLASSES]  # pyright: ignore[reportUnsupportedDunderAll] (loaded when asked for)

__getattr__ = lazy_attributes(__name__, CLASSES)
