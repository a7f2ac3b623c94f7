"""Of the connections that are free the one used last is taken, so that those of a burst become idle and are
closed.

There are no more than its share of the descriptors allows: free ones are closed for new ones.

aiohttp takes the one that has been free the longest. Under steady load each is then used again before it was
idle for long, and as many stay open as the worst burst ever needed.
"""

import errno
import os
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey

from proxy.descriptors import Descriptors

if TYPE_CHECKING:
    from aiohttp import ClientTimeout
    from aiohttp.client_reqrep import ClientRequest
    from aiohttp.tracing import Trace


class Pool(aiohttp.TCPConnector):
    """A connector that forgets bursts."""

    def __init__(self, descriptors: Descriptors | None = None, **settings: Any) -> None:
        """`descriptors`: what bounds it; None: nothing."""
        super().__init__(**settings)
        self._descriptors = descriptors
        if descriptors is not None:
            descriptors.count_legs = self._count

    def _count(self) -> int:
        return len(self._acquired) + sum(map(len, self._conns.values()))

    async def _create_connection(
        self,
        req: "ClientRequest",
        traces: "list[Trace]",
        timeout: "ClientTimeout",  # noqa: ASYNC109  # aiohttp's
    ) -> ResponseHandler:
        descriptors = self._descriptors
        if descriptors is not None and not (
            descriptors.leg_fits() or (self._close_free() and descriptors.leg_fits())
        ):
            words = os.strerror(errno.EMFILE)
            raise aiohttp.ClientConnectorError(req.connection_key, OSError(errno.EMFILE, words))
        return await super()._create_connection(req, traces, timeout)

    def _close_free(self) -> bool:
        """Close a connection that is free; False if none is."""
        for key, free in self._conns.items():
            protocol, _ = free.pop()
            if not free:
                del self._conns[key]
            protocol.close()
            return True
        return False

    def _release(self, key: ConnectionKey, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        super()._release(key, protocol, should_close=should_close)
        free = self._conns.get(key)
        if free and free[-1][0] is protocol:
            free.rotate(1)  # it takes from the left
