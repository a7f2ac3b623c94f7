"""A prompt whose tokens nobody reads weighs what it may cost, and no engine is asked about it."""

import base64
import json
import math
from typing import Any

from proxy.config import parse_instance
from proxy.fleet import Fleet, Instance, ModelCard
from proxy.phases import Role
from proxy.request import dialects
from proxy.request.dialects import Dialect
from proxy.request.generation import GenerationRequest, read_request
from proxy.request.outline import LARGE_BODY_BYTES, outline, signs_of
from proxy.tokenizing.fields import MEDIA_TOKENS
from proxy.tokenizing.local.bounds import UNKNOWN_CHARACTERS_A_TOKEN
from proxy.tokenizing.prompts import PromptTokenizer, Tokenized

CONTEXT_TOKENS = 64


class NobodyAsked:
    """Engines that must not be asked."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"an engine was asked: {name}")


def request(dialect: Dialect, **members: Any) -> GenerationRequest:
    data = json.dumps(members).encode()
    return read_request(dialect, data, "tiny", signs_of(data) or outline(data))


async def measured(asked: GenerationRequest) -> Tokenized:
    fleet = Fleet()
    instance = Instance(parse_instance("both:1", Role.BOTH))
    instance.listed([ModelCard("tiny", max_model_len=CONTEXT_TOKENS)], 0.0)
    fleet.add(instance)
    tokenizer = PromptTokenizer(fleet, NobodyAsked(), clock=lambda: 0.0)
    try:
        return await tokenizer.measure(asked)
    finally:
        await tokenizer.close()


async def test_a_text_weighs_by_its_bytes() -> None:
    found = await measured(request(dialects.COMPLETIONS, prompt="a text"))
    assert found == Tokenized(None, "")


async def test_token_ids_are_counted() -> None:
    assert (await measured(request(dialects.COMPLETIONS, prompt=[100_000] * 50))).estimated_tokens == 50
    assert (await measured(request(dialects.COMPLETIONS, prompt=[[100_000] * 50]))).estimated_tokens is None


async def test_more_ids_than_any_context_has_are_told_at_once() -> None:
    ids = [7] * (CONTEXT_TOKENS + 1)
    found = await measured(request(dialects.COMPLETIONS, prompt=ids))
    assert found.excess is not None
    assert (found.excess.context_tokens, found.excess.tokens) == (CONTEXT_TOKENS, len(ids))
    shortened = await measured(
        request(dialects.COMPLETIONS, prompt=ids, truncate_prompt_tokens=CONTEXT_TOKENS)
    )
    assert shortened.excess is None


async def test_more_text_than_any_context_holds_is_told_at_once() -> None:
    text = "x" * (CONTEXT_TOKENS * UNKNOWN_CHARACTERS_A_TOKEN + 1)
    for asked in (
        request(dialects.COMPLETIONS, prompt=text),
        request(dialects.CHAT, messages=[{"role": "user", "content": text}]),
    ):
        found = await measured(asked)
        assert found.excess is not None
        assert found.excess.context_tokens == CONTEXT_TOKENS


async def test_an_image_weighs_what_models_make_of_it_and_not_its_bytes() -> None:
    image = base64.b64encode(b"x" * (LARGE_BODY_BYTES // 2)).decode()
    parts = [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
    ]
    found = await measured(request(dialects.CHAT, messages=[{"role": "user", "content": parts}]))
    assert found.estimated_tokens is not None
    assert MEDIA_TOKENS <= found.estimated_tokens < math.floor(1.2 * MEDIA_TOKENS)


async def test_ids_count_only_where_they_are_the_prompt() -> None:
    """A chat ignores a member of that name, and embeddings are a prompt of their own."""
    hello = [{"role": "user", "content": "hello"}]
    assert await measured(request(dialects.CHAT, messages=hello, prompt=[1] * 200)) == Tokenized(None, "")
    with_embeddings = request(dialects.COMPLETIONS, prompt=[1, 2, 3, 4], prompt_embeds="AAAA" * 100)
    assert (await measured(with_embeddings)).estimated_tokens is None


async def test_images_that_are_named_weigh_as_much_as_those_that_are_sent() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://images.example/1.png"}}
    found = await measured(request(dialects.CHAT, messages=[{"role": "user", "content": [image] * 3}]))
    assert found.estimated_tokens is not None
    assert 3 * MEDIA_TOKENS <= found.estimated_tokens < 4 * MEDIA_TOKENS
