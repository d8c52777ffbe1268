"""Search for hyper-parameters: python -m dtp.search --algo sdtp --data mnist --trials 60. See --help."""

import sys

from dtp.program import command

if __name__ == "__main__":
    sys.exit(command("dtp.search.command"))
