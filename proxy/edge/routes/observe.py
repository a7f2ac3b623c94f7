"""What can be seen from outside: health, readiness, status, models, metrics, and why a request would go
where.
"""

import functools
import importlib.metadata
import math
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from kvevents import PrefixIndex
from proxy.caches.accuracy import Accuracy
from proxy.config import WhenNoPrefill
from proxy.edge.app_keys import SERVICE, SPOKEN
from proxy.edge.middlewares import LOAD_KEY
from proxy.edge.routes.admin import check_operator
from proxy.edge.routes.generate import engine_headers, generation_request
from proxy.edge.routes.salting import salted_as_asked
from proxy.errors import UnavailableError
from proxy.fleet import Instance, Status
from proxy.fleet.circuit import Circuit
from proxy.phases import Phase, Role
from proxy.scheduling.decision import Pick
from proxy.scheduling.lengths import longest_context
from proxy.scheduling.types import Pair
from proxy.serving.healing import Healing
from proxy.snapshots.keeper import StateKeeper


async def health(_request: web.Request) -> web.Response:
    """`GET /health`, and `/ping` as SageMaker asks: the process lives."""
    return web.Response()


async def load(request: web.Request) -> web.Response:
    """`GET /load`: how many generating requests are here, as vLLM tells it."""
    return web.json_response({"server_load": request.app[LOAD_KEY].count})


@functools.cache
def _version() -> str:
    return importlib.metadata.version("kvproxy")


async def version(_request: web.Request) -> web.Response:
    """`GET /version`: that of kvproxy, in vLLM's words. Clients are told nothing of the engines behind it."""
    return web.json_response({"version": _version()})


async def ready(request: web.Request) -> web.Response:
    """`GET /ready`: a request could be served now."""
    if (missing := _not_ready_because(request)) is not None:
        raise UnavailableError(f"not ready: {missing}")
    return web.Response()


def _not_ready_because(request: web.Request) -> str | None:
    if request.app[SERVICE].stopping.is_set():
        return "kvproxy is shutting down"
    if request.app[SERVICE].draining.is_set():
        return "kvproxy is draining: it serves what still comes, and then ends"
    return request.app[SERVICE].fleet.not_ready_because


async def models(request: web.Request) -> web.Response:
    """`GET /v1/models`: what the engines list, each name once, with the context that requests can really
    have.
    """
    cards: dict[str, Mapping[str, Any]] = {}
    listing: defaultdict[str, list[Instance]] = defaultdict(list)
    for instance in request.app[SERVICE].fleet:
        for card in instance.model_cards:
            cards.setdefault(card.id, card.told)
            listing[card.id].append(instance)
    alone = request.app[SERVICE].config.admission.when_no_prefill is WhenNoPrefill.DECODE
    for name, told in cards.items():
        longest = longest_context(listing[name], alone=alone)
        if isinstance(told.get("max_model_len"), int) and longest is not None and longest < math.inf:
            cards[name] = {**told, "max_model_len": longest}
    return web.json_response({"object": "list", "data": list(cards.values())})


