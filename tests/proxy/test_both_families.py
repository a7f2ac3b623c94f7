"""`::` is every address of the machine: one socket serves IPv6 and IPv4, for clients and for operators."""

import asyncio
import logging
import socket

import pytest

from proxy.config import Security
from tests.proxy.service import ask, fleet


def port_of(url: str) -> str:
    return url.rpartition(":")[2]


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::", "0::0", "[::]"])
async def test_both_families_are_served_on_one_socket(host: str) -> None:
    async with fleet(1, 1, kv_events=False, host=host, admin_api_key=None) as pair:
        assert pair.service.url == f"http://[{host.strip('[]')}]:{pair.service.port}"
        for at in ("127.0.0.1", "[::1]"):
            base = f"http://{at}:{pair.service.port}"
            assert (await ask(pair.service.session, base, "/health")).status == 200
            # answered on loopback only, and an IPv4 client of such a socket comes from ::ffff:127.0.0.1
            assert (
                await ask(pair.service.session, base, "/explain", {"model": "tiny", "prompt": "x"})
            ).status == 200


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
async def test_the_admin_host_serves_both_families_too() -> None:
    security = Security(admin_host="::", admin_port=0)
    async with fleet(1, 1, kv_events=False, security=security) as pair:
        assert pair.service.url.startswith("http://127.0.0.1:")
        assert pair.service.admin_url.startswith("http://[::]:")
        for at in ("127.0.0.1", "[::1]"):
            base = f"http://{at}:{port_of(pair.service.admin_url)}"
            assert (await ask(pair.service.session, base, "/status")).status == 200


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
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
