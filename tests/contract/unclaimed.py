"""Holds nobody asks for. They take a whole lease to go away, so they are left early and looked for late."""

import dataclasses
import json
import urllib.request
from typing import Any, Self

from scripts.workshop.engines.engine import EngineSpec
from tests.contract.pairs import PREFILL
from tests.contract.prompts import GREEDY, token_ids

_LENGTHS = {"unary": (100,), "streamed": (70,), "listed": (40, 130)}
BLOCKS = 4 + 3 + 2 + 5
SEQUENCES = 4


@dataclasses.dataclass(frozen=True)
class Unclaimed:
    """What a prefill engine answered to three legs that hold four sequences in BLOCKS blocks."""

    spec: EngineSpec
    params: dict[str, Any]
    streamed: str
    listed: dict[str, Any]
    expired_before: float
    held: float
    """The share of the cache in use when all three had answered."""

    @classmethod
    def leave(cls, spec: EngineSpec) -> Self:
        """Send the legs: a plain one, one streamed, and one with two prompts."""
        expired = _read(spec, EXPIRED)
        answers = {}
        for name, lengths in _LENGTHS.items():
            prompts = [token_ids(length, f"unclaimed {name} {length}") for length in lengths]
            body = GREEDY | {"prompt": prompts, "max_tokens": 1, "kv_transfer_params": PREFILL}
            answers[name] = _post(spec, body | {"stream": name == "streamed"})
        return cls(
            spec,
            json.loads(answers["unary"])["kv_transfer_params"],
            answers["streamed"],
            json.loads(answers["listed"]),
            expired,
            _read(spec, "vllm:kv_cache_usage_perc"),
        )


def _post(spec: EngineSpec, body: dict[str, Any]) -> str:
    request = urllib.request.Request(f"{spec.url}/v1/completions", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(answer.read().decode())


def _read(spec: EngineSpec, name: str) -> float:
    with urllib.request.urlopen(f"{spec.url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name + "{"))


EXPIRED = "vllm:nixl_num_kv_expired_reqs_total"
