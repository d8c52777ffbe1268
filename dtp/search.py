"""``python -m dtp.search``, the former name of ``dtp search``."""

import sys

from dtp.cli.program import command

if __name__ == "__main__":
    sys.exit(command("dtp.experiments.search.command"))
