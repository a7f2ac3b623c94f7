"""The start ends when a first request could be served, or when its time is up; meanwhile the log says what is
missing.
"""

import asyncio
import logging

from proxy.errors import KvproxyError
from proxy.fleet import Fleet, Status

log = logging.getLogger(__name__)

PROGRESS_EVERY_S = 10.0
LOOK_EVERY_S = 0.05


class StartupError(KvproxyError):
    """No request could be served within the time for starting up; the process ends with exit code 1."""


async def see_start_through(fleet: Fleet, limit_s: float) -> None:
    """Log what is missing until a first request could be served. Raises StartupError after `limit_s`
    seconds.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(limit_s):
            said_at = loop.time()
            while not fleet.started:
                await asyncio.sleep(LOOK_EVERY_S)
                if loop.time() - said_at > PROGRESS_EVERY_S:
                    said_at = loop.time()
                    log.info("still waiting for %s", _missing(fleet))
    except TimeoutError:
        raise StartupError(
            f"not ready after {limit_s:g} s (--startup-timeout): {_missing(fleet)}."
            " Check that each address is where its vLLM listens"
        ) from None
    up = sum(1 for instance in fleet if instance.status is Status.UP)
    if (missing := fleet.not_ready_because) is not None:
        log.warning("started, but not ready: %s", missing)
        return
    log.info("ready: %d of %d instances are up", up, len(fleet))


def _missing(fleet: Fleet) -> str:
    missing = [f"{i.role} {i.address} ({i.why_down or i.status})" for i in fleet if i.status is not Status.UP]
    return ", ".join(missing) or "a prefill and a decode instance (or one that does both)"
