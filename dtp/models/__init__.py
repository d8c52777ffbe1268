"""Forward networks: stacks of layers. ``--model`` chooses one; a user's own subclasses :class:`Network`."""

from dtp.registry import Entry, Registry, lazy_attributes

MODELS = Registry(
    "model",
    "dtp.models.network:Network",
    [
        Entry("mlp", "dtp.models.mlp:MLP", "dtp.models.options:MLPOptions", "fully connected, any widths"),
        Entry("lenet", "dtp.models.lenet:LeNet", "dtp.models.options:LeNetOptions", "2 convolutions, 2 linear layers"),
        Entry("vgg", "dtp.models.vgg:VGG", "dtp.models.options:VGGOptions", "Ernoult's SimpleVGG, 6 layers"),
    ],
)

_CLASSES = {
    "Network": "dtp.models.network:Network",
    "MLP": "dtp.models.mlp:MLP",
    "LeNet": "dtp.models.lenet:LeNet",
    "VGG": "dtp.models.vgg:VGG",
}
__all__ = ["MODELS", *_CLASSES]

__getattr__ = lazy_attributes(__name__, _CLASSES)
