"""Requests are refused by vLLM's rules before any leg is sent, and cleaned of what no client may set."""

import json
from typing import Any

import pytest

from kvevents import REPORT_SESSION
from proxy.errors import BadRequestError
from proxy.request import dialects
from proxy.request.dialects import Dialect
from proxy.request.dialects.completions import PromptShape, prompt_shape
from proxy.request.generation import GenerationRequest, read_request
from proxy.request.outline import MAX_MEMBERS, outline, signs_of

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
TEXT = {"prompt": "hi"}


def read(dialect: Dialect | tuple[Dialect, ...], members: dict[str, Any]) -> GenerationRequest:
    return read_request(dialect, json.dumps(members).encode(), "tiny")


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"n": "x"}, "n"),
        ({"n": 0}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": [1]}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_tokens": 1e400}, "max_tokens"),
        ({"max_tokens": 4, "min_tokens": 5}, "min_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": None}, "min_tokens"),
        ({"stream": "maybe"}, "stream"),
        ({"stream": 2}, "stream"),
        ({"stream": [True]}, "stream"),
        ({"stream": {}}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": False, "stream_options": {}}, "stream_options"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": "perhaps"}}, "stream_options.include_usage"),
        ({"model": 7}, "model"),
    ],
)
@pytest.mark.parametrize("dialect", dialects.TOKENIZED)
def test_a_request_that_only_decode_would_reject_is_rejected_first(
    dialect: Dialect, members: dict[str, Any], param: str
) -> None:
    text = json.dumps((CHAT if dialect is dialects.CHAT else TEXT) | members).replace("Infinity", "1e400")
    with pytest.raises(BadRequestError) as caught:
        read_request(dialect, text.encode(), "tiny")
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("dialect", "members", "stream"),
    [
        (dialects.CHAT, {"n": None, "max_tokens": None, "stream": None, "stream_options": None}, False),
        (dialects.CHAT, {"n": "2", "max_tokens": 5.0, "min_tokens": True}, False),
        (dialects.CHAT, {"max_tokens": 1, "max_completion_tokens": 9, "min_tokens": 8}, False),
        (dialects.CHAT, {"min_tokens": 5000}, False),
        (dialects.COMPLETIONS, {"min_tokens": 16}, False),
        (dialects.COMPLETIONS, {"max_tokens": None, "min_tokens": 17}, False),
        (dialects.COMPLETIONS, {"stream": "yes", "stream_options": {"include_usage": 1}}, True),
        (dialects.CHAT, {"stream": 1}, True),
    ],
)
def test_requests_that_vllm_accepts_are_accepted(
    dialect: Dialect, members: dict[str, Any], stream: bool
) -> None:
    request = read(dialect, (CHAT if dialect is dialects.CHAT else TEXT) | members)
    assert request.stream is stream
    assert json.loads(request.body.encoded()) == (CHAT if dialect is dialects.CHAT else TEXT) | members


def test_a_completion_with_more_min_tokens_than_its_default_length_is_refused() -> None:
    with pytest.raises(BadRequestError):
        read(dialects.COMPLETIONS, TEXT | {"min_tokens": 17})


def test_members_that_could_harm_an_engine_are_removed() -> None:
    data = (
        b'{"prompt": "hi", "\\u006bv_transfer_params": {"do_remote_prefill": true}, "ec_transfer_params": 1,'
        b' "request_id": "r", "vllm_xargs": {"kv_cache_report_mode": "full", "kv_transfer_params": "x",'
        b' "ec_transfer_params": "x", "other": 0.10}}'
    )
    assert read_request(dialects.COMPLETIONS, data, "tiny").body.encoded() == (
        b'{"prompt":"hi","vllm_xargs":{"other":0.10}}'
    )


def test_nobody_can_pass_for_a_report_that_kvproxy_asked_for() -> None:
    body = TEXT | {"session_id": REPORT_SESSION, "vllm_xargs": {"session_id": REPORT_SESSION, "a": 1}}
    assert json.loads(read(dialects.COMPLETIONS, body).body.encoded()) == TEXT | {"vllm_xargs": {"a": 1}}
    own = TEXT | {"session_id": "s", "vllm_xargs": {"session_id": "t"}}
    assert json.loads(read(dialects.COMPLETIONS, own).body.encoded()) == own


