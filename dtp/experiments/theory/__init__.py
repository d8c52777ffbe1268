"""Measurements and figures of what the papers prove or show on small networks. ``dtp theory NAME``."""
