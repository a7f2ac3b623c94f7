"""A traffic is a workload by name: the recorded trace, or a generator with a load that eight engines can
bear.

A seed makes another workload of a generator, and only draws ties otherwise where the trace is recorded.
"""

import functools
import pathlib
from collections.abc import Mapping

from proxy.simulation.replay.run import engine_of
from proxy.traces.generators import generator
from proxy.traces.readers import read
from proxy.traces.shaping import between, spread
from proxy.traces.workload import Workload

RECORDED = "conversation"
"""The recorded trace, all of it; `.short` is its first 20 minutes, `.spread` has equal times spread."""
SHORT_S = 1200.0

GENERATED: Mapping[str, str] = {
    "systems": "systems:per_s=24,duration_s=120",
    "chats": "chats:sessions_per_minute=240,duration_s=180",
    "trees": "agents:sessions_per_minute=8,duration_s=180,most_context_tokens=80000,system_tokens=6000",
    "documents": "documents:documents_per_minute=20,duration_s=300",
    "unrelated": "unrelated:per_s=20,duration_s=150",
}
"""Five workloads of different nature."""
AGENTS: Mapping[str, str] = {
    "agents": "agents:sessions_per_minute=10,duration_s=300",
    "agents.alone": "agents:sessions_per_minute=10,duration_s=300,system_tokens=0",
}
"""Long sessions of agents, whose contexts grow to 200k tokens: with a system prompt that all share, and
without. What engines can cache is scarce."""
MARGIN_TOKENS = 4096


@functools.lru_cache(maxsize=4)
def traffic(name: str, seed: int, trace: pathlib.Path | None) -> Workload:
    """The workload of that name. Raises TraceError; ValueError if there is none, or no trace."""
    if (words := GENERATED.get(name) or AGENTS.get(name)) is not None:
        return generator(f"{words},seed={seed}").generate()
    base, *shapes = name.split(".")
    if base != RECORDED or trace is None:
        raise ValueError(f"{name}: no such traffic" if base != RECORDED else f"{name}: a trace is needed")
    workload = read(trace)
    for shape in shapes:
        if shape == "short":
            workload = between(workload, 0.0, SHORT_S)
        elif shape == "spread":
            workload = spread(workload, seed=0)
        else:
            raise ValueError(f"{name}: {shape} is no shape of a trace")
    return workload


def fits(workload: Workload, profile: str = "dynamo-replay") -> bool:
    """Whether every request has room in an engine."""
    shape = engine_of(profile)
    most = (shape.blocks - 1) * shape.block_size - MARGIN_TOKENS
    return all(each.input_tokens + each.output_tokens <= most for each in workload.requests)
