"""Engines and kvproxy are quiet when no leg runs and no block is held: here is how to see that."""

import time
from collections.abc import Iterable

import aiohttp

from scripts.workshop.live.metrics import read_metrics
from scripts.workshop.live.waiting import wait_until

_ENGINE_GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
_PROXY_GAUGES = ("kvproxy_in_flight_requests", "kvproxy_in_flight_tokens")


async def busy(session: aiohttp.ClientSession, engines: Iterable[str], proxy: str | None = None) -> list[str]:
    """Return what is not at rest, one readable entry each; an empty list when all is quiet.

    A prefill engine's held blocks show in its cache usage while no request of it runs or waits.
    """
    found = []
    for url in engines:
        page = await read_metrics(session, url)
        found += [f"{url} {name} {value:g}" for name in _ENGINE_GAUGES if (value := page.total(name))]
    if proxy:
        page = await read_metrics(session, proxy)
        found += [
            f"{proxy} {name} of {instance} {value:g}"
            for name in _PROXY_GAUGES
            for instance, value in page.by("instance", name).items()
            if value
        ]
    return found


async def wait_quiet(
    session: aiohttp.ClientSession, engines: Iterable[str], proxy: str | None, within_s: float
) -> float:
    """Wait until nothing is busy and return how long it took; TimeoutError names what still is."""
    begun = time.monotonic()
    urls = list(engines)
    left: list[str] = []

    async def quiet() -> bool:
        left[:] = await busy(session, urls, proxy)
        return not left

    try:
        await wait_until(quiet, within_s, "engines and kvproxy are at rest")
    except TimeoutError:
        raise TimeoutError(f"after {within_s:g} s there is still: {'; '.join(left)}") from None
    return time.monotonic() - begun
