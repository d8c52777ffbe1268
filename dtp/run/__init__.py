"""One run: its trainer, its folder, and the ways back from it."""
