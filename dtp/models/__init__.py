"""Forward networks: stacks of layers. ``--model`` chooses one; your own is a subclass of :class:`Network`."""

from dtp.models.options import MODELS
from dtp.registry import lazy_attributes

CLASSES = {
    "Network": "dtp.models.network:Network",
    "as_network": "dtp.models.cutting:as_network",
    **MODELS.classes(),
}
__all__ = ["MODELS", *CLASSES]  # pyright: ignore[reportUnsupportedDunderAll] (loaded when asked for)

__getattr__ = lazy_attributes(__name__, CLASSES)
