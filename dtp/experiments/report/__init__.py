"""``dtp report RUNS...``: one page about many runs, beside what the papers report."""
