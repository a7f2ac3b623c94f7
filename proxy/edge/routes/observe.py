"""Probes, clients and operators read the state of kvproxy here; nothing is changed and nothing generated."""

import functools
import importlib.metadata
import math
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from proxy.config import WhenNoPrefill
from proxy.edge.app_keys import SERVICE, SPOKEN
from proxy.edge.middlewares import LOAD_KEY
from proxy.edge.routes.admin import check_operator
from proxy.edge.routes.generate import engine_headers, generation_request, goal_asked, session_named
from proxy.edge.routes.openapi import ROUTE
from proxy.edge.routes.salting import salted_as_asked
from proxy.edge.shown.explanation import explanation_shown
from proxy.edge.shown.status import RankShown, instance_shown, rank_shown, status_shown
from proxy.edge.visit import visit_of
from proxy.errors import BadRequestError, NotFoundError, UnavailableError, cut
from proxy.fleet import Instance
from proxy.observability.page import page
from proxy.request.dialects import Dialect
from proxy.scheduling.lengths import longest_context
from proxy.shown import as_builtins


async def health(_request: web.Request) -> web.Response:
    """`GET /health`, and `/ping` for SageMaker: 200 while the process lives."""
    return web.Response()


async def load(request: web.Request) -> web.Response:
    """`GET /load`: how many generating requests are being answered, in vLLM's form."""
    return web.json_response({"server_load": request.app[LOAD_KEY].count})


@functools.cache
def _version() -> str:
    return importlib.metadata.version("kvproxy")


async def version(_request: web.Request) -> web.Response:
    """`GET /version`: kvproxy's version, in vLLM's form. It shows nothing of the engines."""
    return web.json_response({"version": _version()})


async def ready(request: web.Request) -> web.Response:
    """`GET /ready`: 200 if a request could be served now, else 503 with the reason."""
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
    """`GET /v1/models`: the models that engines list, each once, with the longest context that some pair of
    instances can serve.
    """
    return web.json_response({"object": "list", "data": list(_cards(request).values())})


async def model(request: web.Request) -> web.Response:
    """`GET /v1/models/{model}`: one of them. Raises NotFoundError."""
    name = request.match_info["model"]
    cards = _cards(request)
    card = cards.get(name) or cards.get(name.removesuffix("/"))
    if card is None:
        raise NotFoundError(f"The model `{cut(name)}` does not exist.", param="model")
    return web.json_response(card)


def _cards(request: web.Request) -> dict[str, Mapping[str, Any]]:
    cards: dict[str, Mapping[str, Any]] = {}
    listing: defaultdict[str, list[Instance]] = defaultdict(list)
    for instance in request.app[SERVICE].fleet:
        for card in instance.model_cards:
            cards.setdefault(card.id, card.entry)
            listing[card.id].append(instance)
    alone = request.app[SERVICE].config.admission.when_no_prefill is WhenNoPrefill.DECODE
    for name, entry in cards.items():
        longest = longest_context(listing[name], alone=alone)
        if isinstance(entry.get("max_model_len"), int) and longest is not None and longest < math.inf:
            cards[name] = {**entry, "max_model_len": longest}
    return cards


async def metrics(request: web.Request) -> web.Response:
    """`GET /metrics`, for Prometheus."""
    written = await page(request.app[SERVICE].registry)
    return web.Response(body=written, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def status(request: web.Request) -> web.Response:
    """`GET /status`: the fleet as kvproxy sees it."""
    service = request.app[SERVICE]
    now, snapshots = time.monotonic(), service.snapshots
    blocks: Counter[tuple[str, int]] = Counter()
    for slot, count in service.index.blocks().items():
        blocks[slot.instance, slot.rank] += count

    def rank_of(instance: Instance, rank: int) -> RankShown:
        at = (instance.address, rank)
        return rank_shown(
            instance,
            rank,
            service.index,
            blocks=blocks[at],
            accuracy=service.accuracy.status(*at),
            snapshot=snapshots.rank_status(*at) if snapshots is not None else None,
            healing=service.healing.status(*at),
        )

    shown = status_shown(
        service.config,
        service.fleet,
        bypass_tokens=service.rules.now.bypass_tokens,
        not_ready_because=_not_ready_because(request),
        tokenizer=service.tokenizer.status(),
        queue=service.gate.status(),
        bodies=service.bodies.status(),
        state_dir=snapshots.status() if snapshots is not None else None,
        latency=service.latency_status(),
        instances=[
            instance_shown(instance, [rank_of(instance, rank) for rank in instance.ranks], now)
            for instance in service.fleet
        ],
    )
    return web.json_response(as_builtins(shown))


async def explain(request: web.Request) -> web.Response:
    """`POST /explain`: the decision for the body of any generating route; nothing is generated.

    The route is that of the query's `route`, or the one whose requests alone have a member of the body's.
    """
    check_operator(request, "it tells what other prompts have left in the caches")
    service = request.app[SERVICE]
    generation = await generation_request(request, service, visit_of(request), _explained(request))
    asked = salted_as_asked(request, generation)
    session = session_named(request, service, generation)
    goal = goal_asked(request, visit_of(request))
    explained = await service.director.explain(asked, engine_headers(request, service), session, goal)
    return web.json_response(as_builtins(explanation_shown(explained)))


def _explained(request: web.Request) -> Dialect | tuple[Dialect, ...]:
    """The dialect whose path the query names; all if it names none. Raises BadRequestError."""
    spoken = request.app[SPOKEN]
    if (path := request.query.get(ROUTE)) is None:
        return spoken
    for dialect in spoken:
        if dialect.path == path:
            return dialect
    known = ", ".join(dialect.path for dialect in spoken)
    raise BadRequestError(f"{ROUTE} must be one of {known}, got {cut(path)}", param=ROUTE)
