"""Workloads for tests."""

import pathlib
from collections.abc import Mapping, Sequence

import msgspec
from hypothesis import strategies as st

from proxy.traces.workload import TraceRequest, Workload


def request(at_s: float = 0.0, blocks: Sequence[int] = (0,), **more: object) -> TraceRequest:
    """A request whose prompt fills its blocks of 512 tokens."""
    given = {"input_tokens": 512 * len(blocks), "output_tokens": 10, "block_tokens": 512, **more}
    return msgspec.convert({"at_s": at_s, "blocks": list(blocks), **given}, TraceRequest)


def workload(*requests: TraceRequest) -> Workload:
    """A workload of them."""
    return Workload("given", list(requests), "by hand")


def json_lines(path: pathlib.Path, *lines: Mapping[str, object] | str) -> pathlib.Path:
    """A file of lines of JSON; a line that is text is written as it is."""
    path.write_text(
        "".join(
            (line if isinstance(line, str) else msgspec.json.encode(line).decode()) + "\n" for line in lines
        )
    )
    return path


@st.composite
def workloads(draw: st.DrawFn, *, plain: bool = False) -> Workload:
    """Any workload whose times are whole milliseconds; `plain`: with what Mooncake's files can say alone."""
    requests: list[TraceRequest] = []
    at_ms = 0
    for index in range(draw(st.integers(1, 12))):
        at_ms += draw(st.integers(0, 5000)) if index else 0
        size = 512 if plain else draw(st.sampled_from((16, 64, 512)))
        tokens = draw(st.integers(1, 5 * size))
        blocks = tuple(draw(st.integers(0, 6)) for _ in range(-(-tokens // size)))
        session = None if plain else draw(st.none() | st.sampled_from(("a", "b")))
        after = None if plain or not index else draw(st.none() | st.integers(0, index - 1))
        think_s = draw(st.integers(0, 90_000)) / 1000 if after is not None else 0.0
        requests.append(
            TraceRequest(
                requests[after].at_s if after is not None else at_ms / 1000,
                tokens,
                draw(st.integers(1, 3000)),
                blocks,
                size,
                session=session,
                after=after,
                think_s=think_s,
                model=None if plain else draw(st.none() | st.just("other")),
            )
        )
    return Workload("any", requests, "hypothesis")