@pytest.mark.parametrize("xargs", [None, 3, [], "x", {"a": 1}])
def test_other_xargs_pass_as_they_came(xargs: Any) -> None:
    assert read(dialects.COMPLETIONS, TEXT | {"vllm_xargs": xargs}).body.value("vllm_xargs") == xargs


@pytest.mark.parametrize(
    ("prompt", "shape", "count"),
    [
        ("hi", PromptShape.TEXT, 1),
        ([1, 2, 3], PromptShape.IDS, 1),
        ([], PromptShape.IDS, 1),
        (["a"], PromptShape.TEXTS, 1),
        (["a", "b"], PromptShape.TEXTS, 2),
        ([[1], [2], [3]], PromptShape.ID_LISTS, 3),
        (["a", 1], PromptShape.ODD, 1),
        (["1", 2], PromptShape.ODD, 1),
        (["a", [1]], PromptShape.ODD, 1),
        ([[1], "a"], PromptShape.ODD, 1),
        ([[1], ["2"]], PromptShape.ODD, 1),
        ([[1], [-2]], PromptShape.ODD, 1),
        ([["2"]], PromptShape.ID_LISTS, 1),
        (None, PromptShape.OTHER, 1),
        (5, PromptShape.OTHER, 1),
        ({"a": 1}, PromptShape.OTHER, 1),
    ],
)
def test_prompts_are_counted(prompt: Any, shape: PromptShape, count: int) -> None:
    request = read(dialects.COMPLETIONS, {"prompt": prompt})
    assert prompt_shape(request.body) == (shape, count)
    assert request.prompt_count == count
    assert request.whole is (shape is PromptShape.ODD)


@pytest.mark.parametrize(
    ("dialect", "members", "whole"),
    [
        (dialects.CHAT, CHAT, False),
        (dialects.CHAT, CHAT | {"use_beam_search": True}, True),
        (dialects.CHAT, CHAT | {"prompt_logprobs": 0}, True),
        (dialects.CHAT, CHAT | {"prompt_logprobs": None, "logprobs": True, "echo": True}, False),
        (dialects.COMPLETIONS, TEXT | {"echo": True}, False),
        (dialects.COMPLETIONS, TEXT | {"echo": True, "logprobs": 1}, True),
        (dialects.COMPLETIONS, TEXT | {"echo": True, "max_tokens": 0}, True),
        (dialects.COMPLETIONS, TEXT | {"echo": True, "max_tokens": 1}, False),
        (dialects.COMPLETIONS, {"prompt_embeds": "abc"}, True),
        (dialects.COMPLETIONS, {"prompt": ["a", "b"]}, False),
        (dialects.COMPLETIONS, {"prompt": ["a", 1]}, True),
    ],
)
def test_requests_that_gain_nothing_from_two_legs_are_told(
    dialect: Dialect, members: dict[str, Any], whole: bool
) -> None:
    assert read(dialect, members).whole is whole


def test_the_members_tell_the_route_where_it_is_not_given() -> None:
    assert read(dialects.DIALECTS, CHAT).dialect is dialects.CHAT
    assert read(dialects.DIALECTS, TEXT).dialect is dialects.COMPLETIONS
    for members in ({}, CHAT | TEXT):
        with pytest.raises(BadRequestError):
            read(dialects.DIALECTS, members)


def test_a_missing_model_is_the_configured_one() -> None:
    assert read(dialects.CHAT, CHAT).model == "tiny"
    assert read(dialects.CHAT, CHAT | {"model": None}).model == "tiny"
    assert read(dialects.CHAT, CHAT | {"model": "alpha"}).model == "alpha"


STRANGERS = ",".join(f'"m{number}":1' for number in range(MAX_MEMBERS)).encode()
MANY_IDS = b"[" + b"1," * 100_000 + b"1]"


@pytest.mark.parametrize("ids", [b"[1]", MANY_IDS], ids=["few", "many"])
@pytest.mark.parametrize("more", [STRANGERS, b'"m":NaN', b'"m":1.'], ids=["members", "nan", "number"])
def test_parameters_that_an_engine_alone_could_read_are_refused(ids: bytes, more: bytes) -> None:
    """Unread, they could name transfer parameters."""
    smuggled = b'"extra_args":{"kv_transfer_params":{"do_remote_prefill":true}}'
    data = b'{"token_ids":%b,"sampling_params":{%b,%b}}' % (ids, more, smuggled)
    with pytest.raises(BadRequestError):
        read_request(dialects.GENERATE, data, "tiny", signs_of(data) or outline(bytearray(data)))
