"""`kvproxy doctor` takes the flags of `serve` as far as they concern engines, and ends with what it found."""

import asyncio
import json
import pathlib

import pytest

from proxy.cli.flags import read_arguments, read_config
from proxy.cli.main import main
from proxy.config import Config
from proxy.simulation import StandIn, StandInConfig
from scripts.workshop.live.ports import free_ports
from tests.helpers.certificates import Authority

PAIR = ["-m", "tiny", "-p", "127.0.0.1:8100", "-d", "127.0.0.1:8200"]


def test_flags_that_say_which_engines_there_are_mean_the_same(tmp_path: pathlib.Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret")
    flags = [
        *PAIR,
        "--both",
        "https://gpu:1",
        "--connector",
        "shared",
        "--kv-lease-s",
        "60",
        "--kv-events",
        "off",
    ]
    flags += ["--tokenizer", "engines", "--engine-api-key-file", str(key), "--engine-ca", str(key)]
    flags += ["--connect-timeout", "7"]
    served, looked_at = read_config(["serve", *flags]), read_config(["doctor", *flags])
    for name in ("model", "instances", "connector", "kv_lease_s", "kv_events", "tokenizer", "engine_api_key"):
        assert getattr(served, name) == getattr(looked_at, name) != getattr(Config(model="x"), name)
    assert served.deadlines == looked_at.deadlines
    assert served.security.engine_ca == looked_at.security.engine_ca == key
    assert served.security.engine_api_key_file == looked_at.security.engine_api_key_file == key


def test_output_flags() -> None:
    arguments = read_arguments(["doctor", *PAIR, "--json", "--timeout", "9"])
    assert (arguments.command, arguments.as_json, arguments.limit_s) == ("doctor", True, 9)
    assert read_arguments(["serve", *PAIR]).command == "serve"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["-m", "tiny", "-p", "127.0.0.1:8100"], "--decode needs at least one HOST:PORT"),
        (["-m", "tiny", "-p", "nonsense", "-d", "127.0.0.1:8200"], "--prefill 'nonsense': write HOST:PORT"),
        ([*PAIR, "--kv-lease-s", "1"], "--kv-lease-s 1 is too short"),
        ([*PAIR, "--engine-api-key-file", "/nowhere"], "--engine-api-key-file /nowhere: No such file"),
        ([*PAIR, "--tokenizer", "/nowhere"], "--tokenizer /nowhere is neither"),
        ([*PAIR, "--engine-ca", "/nowhere"], "--engine-ca /nowhere"),
        ([*PAIR, "--connector", "other"], "invalid choice: 'other'"),
    ],
)
def test_wrong_flags_give_the_errors_of_serve(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for command in ("serve", "doctor"):
        with pytest.raises(SystemExit) as ended:
            main([command, *flags])
        assert ended.value.code == 2
        said.append(capsys.readouterr().err.replace(f"kvproxy {command}", "kvproxy COMMAND"))
    assert words in said[0]
    assert said[0] == said[1]


@pytest.mark.parametrize("flags", [["--port", "1"], ["--api-key-file", "x"], ["--timeout", "-1"]])
def test_flags_that_are_none_of_the_doctors(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *PAIR, *flags])
    assert ended.value.code == 2
    assert flags[0] in capsys.readouterr().err


def test_an_engine_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    prefill, decode = (f"127.0.0.1:{port}" for port in free_ports(2))
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "-m", "tiny", "-p", prefill, "-d", decode])
    assert ended.value.code == 2
    said = capsys.readouterr().out
    assert f"prefill {prefill}\n  fail  reachable" in said
    assert "-> start vLLM there" in said
    with pytest.raises(SystemExit):
        main(["doctor", "-m", "tiny", "-p", prefill, "-d", decode, "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (told["exit_code"], told["verdict"]) == (2, "fail")
    assert told["instances"][0]["findings"][0]["step"] == "reachable"


@pytest.mark.parametrize(("details", "exit_code"), [(True, 0), (False, 1)])
def test_the_exit_code_is_that_of_the_report(
    details: bool, exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real command in this process, its engine in another thread."""
    loop = asyncio.new_event_loop()
    engine = StandIn(StandInConfig(prompt_tokens_details=details))
    import threading

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(engine.start(), loop).result(20)
        with pytest.raises(SystemExit) as ended:
            main(["doctor", "-m", "tiny", "--both", engine.address])
        said = capsys.readouterr().out
        assert ended.value.code == exit_code, said
        assert said.splitlines()[-1].startswith("warn: 1 warned" if exit_code else "pass: ")
    finally:
        asyncio.run_coroutine_threadsafe(engine.stop(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def test_an_engine_that_is_certified_by_nobody_we_know(tmp_path: pathlib.Path) -> None:
    import ssl

    from proxy.cli.doctor import examine
    from proxy.config import parse_instance
    from proxy.phases import Role

    chain, key = Authority(tmp_path).certify("127.0.0.1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(chain, key)
    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    spec = parse_instance(f"https://127.0.0.1:{port}", Role.BOTH)
    report = await examine(Config(model="tiny", instances=(spec,)), 20)
    server.close()
    await server.wait_closed()
    assert report.exit_code == 2
    assert "--engine-ca" in (report.findings[0].remedy or "")
