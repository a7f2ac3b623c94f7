"""A text that no context can hold is refused by its size, in the engines' words, before any engine hears of
it.
"""

import contextlib
import pathlib
from collections.abc import AsyncIterator

import pytest

from proxy.edge.app_keys import SERVICE
from proxy.tokenizing.local.bounds import Limits
from proxy.tuning import TUNING, Tuning
from tests.helpers.service import Pair, fleet, wait_until
from tests.helpers.tiny_model import write_tiny_model

# -- with the real tokenizer, in front of stand-ins ---------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@contextlib.asynccontextmanager
async def served(model: pathlib.Path, tuning: Tuning = TUNING) -> AsyncIterator[Pair]:
    settings = {"root": str(model), "max_model_len": 160}
    async with fleet(prefill=1, decode=1, stand_in=settings, tuning=tuning) as made:
        await wait_until(
            lambda: made.service.app[SERVICE].tokenizer.status().path == "local", "the local path"
        )
        yield made


@pytest.fixture
async def pair(model: pathlib.Path) -> AsyncIterator[Pair]:
    async with served(model) as made:
        yield made


def work(pair: Pair) -> int:
    """Requests that engines got, questions among them."""
    return sum(seen.path.startswith(("/v1/c", "/tok")) for engine in pair.engines.all for seen in engine.seen)


@pytest.mark.parametrize("where", ["completions", "chat/completions"])
async def test_a_text_that_cannot_fit_is_refused_in_the_words_of_the_engines_which_hear_nothing_of_it(
    pair: Pair, where: str
) -> None:
    text = "<|en" * 20_000
    body = {"prompt": text} if where == "completions" else {"messages": [{"role": "user", "content": text}]}
    service, (decode,) = pair.service, pair.engines.decode
    async with service.session.post(f"{decode.url}/v1/{where}", json={"model": "tiny"} | body) as answer:
        assert answer.status == 400
        own = (await answer.json())["error"]
    before = work(pair)
    refused = await service.ask(f"/v1/{where}", {"model": "tiny"} | body)
    assert refused.status == 400
    assert work(pair) == before
    if where == "completions":
        assert refused.json["error"] == own
    else:  # how much a template adds is not found out
        assert refused.json["error"]["param"] == own["param"] == "input_text"
        assert (
            refused.json["error"]["message"].split("your prompt")[0] == own["message"].split("your prompt")[0]
        )
    assert await service.metric("kvproxy_refused_requests_total", reason="too_long") == 1
    assert await service.metric("kvproxy_tokenized_prompts_total") == 0


async def test_token_ids_to_be_shortened_have_a_bound(model: pathlib.Path) -> None:
    async with served(model, Tuning(prompts=Limits(max_ids=20_000))) as pair:
        members = {"model": "tiny", "max_tokens": 1, "truncate_prompt_tokens": 9, "truncation_side": "left"}
        answer = await pair.service.ask("/v1/completions", members | {"prompt": [17] * 20_000})
        assert answer.status == 200
        assert answer.json["usage"]["prompt_tokens"] == 9
        before = work(pair)
        for more in ({}, {"prompt_logprobs": 1}, {"add_special_tokens": None}):
            refused = await pair.service.ask("/v1/completions", members | more | {"prompt": [17] * 20_001})
            assert refused.status == 400
            assert refused.json["error"]["message"] == "prompt has 20001 token ids: at most 20000 are taken"
        assert work(pair) == before
