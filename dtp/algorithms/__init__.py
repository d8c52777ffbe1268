"""Learning rules. ``--algo`` chooses one; yours is a subclass of :class:`TargetPropagation` or :class:`Algorithm`."""

from dtp.algorithms.options import RULES
from dtp.registry import Registry, lazy_attributes

ALGORITHMS = Registry("algo", "dtp.algorithms.base:Algorithm", RULES)

_BASES = ("dtp.algorithms.base:Algorithm", "dtp.algorithms.target_propagation:TargetPropagation")
CLASSES = {path.partition(":")[2]: path for path in (*_BASES, *(entry.target for entry in RULES))}
__all__ = ["ALGORITHMS", *CLASSES]  # pyright: ignore[reportUnsupportedDunderAll] (loaded when asked for)

__getattr__ = lazy_attributes(__name__, CLASSES)
