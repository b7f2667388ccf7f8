"""Memory of the C library: kept for the next tensor, instead of given back to the system after each."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST, _LARGEST_OF_OLD = 2**31 - 1, 2**25  # glibc before 2.35 takes no more for the second
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


@cache
def keep_freed_memory() -> bool:
    """Have glibc keep freed memory in this process; whether it does. Said once, it holds until the process ends.

    By default glibc takes large tensors from the system and gives them back when they are freed, and the system fills
    each page with zeros anew. A language model on a CPU does that for every layer. The process keeps what
    it has taken until it ends, and may take more, where what was freed is in pieces that nothing fits.

    Nothing is done where the environment already tells the C library what to do (a variable of `SETTINGS` is set), or
    where there is no glibc.

    >>> keep_freed_memory() in (True, False)
    True
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    kept = mallopt(_MMAP_THRESHOLD, _LARGEST) or mallopt(_MMAP_THRESHOLD, _LARGEST_OF_OLD)
    return bool(kept and mallopt(_TRIM_THRESHOLD, _LARGEST))
