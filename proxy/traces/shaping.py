"""A workload is changed into another one in what is named here alone, and its `source` says so.

What changes when a request comes moves the whole loop that it began, since `at_s` in a closed loop is the
loop's begin.
"""

import collections
import itertools
import math
from collections.abc import Sequence

import msgspec
import numpy as np

from proxy.errors import TraceError
from proxy.traces.ordering import chosen, in_order
from proxy.traces.workload import TraceRequest, Workload


def faster(workload: Workload, factor: float) -> Workload:
    """Requests come, and sessions begin, `factor` times as fast. Think times stay. Raises TraceError."""
    if not (math.isfinite(factor) and factor > 0):
        raise TraceError(f"speed {factor}: expected a number above 0")
    if factor == 1:
        return workload
    requests = [msgspec.structs.replace(each, at_s=each.at_s / factor) for each in workload.requests]
    return _changed(workload, requests, f"{factor:g} times as fast")


def between(workload: Workload, from_s: float = 0.0, to_s: float = math.inf) -> Workload:
    """What comes at `from_s` or later and before `to_s`, as if that were 0; of a closed loop all or nothing.

    Raises TraceError if nothing comes then.
    """
    if from_s <= 0 and to_s == math.inf:
        return workload
    kept = [index for index, each in enumerate(workload.requests) if from_s <= each.at_s < to_s]
    if not kept:
        raise TraceError(f"{workload.name}: no request comes between {from_s:g} and {to_s:g} s")
    requests = [
        msgspec.structs.replace(each, at_s=each.at_s - from_s) for each in chosen(workload.requests, kept)
    ]
    return _changed(workload, requests, f"from {from_s:g} to {to_s:g} s")


def spread(workload: Workload, seed: int = 0, bin_s: float | None = None) -> Workload:
    """Requests with equal times of arrival come at random within the time to the next one, in their order.

    Some traces know times only to a few seconds: ten requests at once and then none is how they were written
    down, not how they came. Where all times differ nothing is done. `bin_s`: the longest such time; None for
    the median distance of those that occur.
    """
    requests = workload.requests
    groups: dict[float, list[int]] = {}
    for index, each in enumerate(requests):
        if each.after is None:
            groups.setdefault(each.at_s, []).append(index)
    if all(len(group) == 1 for group in groups.values()):
        return workload
    stamps = sorted(groups)
    gaps = [later - earlier for earlier, later in itertools.pairwise(stamps)]
    if bin_s is None:
        bin_s = float(np.median(gaps)) if gaps else 0.0
    dice = np.random.default_rng(seed)
    begins: dict[int, float] = {}
    for stamp, gap in zip(stamps, [*gaps, bin_s], strict=True):
        offsets = np.sort(dice.random(len(groups[stamp]))) * min(gap, bin_s)
        begins |= {index: stamp + float(offset) for index, offset in zip(groups[stamp], offsets, strict=True)}
    return _changed(workload, _begun(requests, begins), f"times spread over {bin_s:g} s")


def staggered(workload: Workload, per_minute: float, seed: int = 0) -> Workload:
    """Sessions begin at random, so many a minute, in their order; distances within a session stay.

    For sessions that were recorded each by itself. A request without a session is one. Raises TraceError.
    """
    if not (math.isfinite(per_minute) and per_minute > 0):
        raise TraceError(f"sessions a minute {per_minute}: expected a number above 0")
    requests = workload.requests
    dice = np.random.default_rng(seed)
    first: dict[object, tuple[float, float]] = {}  # when a session began, and when it is to begin
    begin_s = 0.0
    begins: dict[int, float] = {}
    for index, each in enumerate(requests):
        if each.after is not None:
            continue
        name: object = each.session if each.session is not None else index
        if name not in first:
            first[name] = (each.at_s, begin_s)
            begin_s += float(dice.exponential(60 / per_minute))
        was_s, is_s = first[name]
        begins[index] = is_s + max(each.at_s - was_s, 0.0)
    return _changed(workload, _begun(requests, begins), f"{per_minute:g} sessions begin a minute")


def sharing_prefix(workload: Workload, tokens: int) -> Workload:
    """All prompts begin with the same tokens, as with one system prompt, in whole blocks; the rest stays."""
    lowest = min(itertools.chain.from_iterable(each.blocks for each in workload.requests), default=0)
    shared: dict[int, tuple[int, ...]] = collections.defaultdict(tuple)
    next_id = min(lowest, 0) - 1
    requests = []
    for each in workload.requests:
        size = each.block_tokens
        if size not in shared:
            shared[size] = tuple(range(next_id, next_id - tokens // size, -1))
            next_id -= tokens // size
        count = min(tokens, each.input_tokens) // size
        blocks = (*shared[size][:count], *each.blocks[count:])
        requests.append(msgspec.structs.replace(each, blocks=blocks))
    return _changed(workload, requests, f"all prompts share their first {tokens} tokens")


def for_one_model(workload: Workload) -> Workload:
    """All requests are for one model, whatever models the traffic was for."""
    requests = [
        each if each.model is None else msgspec.structs.replace(each, model=None)
        for each in workload.requests
    ]
    return _changed(workload, requests, "all for one model")


def unknown_prompts(workload: Workload, share: float, seed: int = 0) -> frozenset[int]:
    """The indices of requests whose tokens the router is not to know, drawn at random. Raises TraceError."""
    if not 0 <= share <= 1:
        raise TraceError(f"share of unknown prompts {share}: expected 0 to 1")
    drawn = np.random.default_rng(seed).random(len(workload.requests)) < share
    return frozenset(np.flatnonzero(drawn).tolist())


def _begun(requests: Sequence[TraceRequest], begins: dict[int, float]) -> list[TraceRequest]:
    """The requests with new times for those without `after`; the others take the begin of their loop."""
    found: list[TraceRequest] = []
    for index, each in enumerate(requests):
        at_s = begins[index] if each.after is None else found[each.after].at_s
        found.append(msgspec.structs.replace(each, at_s=at_s))
    return in_order(found)


def _changed(workload: Workload, requests: Sequence[TraceRequest], how: str) -> Workload:
    return msgspec.structs.replace(workload, requests=requests, source=f"{workload.source}; {how}")
