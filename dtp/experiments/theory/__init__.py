"""What the papers prove or show on small networks, measured and drawn. ``dtp theory NAME``."""
