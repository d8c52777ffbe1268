"""``python -m dtp.sweep``, the former name of ``dtp sweep``."""

import sys

from dtp.cli.program import command

if __name__ == "__main__":
    sys.exit(command("dtp.experiments.sweep.command"))
