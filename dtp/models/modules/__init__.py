"""Building blocks of layers that PyTorch lacks. They are independent of feedback and rules."""

from dtp.models.modules.discrete import Sign
from dtp.models.modules.locally_connected import LocallyConnected2d
from dtp.models.modules.residual import InnerFunction, PaddedShortcut, Residual, ResidualUnit
from dtp.models.modules.same import SameConv2d
from dtp.models.modules.stochastic import InputNoise, Probability, RandomOperation, Sample
from dtp.models.modules.transposed import TransposedLinear
from dtp.models.modules.uncut import Uncut
from dtp.models.modules.units import FirstUnits, SLReLU, Standardise, standardised

__all__ = [
    "FirstUnits",
    "InnerFunction",
    "InputNoise",
    "LocallyConnected2d",
    "PaddedShortcut",
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
