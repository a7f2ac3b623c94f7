"""kvproxy's own counters tell whether it knew what it is measured for knowing: tokens and caches."""

import json
import re
import urllib.request
from typing import NamedTuple

from scripts.workshop.bench.peers.routers import Mode, Router
from scripts.workshop.live.proxy import HOST

_TELLS = {Mode.AFFINITY: "client", Mode.TOKENIZED: "local"}


class Knew(NamedTuple):
    """Sums over all instances."""

    prompts: int
    """Whose tokens were known as they were to be."""
    predicted: int
    """Cached tokens of prefill legs."""
    reported: int
    """The same, as engines told."""

    def since(self, earlier: "Knew") -> "Knew":
        return Knew(*(now - before for now, before in zip(self, earlier, strict=True)))


def knew(router: Router, mode: Mode) -> Knew:
    """What it knew so far."""
    page = _get(router, "/metrics")
    return Knew(
        _sum(page, rf'kvproxy_tokenized_prompts_total{{by="{_TELLS[mode]}"}}'),
        _sum(page, r"kvproxy_predicted_cached_tokens_total{[^}]*}"),
        _sum(page, r"kvproxy_reported_cached_tokens_total{[^}]*}"),
    )


def is_ready(router: Router) -> bool:
    """Whether it serves. No prompt is sent: the backend would count its tokens as it likes."""
    try:
        _get(router, "/ready")
    except OSError:
        return False
    return True


def is_prepared(router: Router, mode: Mode, blocks: int) -> bool:
    """Whether it knows so many blocks of all engines together and, where it is to, tokenizes by itself."""
    if mode is Mode.TOKENIZED and json.loads(_get(router, "/status"))["tokenizer"]["path"] != "local":
        return False
    return _sum(_get(router, "/metrics"), r"kvproxy_index_blocks{[^}]*}") >= blocks


def _get(router: Router, path: str) -> str:
    url = f"http://{HOST}:{router.port}{path}"
    with urllib.request.urlopen(url, timeout=30) as answer:  # http on loopback
        return str(answer.read(), "utf-8")


def _sum(page: str, series: str) -> int:
    return int(sum(map(float, re.findall(rf"^{series} (\S+)$", page, re.MULTILINE))))
