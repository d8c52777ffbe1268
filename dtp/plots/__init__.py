"""What figures share, and the figure of one run."""
