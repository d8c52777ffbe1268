"""Memory settings of a process on a CPU, and the cores that it may use."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Parameters of glibc's mallopt, from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Let freed memory stay with the process, and large blocks come in large pages.

    Every tensor of a few MiB that is made and freed in each feedback iteration would otherwise be given back to the
    system and come again page by page: a quarter of a million page faults in one batch of a VGG, a tenth of its time.
    Only glibc has these settings; elsewhere nothing changes. Call it before the first large tensor is made.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    # 32 MiB is the most that glibc accepts; larger blocks are always mapped.
    if mallopt(_MMAP_THRESHOLD, 32 << 20):
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def importing_torch() -> Iterator[None]:
    """Stop garbage collection while torch and Lightning are imported, and keep it off the objects they have made.

    They make very many objects and keep them all. To search these again and again, and once more as the process ends,
    would slow down every command. Nothing changes where torch has been imported before, as in a user's own program.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
