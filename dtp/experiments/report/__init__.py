"""``dtp report RUNS...``: one page about many runs, beside the figures of the papers."""

# Who wrote a page, a board or their numbers, as these say; and what earlier versions said.
WRITER, FORMER_WRITER = "dtp report", "python -m dtp.report"
