"""Learning rules. ``--algo`` chooses one; a user's own subclasses :class:`TargetPropagation` or :class:`Algorithm`."""

from dtp.registry import Entry, Registry, lazy_attributes

_OPTIONS = "dtp.algorithms.options:"

ALGORITHMS = Registry(
    "algo",
    "dtp.algorithms.base:Algorithm",
    [
        Entry("dtp", "dtp.algorithms.dtp:DTP", _OPTIONS + "DTPOptions", "DTP with L-DRL (Ernoult et al. 2022)"),
        Entry(
            "parallel-dtp",
            "dtp.algorithms.dtp:ParallelDTP",
            _OPTIONS + "ParallelDTPOptions",
            "DTP with L-DRL, one feedback step per batch on many noise samples",
        ),
        Entry(
            "vanilla-dtp",
            "dtp.algorithms.vanilla_dtp:VanillaDTP",
            _OPTIONS + "VanillaDTPOptions",
            "difference target propagation (Lee et al. 2015)",
        ),
        Entry("tp", "dtp.algorithms.tp:TP", _OPTIONS + "TPOptions", "target propagation (Bengio 2014, Lee 2018)"),
        Entry("bp", "dtp.algorithms.bp:BP", _OPTIONS + "AlgorithmOptions", "backpropagation, the baseline"),
    ],
)

_CLASSES = {
    "Algorithm": "dtp.algorithms.base:Algorithm",
    "TargetPropagation": "dtp.algorithms.target_propagation:TargetPropagation",
    "BP": "dtp.algorithms.bp:BP",
    "DTP": "dtp.algorithms.dtp:DTP",
    "ParallelDTP": "dtp.algorithms.dtp:ParallelDTP",
    "TP": "dtp.algorithms.tp:TP",
    "VanillaDTP": "dtp.algorithms.vanilla_dtp:VanillaDTP",
}
__all__ = ["ALGORITHMS", *_CLASSES]

__getattr__ = lazy_attributes(__name__, _CLASSES)
