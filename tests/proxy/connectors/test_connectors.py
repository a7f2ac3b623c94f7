"""The bodies of both legs, by connector: the client's request except for the members that must differ."""

import json

import pytest

from proxy.connectors import CONNECTORS, Handoff, NixlConnector, SharedConnector, load_connector
from proxy.connectors.handoff import MAX_PARAMS_BYTES
from proxy.connectors.plans import LegsInTurn
from proxy.errors import ConfigError
from proxy.request.body import Body
from proxy.request.dialects import CHAT, COMPLETIONS

CLIENT = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "hi"}],
    "stream": True,
    "stream_options": {"include_usage": True},
    "max_tokens": 50,
    "max_completion_tokens": 60,
    "min_tokens": 5,
    "n": 3,
    "temperature": 0.5,
}
FOR_ONE_TOKEN = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "hi"}],
    "temperature": 0.5,
    "stream": False,
    "max_tokens": 1,
    "n": 1,
}
PARAMS = (
    '{"do_remote_prefill": true, "remote_engine_id": "e1", "remote_prefill_cached_tokens": 32, "x": 1.50}'
)
ANSWER = ('{"usage": {"prompt_tokens": 71}, "kv_transfer_params": ' + PARAMS + "}").encode()


def body() -> Body:
    return Body.parse(json.dumps(CLIENT).encode())


def first() -> Body:
    return CHAT.first_token_only(body())


def read(connector: LegsInTurn, answer: bytes) -> Handoff:
    return connector.read_handoff(answer, CHAT.usage(answer))


def test_a_nixl_prefill_leg_asks_for_one_token_and_a_hold() -> None:
    assert json.loads(bytes(NixlConnector().prefill_body(first()))) == FOR_ONE_TOKEN | {
        "kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False}
    }


def test_a_nixl_decode_leg_is_the_clients_request_with_the_params_word_for_word() -> None:
    nixl = NixlConnector()
    sent = bytes(nixl.decode_body(body(), read(nixl, ANSWER)))
    assert json.loads(sent) == CLIENT | {"kv_transfer_params": json.loads(PARAMS)}
    assert PARAMS.encode() in sent


def test_a_handoff_tells_what_the_accounts_need() -> None:
    handoff = read(NixlConnector(), ANSWER)
    assert (handoff.prompt_tokens, handoff.cached_tokens, handoff.engine_id) == (71, 32, "e1")


def test_cached_tokens_are_read_from_usage_where_the_params_do_not_tell() -> None:
    answer = b'{"usage": {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}}'
    assert read(SharedConnector(), answer).cached_tokens == 4


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"{", b"{}", b'{"kv_transfer_params": null}', b'{"usage": 3}', b"\xff"]
)
def test_an_answer_without_a_handoff_is_an_error(answer: bytes) -> None:
    with pytest.raises(ValueError, match="answer"):
        read(NixlConnector(), answer)


def test_a_release_is_a_request_bound_to_be_refused() -> None:
    nixl = NixlConnector()
    release = json.loads(nixl.release_body(COMPLETIONS.least(), read(nixl, ANSWER)) or b"")
    assert release["model"] != "tiny"
    assert release["kv_transfer_params"] == json.loads(PARAMS)


def test_a_fetching_leg_asks_for_one_token_with_the_params_word_for_word() -> None:
    nixl = NixlConnector()
    sent = bytes(nixl.fetch_body(first(), read(nixl, ANSWER)) or b"")
    assert json.loads(sent) == FOR_ONE_TOKEN | {"kv_transfer_params": json.loads(PARAMS)}
    assert PARAMS.encode() in sent
    assert SharedConnector().fetch_body(first(), Handoff(None, None, None, None)) is None


UNKNOWN = (
    '{"do_remote_prefill":true, "remote_engine_id":"e1","remote_block_ids":[[1,2],[3]] , "a_new_one" : '
    '{"b": [1e2, null]}, "remote_num_tokens": 18446744073709551616, "ünknown": "\\u00e9\\ud83d\\ude00", '
    '"twice": 1, "twice": 2}'
)


@pytest.mark.parametrize("body_of", ["decode_body", "fetch_body", "release_body"])
def test_params_that_nobody_here_knows_go_from_leg_to_leg_untouched(body_of: str) -> None:
    nixl = NixlConnector()
    handoff = read(nixl, b'{"kv_transfer_params": ' + UNKNOWN.encode() + b', "usage": null}')
    sent = (
        nixl.release_body(COMPLETIONS.least(), handoff)
        if body_of == "release_body"
        else getattr(nixl, body_of)(body(), handoff)
    )
    assert sent is not None
    assert UNKNOWN.encode() in sent
    assert json.loads(sent)["kv_transfer_params"] == json.loads(UNKNOWN)


def test_params_have_a_largest_size() -> None:
    around = len(b'{"remote_block_ids": ""}')
    largest = b'{"remote_block_ids": "%s"}' % (b"x" * (MAX_PARAMS_BYTES - around))
    handoff = read(NixlConnector(), b'{"kv_transfer_params": ' + largest + b"}")
    assert bytes(handoff.params or b"") == largest
    with pytest.raises(ValueError, match="prefill answer has kv_transfer_params of more than"):
        read(NixlConnector(), b'{"kv_transfer_params": ' + largest[:-2] + b'x"}}')


def test_shared_legs_carry_no_params() -> None:
    shared = SharedConnector()
    handoff = Handoff(None, None, None, None)
    assert json.loads(bytes(shared.prefill_body(first()))) == FOR_ONE_TOKEN
    assert json.loads(bytes(shared.decode_body(body(), handoff))) == CLIENT
    assert shared.release_body(COMPLETIONS.least(), handoff) is None


def test_a_connector_is_found_by_its_own_name() -> None:
    assert {name: load_connector(name).name for name in CONNECTORS} == {"nixl": "nixl", "shared": "shared"}
    with pytest.raises(ConfigError, match="--connector 'magic' is not known: give one of nixl, shared"):
        load_connector("magic")
