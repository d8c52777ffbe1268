"""Train deep networks by target propagation and its relatives."""

__version__ = "0.1.0"
