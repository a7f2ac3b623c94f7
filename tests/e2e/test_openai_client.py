"""The official client works with nothing changed but its base URL."""

from collections.abc import AsyncIterator, Sequence
from itertools import groupby

import openai
import pytest

from scripts.workshop.live.proxy import ProxyProcess
from scripts.workshop.live.words import prose


@pytest.fixture
async def client(proxy: ProxyProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
async def direct(plain: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{plain}/v1", api_key="none", max_retries=0) as made:
        yield made


async def test_chat(client: openai.AsyncOpenAI, direct: openai.AsyncOpenAI) -> None:
    async def say(to: openai.AsyncOpenAI) -> str | None:
        answer = await to.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": prose(60, "client chat")}],
            temperature=0,
            max_completion_tokens=20,
        )
        return answer.choices[0].message.content

    assert await say(client) == await say(direct)


async def test_streamed_chat(client: openai.AsyncOpenAI, direct: openai.AsyncOpenAI) -> None:
    async def say(to: openai.AsyncOpenAI) -> tuple[str, int]:
        stream = await to.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": prose(60, "client stream")}],
            temperature=0,
            max_tokens=20,
            stream=True,
            stream_options={"include_usage": True},
        )
        text, completion_tokens = "", 0
        async for chunk in stream:
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
            completion_tokens = chunk.usage.completion_tokens if chunk.usage else completion_tokens
        return text, completion_tokens

    assert await say(client) == await say(direct)


async def test_completion(client: openai.AsyncOpenAI, direct: openai.AsyncOpenAI) -> None:
    async def say(to: openai.AsyncOpenAI) -> str:
        answer = await to.completions.create(
            model="tiny", prompt=prose(60, "client text"), temperature=0, max_tokens=20
        )
        return answer.choices[0].text

    assert await say(client) == await say(direct)


async def test_models(client: openai.AsyncOpenAI) -> None:
    assert {model.id async for model in client.models.list()} == {"tiny", "alpha"}


async def test_errors_are_the_clients_own_types(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        await client.completions.create(model="no-such-model", prompt="x")
    with pytest.raises(openai.BadRequestError):
        await client.completions.create(model="tiny", prompt="x", temperature=-1)


async def test_response(client: openai.AsyncOpenAI, direct: openai.AsyncOpenAI) -> None:
    async def say(to: openai.AsyncOpenAI) -> tuple[str, str]:
        first = await to.responses.create(
            model="tiny", input=prose(60, "client response"), temperature=0, max_output_tokens=20
        )
        second = await to.responses.create(
            model="tiny",
            input="and then?",
            previous_response_id=first.id,
            temperature=0,
            max_output_tokens=20,
        )
        assert (await to.responses.retrieve(second.id)).output_text == second.output_text
        return first.output_text, second.output_text

    assert await say(client) == await say(direct)


async def test_streamed_response(client: openai.AsyncOpenAI, direct: openai.AsyncOpenAI) -> None:
    async def say(to: openai.AsyncOpenAI) -> tuple[Sequence[str], str]:
        async with to.responses.stream(
            model="tiny",
            input=[{"role": "user", "content": prose(60, "client response stream")}],
            instructions="Be brief.",
            temperature=0,
            max_output_tokens=20,
        ) as stream:
            kinds = [event.type async for event in stream]
            # Engines put several tokens into one event as they come.
            return [kind for kind, _ in groupby(kinds)], (await stream.get_final_response()).output_text

    assert await say(client) == await say(direct)


async def test_an_unknown_response(client: openai.AsyncOpenAI, direct: openai.AsyncOpenAI) -> None:
    async def error(to: openai.AsyncOpenAI) -> object:
        with pytest.raises(openai.NotFoundError) as refused:
            await to.responses.retrieve("resp_none")
        return refused.value.body

    assert await error(client) == await error(direct)
