"""The common style of figures, and the figure of one run."""
