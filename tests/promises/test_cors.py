"""Browsers get the CORS headers that vLLM's framework would send, on every route."""

import asyncio
import io
import json
import pathlib
from typing import Any

import aiohttp
import pytest

from proxy.config import Cors, Security
from proxy.edge.app import shut_down
from proxy.simulation.live.faults import Fault
from tests.helpers.service import ADMIN_KEY, Pair, fleet, wait_until

APP, EVIL = "https://app.example", "https://evil.example"

HELLO = {"prompt": "hello", "max_tokens": 3}


# -- on sockets ---------------------------------------------------------------------------------------------


async def asked(pair: Pair, method: str, path: str, body: Any = None, url: str = "", **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    data = None if body is None else io.BytesIO(json.dumps(body).encode())
    async with pair.service.session.request(
        method, (url or pair.service.url) + path, data=data, headers=named
    ) as response:
        await response.read()
        return response


def preflight(method: str = "POST", origin: str = APP) -> dict[str, str]:
    headers = "authorization,content-type,x-stainless-lang"
    return {
        "Origin": origin,
        "Access_Control_Request_Method": method,
        "Access_Control_Request_Headers": headers,
    }


def allowed(response: aiohttp.ClientResponse) -> list[str]:
    return response.headers.getall("Access-Control-Allow-Origin", [])


@pytest.fixture
def keys(tmp_path: pathlib.Path) -> Security:
    file = tmp_path / "keys"
    file.write_text("alice key-of-alice\n")
    file.chmod(0o600)
    return Security(api_key_file=file)


async def test_a_preflight_is_answered_before_keys_are_asked_for_and_reaches_nothing(keys: Security) -> None:
    cors = Cors(allowed_origins=[APP])
    async with fleet(1, 1, kv_events=False, cors=cors, security=keys) as pair:
        before = {engine.address: len(engine.seen) for engine in pair.engines.all}
        for path in ("/v1/chat/completions", "/v1/completions/", "/v1/models", "/nowhere"):
            response = await asked(pair, "OPTIONS", path, **preflight())
            assert (response.status, allowed(response)) == (200, [APP])
            assert (
                response.headers["Access-Control-Allow-Headers"]
                == preflight()["Access_Control_Request_Headers"]
            )
            assert "POST" in response.headers["Access-Control-Allow-Methods"]
            assert "Origin" in response.headers["Vary"]
        refused = await asked(pair, "OPTIONS", "/v1/completions", **preflight(origin=EVIL))
        assert (refused.status, allowed(refused)) == (400, [])
        assert {engine.address: len(engine.seen) for engine in pair.engines.all} == before
        bare = await asked(
            pair, "OPTIONS", "/v1/completions", Origin=APP
        )  # no preflight: an OPTIONS of a client
        assert bare.status == 401


@pytest.mark.parametrize("stream", [False, True])
async def test_answers_say_who_may_read_them_once(stream: bool) -> None:
    cors = Cors(allowed_origins=["*"])
    engine = {"any_origin": True}
    async with fleet(1, 1, kv_events=False, cors=cors, decision_headers=True, stand_in=engine) as pair:
        body = HELLO | {"stream": stream}
        response = await asked(
            pair, "POST", "/v1/completions", body, Origin=APP, Content_Type="application/json"
        )
        assert (response.status, allowed(response)) == (200, ["*"])
        assert response.headers.getall("Vary") == ["Origin"]
        exposed = response.headers["Access-Control-Expose-Headers"].split(", ")
        assert "X-Kvproxy-Decode" in exposed
        assert "X-Request-Id" in exposed
        anonymous = await asked(pair, "POST", "/v1/completions", body, Content_Type="application/json")
        assert (allowed(anonymous), anonymous.headers["Vary"]) == ([], "Origin")


async def test_a_stream_that_begins_with_comments_has_the_headers_too() -> None:
    cors = Cors(allowed_origins=[APP])
    async with fleet(1, 1, kv_events=False, cors=cors, stream_keepalive_s=0.05) as pair:
        pair.engines.decode[0].faults.add(Fault(kind="slow", path="/v1/c", delay_s=1.0, times=1))
        async with pair.service.session.post(
            f"{pair.service.url}/v1/completions", json=HELLO | {"stream": True}, headers={"Origin": APP}
        ) as response:
            assert (response.status, allowed(response)) == (200, [APP])
            body = await response.read()
            assert body.startswith(b":")  # its head was sent before there was an answer
            assert body.endswith(b"data: [DONE]\n\n")


async def test_with_credentials_the_origin_is_named() -> None:
    cors = Cors(allowed_origins=["*"], allow_credentials=True)
    async with fleet(1, 1, kv_events=False, cors=cors) as pair:
        for origin in (APP, EVIL):
            response = await asked(pair, "GET", "/v1/models", Origin=origin)
            assert allowed(response) == [origin]
            assert response.headers["Access-Control-Allow-Credentials"] == "true"
            assert response.headers["Vary"] == "Origin"


async def test_errors_can_be_read_too(keys: Security) -> None:
    cors = Cors(allowed_origins=[APP])
    json_ = {"Origin": APP, "Content_Type": "application/json", "Authorization": "Bearer key-of-alice"}
    async with fleet(1, 1, kv_events=False, cors=cors, security=keys, max_body_mb=1) as pair:
        pair.engines.decode[0].faults.add(Fault(kind="status", path="/v1/c", status=501, times=1))
        for status, method, path, body, headers in (
            (401, "POST", "/v1/completions", HELLO, json_ | {"Authorization": "Bearer x"}),
            (404, "GET", "/nowhere", None, json_),
            (404, "POST", "/v1/completions", HELLO | {"model": "other"}, json_),
            (400, "POST", "/v1/completions", HELLO | {"n": 0}, json_),
            (405, "DELETE", "/v1/completions", None, json_),
            (413, "POST", "/v1/completions", HELLO | {"user": "x" * (1 << 20)}, json_),
            (415, "POST", "/v1/completions", HELLO, json_ | {"Content_Type": "text/plain"}),
            (417, "POST", "/v1/completions", HELLO, json_ | {"Expect": "200-ok"}),
            (501, "POST", "/v1/completions", HELLO, json_),
        ):
            response = await asked(pair, method, path, body, **headers)
            assert (response.status, allowed(response)) == (status, [APP])
            evil = await asked(pair, method, path, body, **headers | {"Origin": EVIL})
            assert allowed(evil) == []


async def test_a_request_that_is_cut_off_at_the_end_of_kvproxy_can_be_read_too() -> None:
    async with fleet(1, 1, kv_events=False, cors=Cors(allowed_origins=["*"])) as pair:
        pair.engines.decode[0].faults.add(Fault(kind="hang", path="/v1/c", times=1))
        running = asyncio.get_running_loop().create_task(
            asked(pair, "POST", "/v1/completions", HELLO, Origin=APP, Content_Type="application/json")
        )
        await wait_until(
            lambda: any(s.path == "/v1/completions" for s in pair.engines.decode[0].seen), "a leg"
        )
        await shut_down(pair.service.runner, 0.0, asyncio.Event())
        response = await running
        assert (response.status, allowed(response)) == (503, ["*"])


OPERATORS = [
    ("GET", "/status", None),
    ("GET", "/metrics", None),
    ("GET", "/status/", None),
    ("GET", "/%73tatus", None),
    ("POST", "/explain", HELLO),
    ("POST", "/instances/drain", {"instance": "127.0.0.1:1"}),
    ("POST", "/instances/drain/", {"instance": "127.0.0.1:1"}),
    ("POST", "/instances/add", {}),
]


@pytest.mark.parametrize("own_socket", [False, True])
async def test_pages_read_nothing_that_operators_ask(own_socket: bool) -> None:
    security = Security(admin_port=0 if own_socket else None)
    async with fleet(1, 1, kv_events=False, cors=Cors(allowed_origins=["*"]), security=security) as pair:
        url = pair.service.admin_url
        for method, path, body in OPERATORS:
            response = await asked(
                pair,
                method,
                path,
                body,
                url,
                Origin=APP,
                X_API_Key=ADMIN_KEY,
                Content_Type="application/json",
            )
            assert response.status in {200, 400, 404}
            told = await asked(pair, "OPTIONS", path, None, url, **preflight(method))
            assert told.status == 405
            for each in (response, told):
                assert not [name for name in each.headers if name.lower().startswith("access-control")]


async def test_without_the_flag_nothing_is_said_and_engines_have_no_say() -> None:
    async with fleet(1, 1, kv_events=False, stand_in={"any_origin": True}) as pair:
        for method, path, body in (("GET", "/v1/models", None), ("POST", "/v1/completions", HELLO)):
            response = await asked(pair, method, path, body, Origin=APP, Content_Type="application/json")
            assert response.status == 200
            assert not [name for name in response.headers if name.lower().startswith("access-control")]
        assert (await asked(pair, "OPTIONS", "/v1/completions", **preflight())).status == 405
