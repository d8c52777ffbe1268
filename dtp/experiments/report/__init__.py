"""``dtp report RUNS...``: one page about many runs, beside the figures of the papers."""
