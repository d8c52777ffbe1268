"""Run a sweep and draw it: python -m dtp.sweep NAME [options of main.py for all its runs]."""

import sys

from dtp.program import command

if __name__ == "__main__":
    sys.exit(command("dtp.sweep.command"))
