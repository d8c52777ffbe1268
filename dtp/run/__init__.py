"""One run: its trainer, its folder, and how to load it."""
