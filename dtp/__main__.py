"""The command dtp as a Python module: python -m dtp train. Without the name of a command it trains, as main.py does."""

import sys

from dtp.cli.program import COMMANDS, console, program

if __name__ == "__main__":
    named = len(sys.argv) > 1 and sys.argv[1] in (*COMMANDS, "--version")
    sys.exit(console() if named else program())
