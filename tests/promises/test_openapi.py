"""`/openapi.json` is served as it describes itself."""

from proxy.edge.routes.openapi import description
from tests.helpers.service import fleet


async def test_the_description_is_served() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        answer = await pair.service.ask("/openapi.json")
        assert answer.status == 200
        assert answer.json == description()
