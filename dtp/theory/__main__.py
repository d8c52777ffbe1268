"""Measure what a paper proves, and draw it: python -m dtp.theory NAME [options of the study]."""

import sys

from dtp.program import command

if __name__ == "__main__":
    sys.exit(command("dtp.theory.command"))
