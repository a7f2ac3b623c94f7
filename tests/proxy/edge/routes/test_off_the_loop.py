"""The error that a thread raises about a body keeps nothing of what the thread had made of the body."""

import traceback
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import cast

import pytest

from proxy.admission.bodies import BodyBudget
from proxy.edge.routes.generate import _off_the_loop
from proxy.errors import BadRequestError
from proxy.request import outline
from proxy.service import Service


async def test_a_refusal_keeps_nothing_of_the_reading() -> None:
    """Its frames would hold arrays of twelve times the body until the answer is sent."""
    body = b"{" + b",".join(b'"m%d":1' % n for n in range(20_000)) + b"}"
    lease = BodyBudget(1 << 30).lease("anybody")
    with ThreadPoolExecutor(1) as reader, pytest.raises(BadRequestError, match="members") as refused:
        await _off_the_loop(cast(Service, SimpleNamespace(reader=reader)), lease, outline.outline, body)
    files = {frame.f_code.co_filename for frame, _ in traceback.walk_tb(refused.value.__traceback__)}
    assert outline.__file__ not in files
