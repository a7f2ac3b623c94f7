"""Anthropic's client works with nothing changed but its base URL, and hears what one engine would say."""

from collections.abc import AsyncIterator

import anthropic
import pytest
from anthropic.types import MessageParam

from scripts.workshop.live.proxy import ProxyProcess
from scripts.workshop.live.words import prose

GREEDY = {"temperature": 0}
"""Newer clients have no parameter for it."""


@pytest.fixture
async def client(proxy: ProxyProcess) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=proxy.url, api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
async def direct(plain: str) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=plain, api_key="none", max_retries=0) as made:
        yield made


async def test_messages_whole_and_streamed_and_counted(
    client: anthropic.AsyncAnthropic, direct: anthropic.AsyncAnthropic
) -> None:
    said: list[MessageParam] = [{"role": "user", "content": prose(60, "client messages")}]

    async def say(to: anthropic.AsyncAnthropic) -> tuple[str, int, list[int | None]]:
        whole = await to.messages.create(
            model="tiny", max_tokens=20, messages=said, extra_body=GREEDY, system="Hi"
        )
        async with to.messages.stream(
            model="tiny", max_tokens=20, messages=said, extra_body=GREEDY, system="Hi"
        ) as stream:
            final = await stream.get_final_message()
        [block], [streamed] = whole.content, final.content
        assert block.type == streamed.type == "text"
        assert block.text == streamed.text
        usage = final.usage
        counted = await to.messages.count_tokens(model="tiny", messages=said, system="Hi")
        cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
        assert usage.input_tokens + cached == counted.input_tokens
        counts = [
            count
            for told in (whole.usage, usage)
            for count in (told.input_tokens, told.cache_creation_input_tokens, told.cache_read_input_tokens)
        ]
        return block.text, counted.input_tokens, counts

    assert await say(client) == await say(direct)


async def test_errors_are_the_clients_own_types(client: anthropic.AsyncAnthropic) -> None:
    said: list[MessageParam] = [{"role": "user", "content": "hi"}]
    with pytest.raises(anthropic.NotFoundError):
        await client.messages.create(model="no-such-model", max_tokens=4, messages=said)
    with pytest.raises(anthropic.BadRequestError):
        await client.messages.create(
            model="tiny", max_tokens=4, messages=said, extra_body={"temperature": -1}
        )
