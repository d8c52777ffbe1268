"""``python -m dtp.theory``, the former name of ``dtp theory``."""

import sys

from dtp.cli.program import command

if __name__ == "__main__":
    sys.exit(command("dtp.experiments.theory.command"))