async def metrics(request: web.Request) -> web.Response:
    """`GET /metrics`, for Prometheus."""
    return web.Response(
        body=generate_latest(request.app[SERVICE].registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
    )


async def status(request: web.Request) -> web.Response:
    """`GET /status`: the fleet as kvproxy sees it."""
    fleet, index, config = request.app[SERVICE].fleet, request.app[SERVICE].index, request.app[SERVICE].config
    blocks: Counter[tuple[str, int]] = Counter()
    for slot, count in index.blocks().items():
        blocks[slot.instance, slot.rank] += count
    prefill = [i.address for i in fleet.of(Phase.PREFILL)]
    decode = [i.address for i in fleet.of(Phase.DECODE)]
    missing = _not_ready_because(request)
    state = request.app[SERVICE].snapshots
    return web.json_response(
        {
            "model": config.model,
            "policy": config.policy,
            "connector": config.connector,
            "ready": missing is None,
            "not_ready_because": missing,
            "prefill_node_count": len(prefill),
            "decode_node_count": len(decode),
            "prefill_nodes": prefill,
            "decode_nodes": decode,
            "tokenizer": request.app[SERVICE].tokenizer.status(),
            "queue": request.app[SERVICE].gate.status(),
            "bodies": {
                "held_bytes": request.app[SERVICE].bodies.held_bytes,
                "limit_bytes": request.app[SERVICE].bodies.limit_bytes,
                "reserve_bytes": request.app[SERVICE].bodies.reserve_bytes,
                "clients": request.app[SERVICE].bodies.clients,
            },
            "state_dir": state.status() if state is not None else None,
            "instances": [
                _instance(
                    i, index, blocks, request.app[SERVICE].accuracy, request.app[SERVICE].healing, state
                )
                for i in fleet
            ],
        }
    )


def _instance(
    instance: Instance,
    index: PrefixIndex,
    blocks: Counter[tuple[str, int]],
    accuracy: Accuracy,
    healing: Healing,
    state: StateKeeper | None,
) -> dict[str, Any]:
    base = [card.id for card in instance.model_cards if not card.parent]
    address, breaker = instance.address, instance.breaker
    now = time.monotonic()
    gets_legs = instance.why_unusable() is None and breaker.state is Circuit.CLOSED
    return {
        "instance": address,
        "role": instance.role,
        "up": instance.why_unusable() is None,
        "state": instance.state,
        "why": instance.why_down
        or ("its last check was not answered" if breaker.doubtful else None)
        or ("it was sent to sleep" if instance.status is Status.ASLEEP else instance.unlisted),
        "circuit": breaker.state,
        "full_for_s": round(instance.fullness.left_s(now), 2),
        "most_legs": instance.fullness.most(now),
        "share": round(breaker.share(now), 2) if gets_legs else 0.0,
        "model": base[0] if base else None,
        "max_model_len": length if (length := instance.max_model_len) < math.inf else None,
        "adapters": sorted(instance.adapters),
        "version": instance.version,
        "block_size": index.block_size(address, instance.ranks[0]),
        "ranks": [
            {
                "rank": rank,
                "index": instance.index_state(rank),
                "why": instance.why_unheard(rank),
                "block_size": index.block_size(address, rank),
                "lookahead_tokens": index.lookahead(address, rank),
                "blocks": blocks[address, rank],
                "accuracy": accuracy.status(address, rank),
                "snapshot": state.rank_status(address, rank) if state is not None else None,
                "upper_bound": index.upper_bound(address, rank),
                "uncounted_groups": sorted(index.uncounted(address, rank)),
                "healing": None
                if (h := healing.status(address, rank)) is None
                else msgspec.structs.asdict(h),
            }
            for rank in instance.ranks
        ],
        "index": min((instance.index_state(r) for r in instance.ranks), key=_WORST_FIRST.index),
        "blocks": sum(blocks[address, rank] for rank in instance.ranks),
        "in_flight": {
            phase.value: instance.running_legs(phase)
            for phase in Phase
            if instance.role in {Role.BOTH, phase.value}
        },
        "weight_tokens": instance.running_weight_tokens(),
    }


_WORST_FIRST = ("unknown", "partial", "exact")


MAX_PAIRS = 20
"""Pairs that `/explain` shows of a policy that prices them: the rest was not close."""


async def explain(request: web.Request) -> web.Response:
    """`POST /explain`: a completion or chat body in, the decision out; nothing is generated."""
    check_operator(request, "it tells what other prompts have left in the caches")
    asked = salted_as_asked(request, await generation_request(request, request.app[SPOKEN]))
    decision, tokenized = await request.app[SERVICE].director.explain(asked, engine_headers(request))
    prompt, members = tokenized.prompt, tokenized.members
    return web.json_response(
        {
            "prompt_tokens": decision.prompt_tokens,
            "known_tokens": 0 if prompt is None else len(prompt.token_ids),
            "why_unknown": tokenized.why_unknown,
            "unknown_members": list(members.unknown),
            "ignored_members": list(members.ignored),
            "policy": decision.policy,
            "unit": decision.unit,
            "prefill": _pick(decision.prefill),
            "decode": _pick(decision.decode),
            "pairs": [_pair(pair, price) for pair, price in decision.pairs.cheapest(MAX_PAIRS)],
        }
    )


def _told(price: float | None) -> float | None:
    """A price as JSON has it, which knows no infinity."""
    return price if price is not None and math.isfinite(price) else None


def _pair(pair: Pair, price: float) -> dict[str, Any]:
    return {
        "prefill": pair.prefill.instance,
        "prefill_rank": pair.prefill.rank,
        "decode": pair.decode.instance,
        "decode_rank": pair.decode.rank,
        "cost": _told(price),
    }


def _pick(pick: Pick) -> dict[str, Any]:
    chosen = pick.chosen
    return {
        "chosen": None if chosen is None else chosen.instance,
        "chosen_rank": 0 if chosen is None else chosen.rank,
        "candidates": [
            {
                "instance": c.instance,
                "rank": c.rank,
                "usable": c.usable,
                "why": c.why,
                "cached_tokens": c.cached_tokens,
                "expected_tokens": c.expected_tokens,
                "uncached_tokens": c.uncached_tokens,
                "reload_tokens": c.reload_tokens,
                "reload_cost_tokens": c.reload_cost_tokens,
                "load_tokens": c.load_tokens,
                "weight_tokens": c.weight_tokens,
                "cost": _told(priced.cost),
                "index": c.index,
                "trusted": c.trusted,
            }
            for priced in pick.candidates
            for c in (priced.candidate,)
        ],
    }
