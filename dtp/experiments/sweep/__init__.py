"""Sweeps: many runs from one small YAML file, with one figure. ``dtp sweep NAME``."""
