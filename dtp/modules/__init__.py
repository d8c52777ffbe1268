"""Building blocks of layers that PyTorch does not have. They know nothing of feedback or rules."""

from dtp.modules.locally_connected import LocallyConnected2d
from dtp.modules.residual import InnerFunction, ResidualUnit
from dtp.modules.same import SameConv2d
from dtp.modules.units import FirstUnits, SLReLU, Standardise, standardised

__all__ = [
    "FirstUnits",
    "InnerFunction",
    "LocallyConnected2d",
    "ResidualUnit",
    "SLReLU",
    "SameConv2d",
    "Standardise",
    "standardised",
]
