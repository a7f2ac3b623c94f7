"""Anthropic's own client works with nothing changed but its base URL."""

from collections.abc import AsyncIterator

import anthropic
import pytest
from anthropic.types import MessageParam, ToolParam

from tests.helpers.service import UNHURRIED, Pair, fleet, prose

GREEDY = {"temperature": 0}
"""Newer clients have no parameter for it."""
TOOL: ToolParam = {"name": "look", "description": "Look it up.", "input_schema": {"type": "object"}}


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with fleet(1, 1, stand_in=UNHURRIED | {"tool_parser": True}) as made:
        yield made


def client(url: str) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0)


async def test_the_anthropic_client_works_unchanged(pair: Pair) -> None:
    said: list[MessageParam] = [{"role": "user", "content": prose(60)}]
    async with client(pair.service.url) as ours, client(pair.engines.decode[0].url) as direct:
        # A message, and the same from one engine alone.
        whole = await ours.messages.create(
            model="tiny", max_tokens=12, messages=said, system="Be brief.", extra_body=GREEDY
        )
        alone = await direct.messages.create(
            model="tiny", max_tokens=12, messages=said, system="Be brief.", extra_body=GREEDY
        )
        assert (whole.content, whole.stop_reason) == (alone.content, alone.stop_reason)
        assert whole.usage.output_tokens == 12
        # A stream, by the helper that puts it together.
        async with ours.messages.stream(
            model="tiny", max_tokens=12, messages=said, system="Be brief.", extra_body=GREEDY
        ) as stream:
            text = "".join([piece async for piece in stream.text_stream])
            final = await stream.get_final_message()
        [block] = final.content
        assert block.type == "text"
        assert block.text == text == "".join(b.text for b in whole.content if b.type == "text")
        assert (final.usage.cache_read_input_tokens or 0) > 0
        # The beta API, whose path has a query.
        beta = await ours.beta.messages.create(
            model="tiny", max_tokens=2, messages=[{"role": "user", "content": "hi"}], betas=["some-beta"]
        )
        assert beta.usage.output_tokens == 2
        legs = [seen for seen in pair.engines.decode[0].seen if seen.path.startswith("/v1/messages")]
        assert legs[-1].headers["Anthropic-Beta"] == "some-beta"
        # What a client sends back in a loop of tools, and how many tokens that is.
        said += [
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "it"}}],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": prose(20)}],
            },
        ]
        told = await ours.messages.create(model="tiny", max_tokens=4, messages=said, tools=[TOOL])
        counted = await ours.messages.count_tokens(model="tiny", messages=said, tools=[TOOL])
        usage = told.usage
        cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
        assert counted.input_tokens == usage.input_tokens + cached
        # Errors are the client's own classes, with what is wrong.
        with pytest.raises(anthropic.NotFoundError, match=r"not_found_error.*nope"):
            await ours.messages.create(model="nope", max_tokens=4, messages=said)
        with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
            await ours.messages.create(model="tiny", max_tokens=0, messages=said)
    await pair.service.settled()
    assert not pair.engines.holds
