"""Building blocks of layers that PyTorch does not have. They know nothing of feedback or rules."""

from dtp.modules.discrete import Sign
from dtp.modules.locally_connected import LocallyConnected2d
from dtp.modules.residual import InnerFunction, Residual, ResidualUnit
from dtp.modules.same import SameConv2d
from dtp.modules.stochastic import InputNoise, Probability, RandomOperation, Sample
from dtp.modules.transposed import TransposedLinear
from dtp.modules.uncut import Uncut
from dtp.modules.units import FirstUnits, SLReLU, Standardise, standardised

__all__ = [
    "FirstUnits",
    "InnerFunction",
    "InputNoise",
    "LocallyConnected2d",
    "Probability",
    "RandomOperation",
    "Residual",
    "ResidualUnit",
    "SLReLU",
    "SameConv2d",
    "Sample",
    "Sign",
    "Standardise",
    "TransposedLinear",
    "Uncut",
    "standardised",
]
