"""A workload is written as lines that Mooncake's readers understand, with our own members where it says more.

What is written and read again is the same workload, but for the numbers of its blocks.
"""

import gzip
import pathlib
from typing import IO, cast

import msgspec

from proxy.errors import TraceError
from proxy.traces.blocks import MOONCAKE_BLOCK_TOKENS
from proxy.traces.numbering import numbered
from proxy.traces.readers.lines import Line
from proxy.traces.workload import TraceRequest, Workload

_encode = msgspec.json.Encoder().encode


def write(workload: Workload, path: pathlib.Path, *, plain: bool = False) -> None:
    """Write a workload, packed if the name ends in `.gz`. Raises TraceError.

    `plain`: with Mooncake's own four members alone, for tools that allow no others. Sessions and models are
    lost then; a closed loop or blocks of another size are refused.
    """
    try:
        if path.suffix == ".gz":
            # Without a name and a time in it, equal workloads are equal files.
            with path.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as file:
                _write(workload, cast(IO[bytes], file), plain=plain)
        else:
            with path.open("wb") as raw:
                _write(workload, raw, plain=plain)
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror or error}") from None


def _write(workload: Workload, file: IO[bytes], *, plain: bool) -> None:
    for index, request in enumerate(numbered(workload).requests):
        if plain and (request.after is not None or request.block_tokens != MOONCAKE_BLOCK_TOKENS):
            what = "waits for another" if request.after is not None else "has blocks of another size"
            raise TraceError(f"{workload.name}: request {index} {what}, which Mooncake's lines cannot say")
        file.write(_encode(_line(request, plain=plain)) + b"\n")


def _line(request: TraceRequest, *, plain: bool) -> Line:
    line = Line(
        timestamp=_ms(request.at_s),
        input_length=request.input_tokens,
        output_length=request.output_tokens,
        hash_ids=list(request.blocks),
    )
    if not plain:
        line.session_id, line.model, line.after = request.session, request.model, request.after
        if request.after is not None:
            line.delay = _ms(request.think_s)
        if (
            request.after is not None
            or request.session is not None
            or request.block_tokens != MOONCAKE_BLOCK_TOKENS
        ):
            line.block_tokens = request.block_tokens
    return line


def _ms(seconds: float) -> float:
    """Milliseconds, to the microsecond; whole ones without a fraction, as Mooncake has them."""
    ms = round(seconds * 1000, 3)
    return int(ms) if ms == int(ms) else ms
