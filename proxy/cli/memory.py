"""Memory that is free can be used again, or goes back to the system: a kvproxy that runs for months stays as
it was.

glibc's malloc gives each thread a region of its own, from which nobody else is served, and once a large piece
was freed it takes the next large ones from the heap, between small ones that outlive them. Each growing
dictionary then leaves a hole behind. Here the event loop has one region and all other threads together
another, and large pieces are mapped and unmapped on their own. Whoever sets malloc's own variables is left
alone.
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
    _M_MMAP_THRESHOLD: 512 << 10,  # well above what one request usually takes: mapping costs microseconds
    _M_TRIM_THRESHOLD: 4 << 20,  # so much that is free stays in each of the two regions
    _M_TOP_PAD: 1 << 20,
}


def keep_tidy() -> bool:
    """Tell malloc, before threads are started; False, and nothing done, where it is not glibc's or was
    told already.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt: Callable[[int, int], int] = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return min(mallopt(name, value) for name, value in _SETTINGS.items()) > 0
