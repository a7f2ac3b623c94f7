"""Connection-bound headers and ours stay on their side; everything else passes."""

import pytest

from kvevents import REPORT_SESSION
from proxy.headers import for_client, for_engine, for_streaming_client, leg_id


def test_end_to_end_headers_reach_the_engine_and_ours_do_not() -> None:
    client = [
        ("Authorization", "Bearer c"),
        ("Traceparent", "00-1-2-3"),
        ("Connection", "keep-alive, X-Hop"),
        ("X-Hop", "1"),
        ("Transfer-Encoding", "chunked"),
        ("Content-Length", "5"),
        ("Host", "h"),
        ("Expect", "100-continue"),
        ("x-data-parallel-rank", "7"),
        ("X-REQUEST-ID", "theirs"),
        ("X-API-Key", "admin"),
    ]
    assert for_engine(client, keep_authorization=True) == [
        ("Authorization", "Bearer c"),
        ("Traceparent", "00-1-2-3"),
    ]
    assert for_engine(client, keep_authorization=False) == [("Traceparent", "00-1-2-3")]


def test_a_session_id_reaches_the_engine_unless_it_is_our_mark() -> None:
    own = [("x-session-id", "s-1"), ("X-Vllm-Priority", "3"), ("X-Note", REPORT_SESSION)]
    assert for_engine([*own, ("X-session-ID", REPORT_SESSION)], keep_authorization=True) == own


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("abc-1", "abc-1-U"),
        ("req_1.2", "req_1.2-U"),
        ("urn:uuid:1", "urn-uuid-1-U"),
        ("___prefill_addr_10.0.0.1:21001___decode_addr_h:1",
        "___prefill_addr_10.0.0.1-21001___decode_addr_h-1-U"),
        ("a/../b%2e;$(x)'\"", "a-..-b-2e---x----U"),
        ("x" * 256, "x" * 64 + "-U"),
    ],
)  # fmt: skip
def test_a_clients_id_is_bounded_and_harmless_in_that_of_its_legs(given: str, expected: str) -> None:
    assert leg_id(given, "U") == expected


def test_an_engines_headers_reach_the_client() -> None:
    engine = [
        ("Content-Type", "text/event-stream"),
        ("Content-Length", "9"),
        ("Keep-Alive", "timeout=5"),
        ("X-Request-Id", "ours"),
        ("X-Load", "3"),
        ("Warning", "1"),
        ("Warning", "2"),
    ]
    assert for_client(engine) == [
        ("Content-Type", "text/event-stream"),
        ("X-Load", "3"),
        ("Warning", "1"),
        ("Warning", "2"),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "Set-Cookie",
        "Set-Cookie2",
        "Clear-Site-Data",
        "Strict-Transport-Security",
        "Alt-Svc",
        "Refresh",
        "ACCESS-Control-Allow-Origin",
        "Access-Control-Allow-Headers",
        "Access-Control-Allow-Methods",
        "Access-Control-Max-Age",
        "Access-Control-Allow-Private-Network",
    ],
)
def test_an_engine_tells_browsers_nothing_of_kvproxys_origin(name: str) -> None:
    assert for_client([(name, "x"), ("X-Load", "3")]) == [("X-Load", "3")]


@pytest.mark.parametrize(
    ("said", "unbuffered"),
    [
        ([], {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}),
        ([("cache-control", "private")], {"cache-control": "private", "X-Accel-Buffering": "no"}),
        ([("X-ACCEL-buffering", "yes")], {"X-ACCEL-buffering": "yes", "Cache-Control": "no-cache"}),
    ],
)
def test_a_stream_is_not_buffered_unless_its_engine_says_so(
    said: list[tuple[str, str]], unbuffered: dict[str, str]
) -> None:
    kept = [("Content-Type", "text/event-stream"), *said]
    headers = for_streaming_client([*kept, ("Connection", "close")])
    assert dict(headers) == {"Content-Type": "text/event-stream"} | unbuffered
    assert len(headers) == 3
