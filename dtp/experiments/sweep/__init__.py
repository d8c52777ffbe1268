"""Sweeps: many runs from one small YAML file, and one figure of them. ``dtp sweep NAME``."""
