"""A client's headers reach the engine as they are, and none of them frames the request or ends a line of
it."""

import pytest

from proxy.upstream.questions import head_of


def test_a_head() -> None:
    head = head_of("POST", "10.0.0.1:8000", "/v1/completions", [("X-Request-Id", "a"), ("Accept", "x/y")], 12)
    assert head == (
        b"POST /v1/completions HTTP/1.1\r\nHost: 10.0.0.1:8000\r\nAccept-Encoding: identity\r\n"
        b"X-Request-Id: a\r\nAccept: x/y\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n"
    )


def test_without_a_body() -> None:
    assert head_of("GET", "[::1]:80", "/health", [], None) == (
        b"GET /health HTTP/1.1\r\nHost: [::1]:80\r\nAccept-Encoding: identity\r\nAccept: */*\r\n\r\n"
    )


@pytest.mark.parametrize(
    "name",
    [
        "Host",
        "content-length",
        "Transfer-Encoding",
        "CONNECTION",
        "Content-Type",
        "accept-encoding",
        "Expect",
    ],
)
def test_a_client_cannot_set_the_headers_that_frame_a_request(name: str) -> None:
    assert b"evil" not in head_of("POST", "a:1", "/x", [(name, "evil")], 1)


def test_our_own_key_takes_the_place_of_a_clients() -> None:
    theirs = [("authorization", "Bearer theirs")]
    assert b"authorization: Bearer theirs\r\n" in head_of("GET", "a:1", "/x", theirs, None)
    ours = head_of("GET", "a:1", "/x", theirs, None, "Bearer ours")
    assert b"theirs" not in ours
    assert ours.count(b"uthorization: Bearer ours\r\n") == 1


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n", "\0"])
def test_no_value_or_name_ends_a_line(end: str) -> None:
    for header in [("X-A", f"b{end}X-Evil: c"), (f"X-A{end}X-Evil", "c")]:
        with pytest.raises(ValueError, match="line end"):
            head_of("GET", "a:1", "/x", [header], None)


def test_bytes_that_are_no_utf_8_pass_as_they_came() -> None:
    value = b"caf\xe9 \xe2\x82\xac".decode("utf-8", "surrogateescape")
    assert b"X-A: caf\xe9 \xe2\x82\xac\r\n" in head_of("GET", "a:1", "/x", [("X-A", value)], None)
