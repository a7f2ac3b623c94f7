"""A slice of traffic, as both worlds get it."""

import pathlib

import msgspec

from proxy.traces.generators import GENERATORS, generator
from proxy.traces.readers import read
from proxy.traces.shaping import between, faster, for_one_model, spread
from proxy.traces.workload import Workload


def slice_of(trace: str, *, from_s: float, requests: int, speed: float, spreads: bool) -> Workload:
    """So many requests from a second of the trace on. Raises TraceError.

    `spreads`: requests with one timestamp come spread until the next. Sent at once they would reach kvproxy
    in an order of their own.
    """
    if not pathlib.Path(trace).exists() and trace.partition(":")[0] in GENERATORS:
        workload = generator(trace).generate()
    else:
        workload = read([pathlib.Path(trace)])
    workload = for_one_model(spread(workload) if spreads else workload)
    workload = faster(between(workload, from_s), speed)
    if len(workload.requests) <= requests:
        return workload
    kept = workload.requests[:requests]
    source = f"{workload.source}; the first {requests} of them"
    return msgspec.structs.replace(workload, requests=kept, source=source)
