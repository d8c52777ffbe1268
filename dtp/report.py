"""``python -m dtp.report``, the former name of ``dtp report``."""

import sys

from dtp.cli.program import command

if __name__ == "__main__":
    sys.exit(command("dtp.experiments.report.command"))
