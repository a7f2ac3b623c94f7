"""Only instances that the operator allows can be added: addresses are judged by network, names by pattern."""

from typing import Any

import pytest
from aiohttp import web

from proxy.config import AllowedInstances, Security, parse_instance
from proxy.errors import ConfigError
from proxy.phases import Role
from tests.helpers.service import engines, fleet


@pytest.mark.parametrize(
    ("patterns", "allowed", "refused"),
    [
        (["10.1.0.0/16"], ["10.1.2.3"], ["10.2.0.1", "[::1]", "gpu1", "10.1.2.3.example", "127.1"]),
        (["127.0.0.1"], ["127.0.0.1", "127.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"], ["127.0.0.2"]),
        (["fd00::/8"], ["[fd00::1]"], ["[fe80::1]", "10.0.0.1"]),
        (["[::1]"], ["[::1]"], ["[::2]"]),
        (["::ffff:0:0/96"], [], ["10.0.0.1", "[::ffff:10.0.0.1]"]),
        (["gpu*.cluster.example"], ["gpu1.cluster.example", "GPU1.Cluster.Example"], ["cpu1.cluster.example",
         "gpu1.cluster.example.evil", "gpu1.cluster.example."]),
        (["*"], ["any.name"], ["10.0.0.1", "127.1", "0x7f000001", "017700000001", "[::1]"]),
        (["gpu?"], ["gpu1"], ["gpu12", "gpu"]),
        (["10.0.0.0/8", "gpu1"], ["10.9.9.9", "gpu1"], ["11.0.0.1", "gpu2"]),
        (["0.0.0.0/0"], ["1.2.3.4"], ["localhost", "[::1]"]),
    ],
)  # fmt: skip
def test_what_is_allowed(patterns: list[str], allowed: list[str], refused: list[str]) -> None:
    judge = AllowedInstances(patterns)
    assert [host for host in allowed if not judge.allows(host)] == []
    assert [host for host in refused if judge.allows(host)] == []


@pytest.mark.parametrize(
    "pattern",
    ["10.0.0.1/8", "10.0.0.0/33", "a b", "http://gpu1", "gpu1:8100", "", "127.1", "10.1.0.300", "10.1"],
)
def test_a_wrong_pattern_names_the_flag(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"^--allow-instances '"):
        Security(allow_instances=[pattern])


@pytest.mark.parametrize(
    ("instance", "allowed"),
    [
        ("10.0.0.1:8100?events=tcp://10.0.0.1:5557&replay=tcp://10.0.0.2:5657", True),
        ("10.0.0.1:8100?events=tcp://192.168.0.1:5557", False),
        ("10.0.0.1:8100?events=tcp://10.0.0.1:5557&replay=tcp://192.168.0.1:5657", False),
        ("10.0.0.1:8100?events=ipc:///run/other.sock", False),
        ("10.0.0.1:8100?events=tcp://*:5557", False),
        ("10.0.0.1:8100?events=tcp://[::1]:5557", False),
    ],
)
def test_event_sources_obey_the_same_patterns(instance: str, allowed: bool) -> None:
    spec = parse_instance(instance, Role.PREFILL)
    assert (AllowedInstances(["10.0.0.0/8"]).why_not(spec) is None) is allowed


async def test_only_what_is_allowed_can_be_added_and_nothing_else_is_even_connected_to() -> None:
    async with (
        engines(prefill=1, decode=1) as outside,
        fleet(
            prefill=1, decode=1, kv_events=False, security=Security(allow_instances=["10.0.0.0/8", "gpu*"])
        ) as pair,
    ):
        for address in (outside.prefill[0].address, outside.prefill[0].address.replace("127.0.0.1", "127.1")):
            answer = await pair.service.admin("/instances/add", {"type": "prefill", "instance": address})
            assert answer.status == 403
            assert "--allow-instances" in answer.json["error"]["message"]
            assert answer.json["error"]["param"] == "instance"
        assert not outside.prefill[0].seen
        known = pair.engines.prefill[0].address  # configured, so it may go whatever the patterns say
        assert (await pair.service.admin("/instances/drain", {"instance": known})).status == 200
    async with (
        engines(prefill=1, decode=0) as inside,
        fleet(
            prefill=1, decode=1, kv_events=False, security=Security(allow_instances=["127.0.0.0/8"])
        ) as pair,
    ):
        asked = {"type": "prefill", "instance": inside.prefill[0].address}
        assert (await pair.service.admin("/instances/add", asked)).status == 200


@pytest.mark.parametrize(
    "instance",
    [
        "user:secret@127.0.0.1:80",
        "http://user@127.0.0.1:80",
        "127.0.0.1:80/admin",
        "http://127.0.0.1:80/v1",
        "127.0.0.1:80#x",
        "ftp://127.0.0.1:80",
        "file:///etc/passwd",
        "unix:/run/docker.sock",
        "127.0.0.1:80\r\nX-Evil: 1",
        "127.0.0.1:80%2fadmin",
        "//127.0.0.1:80",
        "127.0.0.1\\@evil:80",
    ],
)
async def test_an_address_is_a_host_and_a_port_and_nothing_more(instance: str) -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        answer = await pair.service.admin("/instances/add", {"type": "prefill", "instance": instance})
        assert answer.status == 400
        assert answer.json["error"]["param"] == "instance"
        assert len(pair.service.fleet) == 2


async def test_no_redirect_is_followed() -> None:
    followed: list[str] = []

    async def redirect(request: web.Request) -> web.Response:
        followed.append(request.path)
        return web.Response(status=307, headers={"Location": f"http://{request.host}/elsewhere"})

    async def elsewhere(request: web.Request) -> web.Response:
        followed.append(request.path)
        return web.json_response({"data": [{"id": "tiny"}]})

    app = web.Application()
    app.add_routes([web.get("/elsewhere", elsewhere), web.get("/{path:.*}", redirect)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with fleet(prefill=1, decode=1, kv_events=False) as pair:
            asked: dict[str, Any] = {"type": "decode", "instance": "127.0.0.1:%d" % runner.addresses[0][1]}  # noqa: UP031
            answer = await pair.service.admin("/instances/add", asked)
            assert answer.status == 400
            assert followed == ["/v1/models"]
    finally:
        await runner.cleanup()
