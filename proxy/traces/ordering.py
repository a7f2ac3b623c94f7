"""Requests of a workload stand in the order of their arrival, and no request before the one it waits for."""

import itertools
from collections.abc import Iterable, Sequence

import msgspec

from proxy.traces.workload import TraceRequest


def in_order(requests: Sequence[TraceRequest]) -> list[TraceRequest]:
    """The requests by `at_s`, `after` adapted; among equal ones the order stays."""
    if all(a.at_s <= b.at_s for a, b in itertools.pairwise(requests)):
        return list(requests)
    return chosen(requests, sorted(range(len(requests)), key=lambda index: requests[index].at_s))


def chosen(requests: Sequence[TraceRequest], indices: Iterable[int]) -> list[TraceRequest]:
    """These requests, in this order. One that waited for a request that is not among them comes at `at_s`."""
    kept = list(indices)
    place = {index: new for new, index in enumerate(kept)}
    found = []
    for index in kept:
        request = requests[index]
        if request.after is not None and (after := place.get(request.after)) != request.after:
            think_s = request.think_s if after is not None else 0.0
            request = msgspec.structs.replace(request, after=after, think_s=think_s)
        found.append(request)
    return found
