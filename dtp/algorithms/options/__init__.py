"""The learning rules: name, class, one line, command-line options. Imports no torch, so that ``--help`` is quick.

A rule is registered in the file of its family: :func:`rule` before the dataclass of its options.
"""

# isort: off
# Lists of rules have the order of these lines.
from dtp.algorithms.options.base import (
    ALGORITHMS,
    AlgorithmOptions,
    FAMILY_NAMES,
    OptimizerName,
    Schedule,
    TargetOptions,
    TargetPropagationOptions,
    rule,
)
from dtp.algorithms.options.transposing import DTPOptions, ParallelDTPOptions
from dtp.algorithms.options.inverting import AOSDTPOptions, HybridOptions, SDTPOptions, TPOptions, VanillaDTPOptions
from dtp.algorithms.options.reconstruction import (
    DDTPControlOptions,
    DDTPLinearOptions,
    DDTPOptions,
    DDTPRHLOptions,
    DRLOptions,
    MeulemansOptions,
)
from dtp.algorithms.options.alignment import DFAOptions, FWDTPOptions, FeedbackAlignmentOptions, WeightMirrorOptions
from dtp.algorithms.options.settling import CHLOptions, ContrastiveOptions, GAITOptions, GeneRecOptions
from dtp.algorithms.options.shallow import (
    CompetitiveOptions,
    DeltaOptions,
    DenoisingAutoencoderOptions,
    HebbOptions,
    SingleLayerOptions,
)
from dtp.algorithms.options.passes import CCLOptions, DRTPOptions, DualPropOptions, PEPITAOptions
from dtp.algorithms.options.control import (
    ControlOptions,
    DFCOptions,
    DFCSSAOptions,
    DFCSSOptions,
    DynamicControlOptions,
    StrongDFCOptions,
)
# isort: on

__all__ = [
    "FAMILIES",
    "ALGORITHMS",
    "AlgorithmOptions",
    "FAMILY_NAMES",
    "OptimizerName",
    "Schedule",
    "TargetOptions",
    "TargetPropagationOptions",
    "rule",
    "DTPOptions",
    "ParallelDTPOptions",
    "AOSDTPOptions",
    "HybridOptions",
    "SDTPOptions",
    "TPOptions",
    "VanillaDTPOptions",
    "DDTPControlOptions",
    "DDTPLinearOptions",
    "DDTPOptions",
    "DDTPRHLOptions",
    "DRLOptions",
    "MeulemansOptions",
    "DFAOptions",
    "FWDTPOptions",
    "FeedbackAlignmentOptions",
    "WeightMirrorOptions",
    "CHLOptions",
    "ContrastiveOptions",
    "GAITOptions",
    "GeneRecOptions",
    "CompetitiveOptions",
    "DeltaOptions",
    "DenoisingAutoencoderOptions",
    "HebbOptions",
    "SingleLayerOptions",
    "CCLOptions",
    "DRTPOptions",
    "DualPropOptions",
    "PEPITAOptions",
    "ControlOptions",
    "DFCOptions",
    "DFCSSAOptions",
    "DFCSSOptions",
    "DynamicControlOptions",
    "StrongDFCOptions",
]

# The rules of each family, in the order in which they are registered.
FAMILIES = {
    family: tuple(entry.name for entry in ALGORITHMS.entries.values() if entry.family == family)
    for family in FAMILY_NAMES
}
