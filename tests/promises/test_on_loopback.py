"""Without any key, only this machine may ask what other prompts left in caches."""

import pathlib
from typing import Any

from proxy.config import Security
from tests.helpers.raw import send
from tests.helpers.service import ADMIN_KEY, Pair, ask, fleet


async def statuses(pair: Pair, **headers: str) -> list[int]:
    """Of `/explain` and `/doctor`."""
    return [
        (await pair.service.ask("/explain", {"prompt": "x"}, **headers)).status,
        (await pair.service.ask("/doctor", **headers)).status,
    ]


async def test_operators_paths_answer_this_machine_alone() -> None:
    async with fleet(1, 1, kv_events=False, admin_api_key=None) as pair:
        assert await statuses(pair) == [200, 200]
        assert await statuses(pair, Host="localhost") == [200, 200]
        named: list[dict[str, str]] = [
            {"Host": "evil.example"},
            {"Via": "1.1 gateway"},
            {"X_Real_IP": "10.0.0.9"},
            {"Forwarded": "for=10.0.0.9"},
            {"X_Forwarded_For": "10.0.0.9"},
            {"Sec_Fetch_Site": "cross-site"},
            {"Origin": "http://evil.example"},
        ]
        for headers in named:
            assert await statuses(pair, **headers) == [403, 403], headers
        told = await pair.service.ask("/doctor", Host="evil.example")
        assert "Host is no name of loopback" in told.json["error"]["message"]
        assert "evil" not in told.body.decode()
        absolute = b"GET http://127.0.0.1/doctor HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        assert (await send(pair.service, absolute)).statuses == [403]


async def test_if_clients_need_keys_operators_need_one_too(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "keys"
    file.write_text("alice sk-alice\n")
    settings: dict[str, Any] = {"kv_events": False, "security": Security(api_key_file=file)}
    async with fleet(1, 1, admin_api_key=None, **settings) as pair:
        assert await statuses(pair) == [503, 503]
        assert await statuses(pair, Authorization="Bearer sk-alice") == [503, 503]
    async with fleet(1, 1, **settings) as pair:
        assert await statuses(pair) == [401, 401]
        assert await statuses(pair, X_API_Key=ADMIN_KEY) == [200, 200]
        # With the key it does not matter by which way it came.
        assert await statuses(pair, X_API_Key=ADMIN_KEY, Via="1.1 gateway", Host="gpu1.example") == [200, 200]


async def test_the_admin_port_is_as_careful() -> None:
    security = Security(admin_port=0)
    async with fleet(1, 1, kv_events=False, admin_api_key=None, security=security) as pair:
        for headers, status in (({}, 200), ({"Host": "evil.example"}, 403), ({"Via": "1.1 a"}, 403)):
            body = {"prompt": "x"}
            answer = await ask(pair.service.session, pair.service.admin_url, "/explain", body, **headers)
            assert answer.status == status
