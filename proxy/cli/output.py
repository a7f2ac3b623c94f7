"""A command whose reader has left (`kvproxy simulate ... | head`) ends without a word, as others do."""

import contextlib
import os
import sys
from collections.abc import Iterator

GONE = 141
"""The exit code of shells for SIGPIPE: 128 and the number of the signal."""


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """Exits with `GONE` if what is printed in the block has no reader any more."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered would be written, and fail again, as the interpreter ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        sys.exit(GONE)
