"""Runs without what costs a short one more than its training and no test asks for."""

import functools
import importlib.metadata
import os

from dtp.run import provenance


def make_runs_cheap() -> None:
    # What is written outlives a killed process without it; of power that goes off no test knows.
    os.fsync = lambda file: None
    # No commit is made while tests run; git looks at all files, though.
    provenance.commit = functools.cache(provenance.commit)
    # Nothing is installed either; each trainer reads of all packages what they offer.
    importlib.metadata.entry_points = functools.cache(importlib.metadata.entry_points)
