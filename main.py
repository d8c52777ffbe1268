"""dtp train, from a checkout: python main.py --algo dtp --model vgg --data imagenet32. See --help."""

import sys

from dtp.cli.program import program

if __name__ == "__main__":
    sys.exit(program())
