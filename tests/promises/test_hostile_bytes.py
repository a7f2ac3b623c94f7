"""Bytes that two servers could read in two ways get one 4xx or a cut connection, and kvproxy serves on."""

import json
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.helpers.raw import BODY, CHUNKED, CHUNKS, GET, LENGTH, POST, chunk, connection, send
from tests.helpers.service import Pair, ask, fleet

SMUGGLED = b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n"
"""A second request in the first one's body, or behind it: nobody may answer it."""


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared() -> AsyncIterator[Pair]:
    async with fleet(prefill=1, decode=1, kv_events=False) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def pair(shared: Pair) -> AsyncIterator[Pair]:
    """One fleet for all of this: whatever was sent to it before, it must still serve."""
    for engine in shared.engines.all:
        engine.seen.clear()
    yield shared
    assert (await shared.service.complete("still serving")).status == 200
    await shared.service.settled()


AMBIGUOUS = {
    "a length and chunks": POST + LENGTH + CHUNKED + b"\r\n" + CHUNKS + SMUGGLED,
    "chunks and a length": POST + CHUNKED + LENGTH + b"\r\n" + CHUNKS + SMUGGLED,
    "the same length twice": POST + LENGTH + LENGTH + b"\r\n" + BODY,
    "two lengths": POST + LENGTH + b"Content-Length: 0\r\n\r\n" + BODY + SMUGGLED,
    "a list of lengths": POST + b"Content-Length: 29, 29\r\n\r\n" + BODY,
    "a signed length": POST + b"Content-Length: +29\r\n\r\n" + BODY,
    "a negative length": POST + b"Content-Length: -1\r\n\r\n" + BODY,
    "a length with an underscore": POST + b"Content-Length: 2_9\r\n\r\n" + BODY,
    "a hexadecimal length": POST + b"Content-Length: 0x1d\r\n\r\n" + BODY,
    "a length beyond 64 bits": POST + b"Content-Length: 99999999999999999999999\r\n\r\n" + BODY,
    "a space before the colon": POST + b"Content-Length : 29\r\n\r\n" + BODY,
    "a folded header": POST + LENGTH + b"X-A: 1\r\n 2\r\n\r\n" + BODY,
    "a folded transfer coding": POST + b"Transfer-Encoding:\r\n chunked\r\n" + LENGTH + b"\r\n" + BODY,
    "a head of bare line feeds": GET.replace(b"\r\n", b"\n") + b"\n",
    "one bare line feed": GET + b"X-A: 1\nX-B: 2\r\n\r\n",
    "a bare carriage return": GET + b"X-A: 1\rX-B: 2\r\n\r\n",
    "identity coding": POST + b"Transfer-Encoding: identity\r\n" + LENGTH + b"\r\n" + BODY,
    "an unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKS,
    "chunked is not the last coding": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNKS,
    "a coding before chunked": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKS,
    "chunked twice": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + CHUNKS,
    "two coding headers": POST + CHUNKED + b"Transfer-Encoding: identity\r\n\r\n" + CHUNKS,
    "a vertical tab before the coding": POST
    + b"Transfer-Encoding: \x0bchunked\r\n"
    + LENGTH
    + b"\r\n"
    + BODY,
    "chunks in HTTP/1.0": POST.replace(b"1.1", b"1.0") + CHUNKED + b"\r\n" + CHUNKS,
    "a line feed in a chunk extension": POST + CHUNKED + b"\r\n" + chunk(BODY, b";a=\n") + b"0\r\n\r\n",
    "a chunk size beyond 64 bits": POST + CHUNKED + b"\r\nffffffffffffffffff\r\n" + BODY,
    "a negative chunk size": POST + CHUNKED + b"\r\n-1d\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a chunk size with 0x": POST + CHUNKED + b"\r\n0x1d\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a chunk size and a space": POST + CHUNKED + b"\r\n1d \r\n" + BODY + b"\r\n0\r\n\r\n",
    "chunks that end in line feeds": POST + CHUNKED + b"\r\n1d\n" + BODY + b"\n0\n\n",
    "a chunk longer than it says": POST + CHUNKED + b"\r\n1d\r\n" + BODY + b"XX0\r\n\r\n",
    "trailers without end": POST + CHUNKED + b"\r\n" + CHUNKS[:-2] + b"A: b\r\n" * 3000 + b"\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": GET + b"Host: y\r\n\r\n",
    "a zero byte in a value": GET + b"X-A: a\x00b\r\n\r\n",
    "a zero byte in a name": GET + b"X\x00A: b\r\n\r\n",
    "a control character in a value": GET + b"X-A: a\x07b\r\n\r\n",
    "no name": GET + b": b\r\n\r\n",
    "a space in a name": GET + b"X A: b\r\n\r\n",
    "no colon": GET + b"XA\r\n\r\n",
    "two content types": POST + b"Content-Type: text/plain\r\n" + LENGTH + b"\r\n" + BODY,
    "HTTP/1.2": b"GET /health HTTP/1.2\r\nHost: x\r\n\r\n",
    "HTTP/2.0": b"GET /health HTTP/2.0\r\nHost: x\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "tabs in the request line": b"GET\t/health\tHTTP/1.1\r\nHost: x\r\n\r\n",
    "a target that is no URL": b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    "a long request line": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a long header": GET + b"X-A: " + b"a" * 100_000 + b"\r\n\r\n",
    "many headers": GET + b"".join(b"X-%d: 1\r\n" % i for i in range(200)) + b"\r\n",
    "an unknown expectation": POST + LENGTH + b"Expect: 200-maybe\r\n\r\n" + BODY,
}


