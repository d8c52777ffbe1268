"""What the papers prove or show on small networks, measured and drawn. ``python -m dtp.theory NAME``."""
