"""`kvproxy fit` makes a profile of engines that take what was planted, and leaves them as they were."""

import asyncio
import os
import pathlib
import signal
import sys
import urllib.request
from collections.abc import Callable

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from proxy.cli.fit import fit
from proxy.cli.flags.reading import FitOptions
from proxy.cli.main import main
from proxy.config import Config, parse_instance
from proxy.errors import LegError
from proxy.fitting.fleet import BusyError
from proxy.latency.profiles import load_profile, read_profile
from proxy.phases import Role
from proxy.simulation import StandIn, StandInConfig
from proxy.simulation.engine.latency import Linear

PLANTED = Linear(
    a=0.04, b=2e-4, s0=0.02, s1=0.003, s2=2e-6, transfer=0.02, transfer_per_token=1e-4, handshake=0.5
)
ENGINE = StandInConfig(profile=PLANTED, max_model_len=1024, blocks=512)


def options_for(out: pathlib.Path) -> FitOptions:
    return FitOptions(out, limit_s=60.0, longest=512, chunk_tokens=2048, anyway=False)


def config_of(*engines: tuple[StandIn, Role]) -> Config:
    return Config(
        model="tiny", instances=tuple(parse_instance(engine.address, role) for engine, role in engines)
    )


async def test_what_was_planted_is_found_and_nothing_is_held(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "profile.toml"
    async with StandIn(ENGINE) as prefill, StandIn(ENGINE) as decode:
        config = config_of((prefill, Role.PREFILL), (decode, Role.DECODE))
        words = await fit(config, options_for(out))
        for engine in (prefill, decode):
            page = await asyncio.to_thread(_page, engine.url)
            assert "vllm:num_requests_running{" in page
            assert _idle(page)
    profile = read_profile(out, "--profile", ())
    assert "kvproxy fit on " in profile.source
    assert (profile.engine.block_size, profile.engine.blocks) == (16, 511)
    # Generous: the machine that runs this is at work. tests/proxy/fitting is strict.
    assert profile.a + profile.b * 512 == pytest.approx(40 + 0.2 * 512, rel=0.35)
    assert profile.s0 + 8 * profile.s1 == pytest.approx(20 + 8 * 3, rel=0.35)
    assert 250 < profile.handshake < 900
    assert "held out" in words
    assert "not measured" not in words
    assert load_profile(str(out)) == profile


async def test_a_profile_says_what_was_not_measured(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "profile.toml"
    async with StandIn(ENGINE) as engine:
        options = FitOptions(out, limit_s=0.2, longest=512, chunk_tokens=2048, anyway=False)
        words = await fit(config_of((engine, Role.BOTH)), options)
    assert "transfers: not measured" in words
    _, told, figures = read_profile(out, "--profile", ()).source.partition(
        "; not measured, as of any engine: "
    )
    assert told
    assert "transfers (transfer, transfer_per_token, handshake)" in figures


def _page(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def _idle(page: str) -> bool:
    """Whether nothing runs, waits or is held there."""
    names = ("vllm:num_requests_running{", "vllm:num_requests_waiting{", "vllm:kv_cache_usage_perc{")
    return all(line.endswith(" 0.0") for line in page.splitlines() if line.startswith(names))


async def test_engines_that_others_use_are_left_alone(tmp_path: pathlib.Path) -> None:
    async with StandIn(ENGINE) as engine:
        reader, writer = await asyncio.open_connection(*engine.address.split(":"))
        body = (
            b'{"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 900, "ignore_eos": true, "stream": true}'
        )
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        await reader.readuntil(b"data: ")
        with pytest.raises(BusyError, match=r"has 1 requests of others: .* or give --anyway"):
            await fit(config_of((engine, Role.BOTH)), options_for(tmp_path / "profile.toml"))
        writer.close()


async def test_a_stream_that_fails_ends_the_fit_with_its_reason(tmp_path: pathlib.Path) -> None:
    @web.middleware
    async def refuses_streams(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method == "POST" and b'"stream":true' in await request.read():
            return web.Response(status=503, text="not now")
        return await handler(request)

    out = tmp_path / "profile.toml"
    async with StandIn(ENGINE, before=[refuses_streams]) as engine:
        with pytest.raises(LegError, match="503"):
            await fit(config_of((engine, Role.BOTH)), options_for(out))
        assert _idle(await asyncio.to_thread(_page, engine.url))
    assert not out.exists()


async def test_an_engine_that_sleeps_is_left_asleep(tmp_path: pathlib.Path) -> None:
    async with StandIn(ENGINE) as engine:
        asleep = urllib.request.Request(f"{engine.url}/sleep?level=1", method="POST")
        await asyncio.to_thread(lambda: urllib.request.urlopen(asleep, timeout=10).close())
        with pytest.raises(LegError, match="it sleeps"):
            await fit(config_of((engine, Role.BOTH)), options_for(tmp_path / "profile.toml"))


async def test_ctrl_c_ends_probes_and_gives_back_what_is_held(tmp_path: pathlib.Path) -> None:
    async with StandIn(ENGINE) as prefill, StandIn(ENGINE) as decode:
        words = ["fit", "-m", "tiny", "-p", prefill.address, "-d", decode.address]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "from proxy.cli.main import main; main()", *words,
            "--out", str(tmp_path / "profile.toml"), stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        await _until(prefill.url, _computed)
        os.kill(process.pid, signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 130
        assert b"Traceback" not in err
        for engine in (prefill, decode):
            await _until(engine.url, _idle)
    assert not (tmp_path / "profile.toml").exists()


async def _until(url: str, condition: Callable[[str], bool]) -> None:
    """Wait until an engine's metrics tell it: nobody else does."""
    async with asyncio.timeout(60):
        while not condition(await asyncio.to_thread(_page, url)):  # noqa: ASYNC110  # as it says
            await asyncio.sleep(0.05)


def _computed(page: str) -> bool:
    return any(
        line.startswith("vllm:prompt_tokens_total{") and not line.endswith(" 0.0")
        for line in page.splitlines()
    )


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        ([], "the following arguments are required: --out", 2),
        (["--out", "/nowhere/profile.toml"], "--out /nowhere/profile.toml: No such file or directory", 2),
        (["--out", "/tmp", "--longest", "0"], "--longest 0: a number from 1", 2),
        (["--out", "/tmp", "--chunk-tokens", "0"], "--chunk-tokens 0: a number from 1", 2),
        (["--out", "/tmp", "--timeout", "0"], "--timeout must be more than 0 seconds", 2),
        (["--out", "/dev/null"], "127.0.0.1:1: its models are not known", 1),
    ],
)
def test_wrong_words_are_named(
    words: list[str], said: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "-m", "tiny", "-p", "127.0.0.1:1", "-d", "127.0.0.1:2", *words])
    assert exit_.value.code == code
    assert said in capsys.readouterr().err