@pytest.mark.parametrize("data", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
async def test_ambiguous_http_gets_one_4xx_in_the_envelope_and_the_end_of_its_connection(
    pair: Pair, data: bytes
) -> None:
    received = await send(pair.service, data)
    assert received.closed
    [status] = received.statuses
    assert 400 <= status < 500
    assert received.error["code"] == status
    assert set(received.error) == {"message", "type", "param", "code"}
    assert b"X-Request-Id: " in received.data
    assert b"a" * 40 not in received.data  # nothing that was sent comes back
    assert not [seen for engine in pair.engines.all for seen in engine.seen if seen.path.startswith("/v1/c")]


async def test_a_request_with_all_that_is_allowed_passes(pair: Pair) -> None:
    for data in (
        POST + LENGTH + b"\r\n" + BODY,
        POST + CHUNKED + b"\r\n" + CHUNKS,
        POST
        + b"tRANSFER-eNCODING:\tChunked\r\n\r\n"
        + chunk(BODY, b";name=value")
        + b"0\r\nX-Trailer: 1\r\n\r\n",
        POST.replace(b"1.1", b"1.0") + LENGTH + b"\r\n" + BODY,
        GET + b"X-A: " + b"a" * 60_000 + b"\r\n\r\n",
        POST + CHUNKED + b"\r\n" + b"".join(chunk(BODY[i : i + 1]) for i in range(len(BODY))) + b"0\r\n\r\n",
    ):
        async with connection(pair.service) as (reader, writer):
            for _ in range(3 if b"1.0" not in data else 1):  # and the connection stays good
                writer.write(data)
                assert b" 200 " in await reader.readline()
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(h for h in head.lower().split(b"\r\n") if h.startswith(b"content-length"))
                await reader.readexactly(int(length.split(b":")[1]))


async def test_a_head_is_bounded_as_a_whole(pair: Pair) -> None:
    many = b"".join(b"X-%d: %s\r\n" % (i, b"y" * 60_000) for i in range(100))
    received = await send(pair.service, GET + many + b"\r\n")
    assert received.closed
    assert not received.data


async def test_chunk_extensions_do_not_get_around_the_limit_of_bodies(pair: Pair) -> None:
    endless = chunk(b" ", b";" + b"x" * 10_000) * 1000
    received = await send(pair.service, POST + CHUNKED + b"\r\n" + endless)
    assert received.closed
    assert not received.data


async def test_header_values_come_back_on_no_line_of_their_own(pair: Pair) -> None:
    evil = (
        b"GET /health%0d%0aX-Evil:%201 HTTP/1.1\r\nHost: x\r\nX-Request-Id: a%0d%0aX-Evil:1\r\nConnection: "
        b"close\r\n\r\n"
    )
    received = await send(pair.service, evil)
    assert received.statuses == [404]
    assert b"\r\nX-Evil" not in received.data
    for odd in (b"a b", b"a\tb", b"\xc3\xa9", b"x" * 257):
        head = GET + b"Connection: close\r\nX-Request-Id: " + odd + b"\r\n\r\n"
        assert odd not in (await send(pair.service, head)).data


NAMES = [
    b'"kv_transfer_params"',
    b'"kv\\u005ftransfer_params"',
    b'"\\u006b\\u0076\\u005f\\u0074ransfer_params"',
    b'"ec\\u005Ftransfer_params"',
    b'"request\\u005fid"',
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrapped", [False, True])
async def test_no_spelling_of_a_forbidden_member_reaches_an_engine(
    pair: Pair, name: bytes, wrapped: bool
) -> None:
    member = name + b': {"remote_engine_id": "stolen-marker"}'
    twice = member + b", " + member
    given = b'"vllm_xargs": {' + twice + b"}" if wrapped else twice
    answer = await pair.service.ask("/v1/completions", b'{"prompt": [1], "max_tokens": 2, ' + given + b"}")
    assert answer.status == 200
    bodies = [
        seen.body for engine in pair.engines.all for seen in engine.seen if seen.path.startswith("/v1/c")
    ]
    assert len(bodies) == 2
    assert not [body for body in bodies if b"stolen-marker" in body]


async def test_a_member_given_twice_reaches_all_engines_once_with_its_last_value(pair: Pair) -> None:
    body = (
        b'{"prompt": [1], "prompt": [2, 3], "max_tokens": 1, "m\\u0061x_tokens": 2, "model": "no", "model": '
        b'"tiny"}'
    )
    answer = await pair.service.ask("/v1/completions", body)
    assert answer.status == 200
    assert (answer.json["usage"]["prompt_tokens"], answer.json["usage"]["completion_tokens"]) == (2, 2)
    for engine in pair.engines.all:
        for seen in engine.seen:
            names = [name for name, _ in json.loads(seen.body or b"{}", object_pairs_hook=list)]
            assert len(names) == len(set(names))


REFUSED_BODIES = {
    "a byte order mark": b'\xef\xbb\xbf{"prompt": "x"}',
    "UTF-16": '{"prompt": "x"}'.encode("utf-16"),
    "invalid UTF-8 in a value": b'{"prompt": "\xff\xfe"}',
    "invalid UTF-8 in a name": b'{"prompt": "x", "\xff": 1}',
    "overlong UTF-8": b'{"prompt": "\xc0\x80"}',
    "a surrogate in UTF-8": b'{"prompt": "\xed\xa0\x80"}',
    "half a surrogate pair": b'{"prompt": "x", "user": "\\ud800"}',
    "a surrogate pair the wrong way round": b'{"prompt": "x", "stop": ["\\udfff\\ud800"]}',
    "a raw control character": b'{"prompt": "a\x00b"}',
    "NaN": b'{"prompt": "x", "temperature": NaN}',
    "Infinity": b'{"prompt": "x", "temperature": -Infinity}',
    "a number without end": b'{"prompt": "x", "max_tokens": ' + b"9" * 100_000 + b"}",
    "an exponent without end": b'{"prompt": "x", "max_tokens": 1e999999999}',
    "two values": b'{"prompt": "x"} {"prompt": "y"}',
    "a trailing comma": b'{"prompt": "x",}',
    "a comment": b'{"prompt": "x" /* y */}',
    "single quotes": b"{'prompt': 'x'}",
    "a deep value": b'{"prompt": "x", "tools": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "a deep value in strings": b'{"prompt": "x", "tools": ' + b'["[",' * 5000 + b"1" + b"]" * 5000 + b"}",
    "an unclosed string of brackets": b'{"prompt": "' + b"[" * 100_000,
}


@pytest.mark.parametrize("body", REFUSED_BODIES.values(), ids=REFUSED_BODIES.keys())
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_what_is_no_json_is_refused_before_any_engine_sees_it(
    pair: Pair, path: str, body: bytes
) -> None:
    if "chat" in path:
        body = body.replace(b'"prompt": "x"', b'"messages": [{"role": "user", "content": "x"}]')
    began_at = time.process_time()
    answer = await pair.service.ask(path, body)
    assert answer.status == 400
    assert answer.json["error"]["code"] == 400
    assert time.process_time() - began_at < 5
    assert not [seen for engine in pair.engines.all for seen in engine.seen if seen.path.startswith(path)]


async def test_zero_bytes_in_strings_are_the_engines_to_judge(pair: Pair) -> None:
    body = b'{"model": "tiny", "max_tokens": 1, "prompt": "a\\u0000b", "user": "\\u0000"}'
    direct = await ask(pair.service.session, pair.engines.decode[0].url, "/v1/completions", body)
    answer = await pair.service.ask("/v1/completions", body)
    assert answer.status == direct.status == 200
    assert answer.text == direct.text


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, identity", "x"])
async def test_no_compressed_body_is_unpacked(pair: Pair, coding: str) -> None:
    answer = await pair.service.ask("/v1/completions", b"\x1f\x8b" + bytes(100), Content_Encoding=coding)
    assert answer.status == 415
