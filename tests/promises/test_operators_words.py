"""Error messages and log lines for operators name the remedy."""

import asyncio
import logging
import pathlib

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from proxy.cli.flags import read_config
from proxy.config import Security, parse_instance
from proxy.edge.app import create_app
from proxy.errors import ConfigError
from proxy.happenings import RequestEnded
from proxy.observability.metrics import Metrics
from proxy.observability.requests import REFUSALS
from proxy.observability.telling import Happenings
from proxy.phases import Role
from proxy.simulation.live.faults import Fault
from proxy.simulation.live.http_edge import refusals
from proxy.tls import server_context
from tests.helpers.certificates import Authority
from tests.helpers.raw import GET, send
from tests.helpers.service import engines, fleet, kvproxy, wait_until

PAIR = ["serve", "-m", "tiny", "-p", "127.0.0.1:8100", "-d", "127.0.0.1:8200"]


def test_a_choice_that_is_none_names_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_config([*PAIR, "--when-no-prefill", "never"])
    said = capsys.readouterr().err
    assert all(choice in said for choice in ("'wait'", "'decode'", "'fail'", "kvproxy serve --help"))
    with pytest.raises(SystemExit):
        read_config(["serve", "-m", "tiny", "--no-such-flag"])
    assert "kvproxy serve --help" in capsys.readouterr().err
    assert read_config([*PAIR, "--when-no-prefill", "decode"]).admission.when_no_prefill == "decode"


@pytest.mark.parametrize("command", ["serve", "doctor"])
@pytest.mark.parametrize(
    ("flag", "wanted", "commands"),
    [
        ("--drain-delay", "a number of seconds", {"serve"}),
        ("--queue-timeout", "a number of seconds", {"serve"}),
        ("--connect-timeout", "a number of seconds", {"serve", "doctor"}),
        ("--timeout", "a number of seconds", {"doctor"}),
        ("--port", "a whole number", {"serve"}),
        ("--max-queue", "a whole number", {"serve"}),
    ],
)
def test_a_value_that_is_no_number_gets_an_error_that_says_which_kind_is_wanted(
    command: str, flag: str, wanted: str, commands: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = "1.5x" if wanted == "a number of seconds" else "1.5"
    with pytest.raises(SystemExit) as ended:
        read_config([command, *PAIR[1:], flag, wrong])
    assert ended.value.code == 2
    told = f"argument {flag}: '{wrong}' is not {wanted} (see kvproxy {command} --help)"
    assert (told in capsys.readouterr().err) is (command in commands)


def test_a_key_with_a_passphrase_is_called_that(tmp_path: pathlib.Path) -> None:
    files = Authority(tmp_path).certify("127.0.0.1", passphrase=b"secret")
    with pytest.raises(ConfigError, match="passphrase") as refused:
        server_context(*files)
    assert "None" not in str(refused.value)


async def test_the_engines_key_file_is_judged_as_the_clients_is(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "engine-key"
    with pytest.raises(ConfigError) as refused:
        read_config([*PAIR, "--engine-api-key-file", str(file)])
    assert str(refused.value) == f"--engine-api-key-file {file}: No such file or directory"
    file.write_text("secret")
    for mode, told in ((0o600, False), (0o644, True)):
        file.chmod(mode)
        create_app(read_config([*PAIR, "--engine-api-key-file", str(file)]))
        assert (f"--engine-api-key-file {file} can be read by others" in caplog.text) is told


async def test_a_path_that_is_not_served_is_named_and_counted(tmp_path: pathlib.Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice secret")
    keys.chmod(0o600)
    async with fleet(prefill=1, decode=1, kv_events=False, security=Security(api_key_file=keys)) as pair:
        answer = await pair.service.ask("/other/embeddings?q=1", {})
        assert answer.status == 404
        words = "kvproxy does not serve POST /other/embeddings; see /openapi.json"
        assert answer.json["error"]["message"] == words
        assert (await pair.service.complete("hello")).status == 401
        requests = "kvproxy_requests_total"
        assert await pair.service.metric(requests, route="other", outcome="client_error") == 1
        assert await pair.service.metric(requests, route="other", outcome="unauthorized") == 1
        assert await pair.service.metric(requests) == 2


async def test_a_wrong_type_names_the_types() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        answer = await pair.service.admin("/instances/add", {"type": "other", "instance": "h:1"})
        assert "(type is one of prefill, decode, both)" in answer.json["error"]["message"]


async def test_an_operators_change_is_logged_with_its_instance(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        engine = pair.engines.decode[0]
        engine.faults.add(Fault(kind="hang", path="/v1/c", times=1))
        running = asyncio.get_running_loop().create_task(pair.service.complete("hello"))
        await wait_until(lambda: engine.asked["/v1/completions"] == 1, "a running leg")
        await pair.service.admin("/instances/remove", {"instance": engine.address})
        assert f"decode {engine.address} takes no new legs and goes when" in caplog.text
        assert f"decode {engine.address} was removed" not in caplog.text
        engine.faults.release()
        await running
        (line,) = [m for m in caplog.messages if m.startswith("POST /instances/remove 200")]
        assert f"instance={engine.address}" in line


async def test_an_address_where_no_vllm_listens_is_asked_about() -> None:
    async def nothing(_request: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/health", nothing)
    app.router.add_get("/v1/models", nothing)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    other = f"127.0.0.1:{runner.addresses[0][1]}"
    async with engines(prefill=0, decode=1) as made:
        config = made.config()
        wrong = parse_instance(other, Role.PREFILL)
        async with kvproxy(made.config(instances=(wrong, *config.instances)), ready=False) as service:
            instance = service.fleet.get(other)
            assert instance is not None
            await wait_until(lambda: "is this vLLM's --port?" in (instance.why_down or ""), "the hint")
            added = await service.admin("/instances/remove", {"instance": other, "force": True})
            assert added.status == 200
            added = await service.admin("/instances/add", {"instance": other, "type": "prefill"})
            assert "is this vLLM's --port?" in added.json["error"]["message"]
    await runner.cleanup()


def test_known_series_are_there_before_anything_happens_and_no_others() -> None:
    registry = CollectorRegistry()
    happenings = Happenings()
    Metrics(registry, happenings, lambda _: True)
    happenings.tell(RequestEnded("/v1/completions", "ok", 0.1))
    text = generate_latest(registry).decode()
    assert "_created" not in text
    for reason in REFUSALS:
        assert f'kvproxy_refused_requests_total{{reason="{reason}"}} 0.0' in text
    for action in ("wait", "decode", "fail"):
        assert f'kvproxy_no_prefill_total{{action="{action}"}} 0.0' in text


async def test_answers_do_not_tell_what_kvproxy_is_made_of() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        for answer in (await pair.service.complete("hello"), await pair.service.ask("/nowhere")):
            assert answer.headers["Server"] == "kvproxy"
        for broken in (b"\x00\r\n\r\n", GET + b"Connection: close\r\nExpect: x\r\n\r\n"):
            data = (await send(pair.service, broken)).data
            assert b"Server: kvproxy\r\n" in data
            assert b"aiohttp" not in data


async def test_a_stand_in_is_quiet_when_its_client_leaves_a_stream(caplog: pytest.LogCaptureFixture) -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        assert request.transport is not None
        request.transport.close()  # as when the client's end is noticed between two events
        await response.write(b"data: {}\n\n")
        raise AssertionError("nobody is there to write to")

    app = web.Application(middlewares=[refusals])
    app.router.add_get("/", stream)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    reader, writer = await asyncio.open_connection(*runner.addresses[0][:2])
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 200")
    writer.close()
    await runner.cleanup()
    assert caplog.text == ""
