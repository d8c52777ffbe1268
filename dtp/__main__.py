"""The same as main.py, wherever one is: python -m dtp --algo dtp."""

import sys

from dtp.program import program

if __name__ == "__main__":
    sys.exit(program())
