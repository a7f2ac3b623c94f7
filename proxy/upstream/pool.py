"""Of the connections that are free the one used last is taken, so that those of a burst become idle and are closed.

aiohttp takes the one that has been free the longest. Under steady load each is then used again before it was idle for
long, and as many stay open as the worst burst ever needed.
"""

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey


class Pool(aiohttp.TCPConnector):
    """A connector that forgets bursts."""

    def _release(self, key: ConnectionKey, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        super()._release(key, protocol, should_close=should_close)
        free = self._conns.get(key)
        if free and free[-1][0] is protocol:
            free.rotate(1)  # it takes from the left
