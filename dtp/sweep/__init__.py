"""Sweeps: many runs from one small YAML file, and one figure of them. ``python -m dtp.sweep NAME``."""
