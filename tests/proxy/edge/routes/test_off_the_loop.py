"""What a thread says about a body keeps nothing of what it had made of it."""

import traceback
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web

from proxy.edge.app_keys import SERVICE
from proxy.edge.middlewares import BODY_LEASE_KEY
from proxy.edge.routes.generate import _off_the_loop
from proxy.errors import BadRequestError
from proxy.request import outline


class Asked(dict[Any, Any]):
    """A request, as far as it is looked at here."""

    def __init__(self, reader: ThreadPoolExecutor) -> None:
        super().__init__({BODY_LEASE_KEY: SimpleNamespace(lasts=lambda work: None)})
        self.app = {SERVICE: SimpleNamespace(reader=reader)}


async def test_a_refusal_keeps_nothing_of_the_reading() -> None:
    """Its frames would hold arrays of twelve times the body until the answer is sent."""
    body = b"{" + b",".join(b'"m%d":1' % n for n in range(20_000)) + b"}"
    with ThreadPoolExecutor(1) as reader, pytest.raises(BadRequestError, match="members") as refused:
        await _off_the_loop(cast(web.Request, Asked(reader)), outline.outline, body)
    files = {frame.f_code.co_filename for frame, _ in traceback.walk_tb(refused.value.__traceback__)}
    assert outline.__file__ not in files
