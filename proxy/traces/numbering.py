"""Ids of blocks mean nothing but which of them are equal, so a workload may be written with ids from 0 on."""

import msgspec

from proxy.traces.workload import Workload


def numbered(workload: Workload) -> Workload:
    """The workload with block ids from 0 on, in the order in which they occur first."""
    known: dict[int, int] = {}
    requests = [
        msgspec.structs.replace(
            request, blocks=tuple([known.setdefault(block, len(known)) for block in request.blocks])
        )
        for request in workload.requests
    ]
    return msgspec.structs.replace(workload, requests=requests)
