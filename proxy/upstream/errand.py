"""A small request on a connection that is free needs no task: who sent it is called once its whole answer is
here, or will not come.

Nobody waits for an errand, so nobody who leaves ends it: that takes `close`.
"""

from collections.abc import Callable

from proxy.errors import LegError
from proxy.headers import Headers
from proxy.upstream.bounds import max_bytes, too_long
from proxy.upstream.connection import CUT, Connection
from proxy.upstream.pool import Pool


class Errand:
    """A request under way, and its answer."""

    __slots__ = (
        "_asked_bytes",
        "_connection",
        "_max_bytes",
        "_over",
        "_path",
        "_pool",
        "data",
        "error",
        "headers",
        "instance",
        "is_event_stream",
        "status",
    )

    def __init__(
        self,
        connection: Connection,
        pool: Pool,
        path: str,
        asked_bytes: int,
        max_answer_bytes: int,
        over: Callable[[], None],
    ) -> None:
        """`path` and `asked_bytes`: what was sent on the connection, and how many bytes that took;
        `max_answer_bytes` may be more than what an answer to that may have (`upstream.bounds`).
        """
        self._connection: Connection | None = connection
        self._pool = pool
        self._path = path
        self._asked_bytes = asked_bytes
        self._max_bytes = max_answer_bytes
        self._over: Callable[[], None] | None = over
        self.instance = connection.instance
        self.status = 0
        """Of the answer; 0 until its head is here."""
        self.headers: Headers = []
        self.is_event_stream = False
        self.data = b""
        """The body, once it is whole."""
        self.error: LegError | None = None
        """Why there is no whole answer."""
        connection.hears = self._hear

    def close(self) -> None:
        """Drop the connection unless the answer is whole: the engine then aborts the request, and `over` is
        not called any more. A second call does nothing.
        """
        connection, self._connection = self._connection, None
        self._over = None  # which refers to who sent it, and so to this: nothing is left to be collected
        if connection is not None:
            connection.hears = None
            connection.drop()
            self._pool.release(connection)

    def _hear(self) -> None:
        connection = self._connection
        if connection is None:
            return
        over = self._over
        try:
            if not self._is_whole(connection):
                return
        except LegError as error:
            self.error = error
            self.close()
        else:
            self.data = connection.answer.take()
            self._connection = self._over = connection.hears = None
            self._pool.release(connection)
        if over is not None:
            over()

    def _is_whole(self, connection: Connection) -> bool:
        """Whether the answer is. Raises LegError if it will not be, or is longer than it may be."""
        answer = connection.answer
        if not self.status:
            if not connection.has_begun():
                return False
            self.status, self.headers = answer.status, answer.headers
            self.is_event_stream = answer.media_type == "text/event-stream"
            self._max_bytes = min(self._max_bytes, max_bytes(self._path, self._asked_bytes, answer.status))
        if max(answer.content_length or 0, answer.body_bytes) > self._max_bytes:
            raise too_long(self.instance, self._path, self._max_bytes)
        return connection.has_ended(CUT)
