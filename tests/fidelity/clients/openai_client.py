"""The OpenAI SDK, unchanged but for its base URL: what it makes of chats and completions.

Prints a line of JSON for each URL. Usage: python -m tests.fidelity.clients.openai_client URL URL [--free]
With --free nothing is asked that a grammar forces: a model that was never trained comes to no end there.
"""

import asyncio
import json
import sys
from typing import Any, Literal

import openai
import pydantic

MODEL = "tiny"
TALK: Any = [{"role": "user", "content": "What is there to say of prefixes that many requests share?"}]
LOOK: Any = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks something up.",
        "parameters": {"type": "object", "properties": {"deep": {"type": "boolean"}}, "required": ["deep"]},
    },
}


class Verdict(pydantic.BaseModel):
    """A structured answer."""

    kind: Literal["good", "bad"]
    sure: bool


def main(base_url: str, *, forced: bool) -> dict[str, Any]:
    """What the client was told."""
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        seen = {
            "models": sorted(model.id for model in client.models.list()),
            "chat": chat(client),
            "streamed chat": streamed(client),
            "completion": client.completions.create(
                model=MODEL,
                prompt="Once upon a time there was a cache",
                max_tokens=12,
                temperature=0,
                logprobs=2,
            ).model_dump(include={"choices", "usage", "object", "model"}),
            "streamed completion": [
                chunk.choices[0].text
                for chunk in client.completions.create(
                    model=MODEL, prompt="Once upon a time", max_tokens=12, temperature=0, stream=True
                )
            ],
            "forced": [tools_loop(client), parsed(client)] if forced else [],
            "errors": [refused(client, model="no-such-model"), refused(client, temperature=-1)],
        }
    return seen | {"async": asyncio.run(at_once(base_url))}


def chat(client: openai.OpenAI) -> Any:
    """A whole answer, its headers read too."""
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=TALK, temperature=0, max_completion_tokens=12, logprobs=True, top_logprobs=2
    )
    answer = raw.parse()
    return [bool(raw.request_id), answer.model_dump(include={"choices", "object", "model"})]


def streamed(client: openai.OpenAI) -> Any:
    """By the streaming helper, which puts the answer together and calls its events by name."""
    with client.chat.completions.stream(
        model=MODEL, messages=TALK, temperature=0, max_tokens=12, stream_options={"include_usage": True}
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.current_completion_snapshot  # the final one may not end at its limit
    assert final.usage is not None
    return [sorted(kinds), final.choices[0].message.content, final.usage.completion_tokens]


def tools_loop(client: openai.OpenAI) -> Any:
    """A call that must be made, its result, and the answer to that; streamed as well."""
    told: Any = {"model": MODEL, "temperature": 0, "max_tokens": 60, "tools": [LOOK]}
    first = client.chat.completions.create(**told, messages=TALK, tool_choice="required").choices[0].message
    assert first.tool_calls
    [call] = first.tool_calls
    assert call.type == "function"
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "nothing was found"}
    named: Any = {"type": "function", "function": {"name": "look"}}
    with client.chat.completions.stream(**told, messages=TALK, tool_choice=named) as stream:
        streamed_calls = stream.get_final_completion().choices[0].message.tool_calls
    assert streamed_calls
    call.id = result["tool_call_id"] = "the-same-for-all"  # it is in the next prompt
    turns = [*TALK, first.model_dump(exclude_none=True), result]
    last = client.chat.completions.create(**told, messages=turns, tool_choice="none").choices[0]
    return [
        [call.function.name, json.loads(call.function.arguments)],
        [(c.function.name, json.loads(c.function.arguments)) for c in streamed_calls],
        last.message.content,
        last.finish_reason,
    ]


def parsed(client: openai.OpenAI) -> Any:
    """An answer by a schema, parsed by the client."""
    answer = client.chat.completions.parse(
        model=MODEL, messages=TALK, response_format=Verdict, temperature=0, max_tokens=80
    )
    verdict = answer.choices[0].message.parsed
    assert isinstance(verdict, Verdict)
    return verdict.model_dump()


def refused(client: openai.OpenAI, **members: Any) -> Any:
    """The client's own error of a request that is wrong."""
    try:
        client.chat.completions.create(**{"model": MODEL, "messages": TALK, **members})
    except openai.APIStatusError as error:
        return [type(error).__name__, error.code, error.param]
    return "nothing was wrong"


async def at_once(base_url: str) -> Any:
    """Several chats at once by the asynchronous client, one of them streamed."""
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as client:

        async def whole(text: str) -> str | None:
            answer = await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": text}], temperature=0, max_tokens=8
            )
            return answer.choices[0].message.content

        async def in_pieces(text: str) -> str:
            stream = await client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": text}],
                temperature=0,
                max_tokens=8,
                stream=True,
            )
            return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])

        return await asyncio.gather(*(whole(f"number {n}") for n in range(4)), in_pieces("in pieces"))


if __name__ == "__main__":
    for url in sys.argv[1:3]:
        print(json.dumps(main(f"{url}/v1", forced="--free" not in sys.argv)))
