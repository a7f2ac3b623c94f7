"""Without any key, only this machine may ask what other prompts left in caches: no proxy and no web page on
it.
"""

import pytest

from proxy.edge.access.on_loopback import why_not_local

HOST = ("Host", "127.0.0.1:8000")


def local(*headers: tuple[str, str], peer: str | None = "127.0.0.1", scheme: str = "http") -> bool:
    return why_not_local(peer, headers, scheme=scheme, listens_on={"gpu1", "0.0.0.0"}) is None


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("fe80::1", False),
        ("", False),
        (None, False),
    ],
)
def test_the_connection_must_come_from_loopback(peer: str | None, expected: bool) -> None:
    assert local(HOST, peer=peer) is expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("localhost:8000", True),
        ("LocalHost:1", True),
        ("127.0.0.1", True),
        ("127.0.0.53:8000", True),
        ("[::1]", True),
        ("[::1]:8000", True),
        ("gpu1:8000", True),
        ("GPU1", True),
        ("0.0.0.0:8000", True),
        ("evil.example", False),
        ("evil.example:8000", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("evil.example@127.0.0.1", False),
        ("127.0.0.1@evil.example", False),
        ("127.0.0.1:80:80", False),
        ("127.0.0.1 evil", False),
        ("127.1", False),
        ("2130706433", False),
        ("10.0.0.1", False),
        ("[::2]:8000", False),
        ("[gpu1]", False),
        ("::1", False),
        ("", False),
    ],
)
def test_the_host_must_be_loopbacks_own_or_the_one_that_is_listened_on(host: str, expected: bool) -> None:
    assert local(("Host", host)) is expected


def test_a_request_names_one_host() -> None:
    assert not local()
    assert not local(HOST, HOST)


@pytest.mark.parametrize(
    "name",
    [
        *("Forwarded", "Via", "X-Real-IP", "X-Forwarded-For", "X-Forwarded-Host", "x-forwarded-proto"),
        *(
            "X-Client-IP",
            "True-Client-IP",
            "CF-Connecting-IP",
            "X-Cluster-Client-IP",
            "X-Envoy-External-Address",
        ),
    ],
)
def test_whoever_asks_through_a_proxy_is_somebody_else(name: str) -> None:
    assert not local(HOST, (name, "127.0.0.1"))
    assert not local(HOST, (name, ""))


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:8000"}, True),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "later-invented"}, False),
        ({"Sec-Fetch-Site": ""}, False),
        ({"Origin": "http://127.0.0.1:8000"}, True),
        ({"Origin": "HTTP://127.0.0.1:8000"}, True),
        ({"Origin": "http://127.0.0.1:3000"}, False),
        ({"Origin": "http://127.0.0.1"}, False),
        ({"Origin": "https://127.0.0.1:8000"}, False),
        ({"Origin": "http://localhost:8000"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "http://127.0.0.1:8000.evil.example"}, False),
        ({"Origin": "http://127.0.0.1:8000/"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": ""}, False),
    ],
)
def test_no_page_of_another_origin_asks(headers: dict[str, str], expected: bool) -> None:
    assert local(HOST, *headers.items()) is expected


def test_a_port_that_is_not_said_is_the_schemes_own() -> None:
    assert local(("Host", "localhost"), ("Origin", "http://localhost:80"))
    assert local(("Host", "localhost:443"), ("Origin", "https://localhost"), scheme="https")
    assert not local(("Host", "localhost"), ("Origin", "https://localhost"))
