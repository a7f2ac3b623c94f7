"""Freed memory is used again, or goes back to the system, so that kvproxy does not grow in months.

glibc's malloc gives each thread a region of its own, which serves no other thread; and once a large piece was
freed, it takes the next large ones from the heap, between small ones that live longer. Each growing
dictionary then leaves a hole behind. Here the event loop has one region and all other threads together
another, and large pieces are mapped and unmapped one by one. If malloc's own environment variables are set,
nothing is changed.
"""

import ctypes
import os
from collections.abc import Callable

# <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_SETTINGS = {
    _M_ARENA_MAX: 2,
    _M_MMAP_THRESHOLD: 512
    << 10,  # much more than one request usually takes: to map a piece costs microseconds
    _M_TRIM_THRESHOLD: 4 << 20,  # the free memory that stays in each of the two regions
    _M_TOP_PAD: 1 << 20,
}


def keep_tidy() -> bool:
    """Set up malloc; call it before threads are started. Returns False, and does nothing, if malloc is not
    glibc's or was set up by its variables.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt: Callable[[int, int], int] = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return min(mallopt(name, value) for name, value in _SETTINGS.items()) > 0
