"""The tokenizer in this process gives what vLLM gave for the same requests, or leaves them to engines."""

import json
import pathlib
from typing import Any

import msgspec
import pytest

from proxy.generation import Route, read_request
from proxy.tokenizing import LocalTokenizer, read_model
from proxy.tokenizing.fields import Ask, what_to_tokenize
from tests.proxy.tiny_model import write_tiny_model

DATA = pathlib.Path(__file__).parent / "data"
CHATS = json.loads((DATA / "chats.json").read_text("utf-8"))
RECORDED = json.loads((DATA / "prompts_0_32.json").read_text("utf-8"))

LEFT = {20, 28, 29, 42, 45, 49, 50, 51, 54, 56}
"""Requests with members that vLLM drops or reads in several ways, and with variables that mean something to it."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocalTokenizer]:
    made = {}
    for name, setting in CHATS["templates"].items():
        directory = write_tiny_model(
            tmp_path_factory.mktemp(name), config=setting["config"], template=setting["template"]
        )
        made[name] = LocalTokenizer(read_model(directory))
    return made


def asked(request: dict[str, Any]) -> bytes | None:
    how = what_to_tokenize(read_request(Route.CHAT, msgspec.json.encode(request), "tiny"))
    return how.body if isinstance(how, Ask) else None


@pytest.mark.parametrize("number", range(len(CHATS["requests"])))
@pytest.mark.parametrize("name", CHATS["templates"])
def test_tokens_are_those_of_vllm_or_none(models: dict[str, LocalTokenizer], name: str, number: int) -> None:
    question = asked(CHATS["requests"][number])
    ours = models[name].answer_now(question) if question is not None else None
    theirs = RECORDED[name]["answers"][number]
    assert ours is None or ours.tolist() == theirs


@pytest.mark.parametrize("name", CHATS["templates"])
def test_few_chats_are_left_to_engines(models: dict[str, LocalTokenizer], name: str) -> None:
    left = []
    for number, (request, theirs) in enumerate(
        zip(CHATS["requests"], RECORDED[name]["answers"], strict=True)
    ):
        question = asked(request)
        if theirs is not None and (question is None or models[name].answer_now(question) is None):
            left.append(number)
    assert set(left) <= LEFT


@pytest.mark.parametrize("name", CHATS["templates"])
def test_contents_are_given_as_vllm_gives_them(models: dict[str, LocalTokenizer], name: str) -> None:
    template = models[name]._templates.choose(with_tools=False)
    assert template is not None
    assert ("openai" if template.wants_parts else "string") == RECORDED[name]["format"]
