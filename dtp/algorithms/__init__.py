"""Learning rules. ``--algo`` chooses one; yours is a subclass of :class:`TargetPropagation` or :class:`Algorithm`."""

from dtp.algorithms.options import ALGORITHMS
from dtp.registry import lazy_attributes

CLASSES = {
    "Algorithm": "dtp.algorithms.base:Algorithm",
    "TargetPropagation": "dtp.algorithms.target_propagation:TargetPropagation",
    **ALGORITHMS.classes(),
}
__all__ = ["ALGORITHMS", *CLASSES]  # pyright: ignore[reportUnsupportedDunderAll] (loaded when asked for)

__getattr__ = lazy_attributes(__name__, CLASSES)
