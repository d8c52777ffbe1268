"""One page about many runs: python -m dtp.report RUNS... [--output FILE.md]; or the board of all: --board RUNS..."""

import sys

from dtp.program import command

if __name__ == "__main__":
    sys.exit(command("dtp.report.command"))
