"""No answer of an engine may be longer than an answer to that question can be, and the error of one that is
says so.
"""

from collections.abc import Iterator

import msgspec
import pytest

from proxy.connectors.handoff import MAX_PARAMS_BYTES, max_answer_bytes
from proxy.errors import TooLongError
from proxy.upstream.bounds import MAX_ANSWER_BYTES, MAX_MODELS_BYTES, in_words, max_bytes
from proxy.upstream.client import EngineClient
from proxy.upstream.engine_api.asking import Question, ask
from proxy.upstream.engine_api.metrics import MAX_LINES, Depth, lines_of, read_capacities, read_depth
from proxy.upstream.engine_api.tokens import tokenize
from tests.hostile.raw_engine import answer, raw_engine

IN_BUFFERS_BYTES = 16 << 20
"""What sockets and streams hold between two processes, generously."""

HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\n"
ENDLESS_BYTES = 100 << 20
PIECE = b'{"id":"x"},' * 6000


def endless(head: bytes) -> Iterator[bytes]:
    """An answer of 100 MiB."""
    yield head
    chunked = b"chunked" in head
    for _ in range(ENDLESS_BYTES // len(PIECE)):
        yield b"%x\r\n%s\r\n" % (len(PIECE), PIECE) if chunked else PIECE


def told() -> Iterator[bytes]:
    return endless(HEAD + b"Content-Length: %d\r\n\r\n" % ENDLESS_BYTES)


def untold() -> Iterator[bytes]:
    return endless(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")


@pytest.mark.parametrize("says", [told, untold])
@pytest.mark.parametrize(
    ("path", "limit"),
    [
        ("/v1/models", "2 MiB"),
        ("/kv_event_sources", "256 KiB"),
        ("/version", "64 KiB"),
        ("/is_sleeping", "64 KiB"),
        ("/metrics", "8 MiB"),
    ],
)
async def test_an_answer_is_read_no_further_than_its_bound(path: str, limit: str, says: type) -> None:
    async with raw_engine({path: says()}) as engine, EngineClient() as client:
        with pytest.raises(TooLongError, match=f"its answer to {path} is longer than {limit}"):
            await ask(client, engine.address, Question(path, bytes), 60.0)
        assert engine.sent_bytes < max_bytes(path, 0) + IN_BUFFERS_BYTES


async def test_the_bound_of_a_question_in_json_grows_with_it() -> None:
    said = msgspec.json.encode({"tokens": [151643] * 300_000})
    async with raw_engine({"/tokenize": answer(said)}) as engine, EngineClient() as client:
        found = await tokenize(client, engine.address, b" " * 300_000, 60.0)
        assert found == said
        with pytest.raises(TooLongError, match="its answer to /tokenize is longer than 1 MiB"):
            await tokenize(client, engine.address, b" " * 1000, 60.0)


async def test_an_error_is_no_longer_than_what_it_may_quote() -> None:
    said = answer(b"x" * (2 << 20), b"500 Internal Server Error")
    async with raw_engine({"/v1/completions": said}) as engine, EngineClient() as client:
        head = await client.post(engine.address, "/v1/completions", b"{}", [])
        with head, pytest.raises(TooLongError):
            await head.read()
        with await client.post(engine.address, "/v1/completions", b" " * (1 << 20), []) as head:
            assert len(await head.read()) == 2 << 20


@pytest.mark.parametrize(
    ("path", "asked_bytes", "status", "expected"),
    [
        ("/v1/models", 0, 200, MAX_MODELS_BYTES),
        ("/v1/models", 0, 500, MAX_MODELS_BYTES),
        ("/v1/completions", 10, 200, MAX_ANSWER_BYTES),
        ("/v1/completions", 10, 400, (1 << 20) + 40),
        ("/v1/completions", 64 << 20, 400, MAX_ANSWER_BYTES),
        ("/tokenize", 1000, 200, (1 << 20) + 16_000),
        ("/tokenize", 64 << 20, 200, 64 << 20),
    ],
)
def test_bounds(path: str, asked_bytes: int, status: int, expected: int) -> None:
    assert max_bytes(path, asked_bytes, status) == expected


def test_bounds_in_words() -> None:
    assert [in_words(n) for n in (5, 1 << 10, 2 << 20)] == ["5 bytes", "1 KiB", "2 MiB"]


def test_the_answer_of_a_prefill_leg_is_bounded_by_its_prompt() -> None:
    assert max_answer_bytes(1000) < (1 << 20) + 8_000 + (64 << 10) + 1
    assert MAX_PARAMS_BYTES < max_answer_bytes(64 << 20) < MAX_PARAMS_BYTES + (1 << 20)


class Searched(str):
    """A page that counts what is looked through for the beginnings of lines."""

    __slots__ = ()
    searched_chars = 0

    def find(self, sub: str, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]  # str's is positional
        found = super().find(sub, start) if end is None else super().find(sub, start, end)
        Searched.searched_chars += (found if found >= 0 else len(self)) - start
        return found


@pytest.mark.parametrize(
    "page",
    [
        "\n" * 1_000_000,
        "vllm:engine_sleep_state{" * 40_000,
        'vllm:engine_sleep_state{sleep_state="' * 25_000 + "\n",
        'vllm:engine_sleep_state{sleep_state="a"\n' * 20_000,
        'vllm:cache_config_info{engine="1"\n' * 30_000,
    ],
)
def test_a_page_is_looked_through_once(page: str) -> None:
    Searched.searched_chars = 0
    assert read_depth(Searched(page)) is Depth.UNTOLD
    assert read_capacities(Searched(page)) == {}
    assert Searched.searched_chars < 3 * len(page)
    assert len(list(lines_of(page, "vllm:"))) <= MAX_LINES


@pytest.mark.parametrize(
    ("page", "lines"),
    [
        ("", []),
        ("a 1", ["a 1"]),
        ("a 1\na 2\r\nb\na 3\n", ["a 1", "a 2", "a 3"]),
        ("b\nxa\na 1\n\na", ["a 1", "a"]),
        ("a" + "x" * 9000 + "\na 1", ["a 1"]),
    ],
)
def test_lines_of_a_name(page: str, lines: list[str]) -> None:
    assert list(lines_of(page, "a")) == lines
