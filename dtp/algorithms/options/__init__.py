"""The learning rules: name, class, one line, command-line options. Imports no torch, so that ``--help`` is quick.

A rule is registered in the file for rules of its kind: :func:`rule` before the dataclass of its options.
"""

# isort: off
# Lists of rules have the order of these lines.
from dtp.algorithms.options.base import *
from dtp.algorithms.options.transposing import *
from dtp.algorithms.options.inverting import *
from dtp.algorithms.options.reconstruction import *
from dtp.algorithms.options.alignment import *
from dtp.algorithms.options.settling import *
from dtp.algorithms.options.shallow import *
from dtp.algorithms.options.passes import *
from dtp.algorithms.options.control import *
# isort: on

# The rules of each family, in the order in which they are registered.
FAMILIES = {
    family: tuple(entry.name for entry in ALGORITHMS.entries.values() if entry.family == family)
    for family in FAMILY_NAMES
}
