"""With a store that engines share, decode finds what prefill computed, says the same words, and nothing stays
held.

Real engines only: a stand-in has no such store.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from scripts.workshop.engines.engine import BLOCK_TOKENS
from scripts.workshop.engines.fleet import Fleet
from scripts.workshop.live.asking import CHAT, COMPLETIONS, ask
from scripts.workshop.live.metrics import read_metrics
from scripts.workshop.live.ports import free_ports
from scripts.workshop.live.proxy import ProxyProcess
from scripts.workshop.live.waiting import wait_until
from scripts.workshop.live.words import prose
from tests import fleets
from tests.e2e.doctors import doctor, not_passed

pytestmark = pytest.mark.real

GREEDY = {"model": fleets.MODEL, "temperature": 0, "max_tokens": 12}
SHARED = ("--connector", "shared")
SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
COUNTED_S = 5


@pytest.fixture(scope="module")
def pair(real_engines: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One prefill and one decode engine with one directory."""
    store = str(tmp_path_factory.mktemp("store"))
    specs = [
        dataclasses.replace(spec, name=f"shared-{spec.name}", connector="shared", shared_dir=store)
        for spec in fleets.specs()
        if spec.name in {"prefill-0", "decode-0"}
    ]
    with Fleet(specs, real_engines.logs) as engines:
        engines.start()
        engines.wait_healthy(timeout_s=fleets.START_S - 60)
        yield engines


@pytest.fixture(scope="module")
def shared_proxy(pair: Fleet) -> Iterator[ProxyProcess]:
    [port] = free_ports(1)
    with ProxyProcess(
        port,
        pair.logs / "kvproxy-shared.log",
        prefill=[spec.address for spec in pair.of_role("prefill")],
        decode=[spec.address for spec in pair.of_role("decode")],
        flags=["--decision-headers", "--bypass", "off", *SHARED],
    ) as running:
        running.wait_status("/ready")
        yield running


async def computed(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """Where an engine says its prompt tokens came from."""
    page = await read_metrics(session, url)
    return {source: page.total("vllm:prompt_tokens_by_source_total", source=source) for source in SOURCES}


def test_the_doctor_finds_nothing_wrong(pair: Fleet) -> None:
    [prefill], [decode] = pair.of_role("prefill"), pair.of_role("decode")
    code, report = doctor([prefill.address], [decode.address], pair.logs / "doctor.log", SHARED)
    assert not_passed(report) == []
    assert code == 0
    [step] = [f for f in report["pairs"][0]["findings"] if f["step"] == "hand_over"]
    assert step["words"].startswith("decode fetched")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_decode_finds_the_whole_blocks_and_answers_as_one_engine_would(
    session: aiohttp.ClientSession,
    pair: Fleet,
    shared_proxy: ProxyProcess,
    real_engines: Fleet,
    path: str,
    *,
    stream: bool,
) -> None:
    [decode] = pair.of_role("decode")
    words = prose(200, f"a shared store {path} {stream}")
    prompt = {"prompt": words} if path == COMPLETIONS else {"messages": [{"role": "user", "content": words}]}
    body: dict[str, Any] = GREEDY | prompt
    expected = await ask(session, real_engines["plain-0"].url, path, body)
    before = await computed(session, decode.url)
    streaming = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    got = await ask(session, shared_proxy.url, path, body | streaming)
    assert (got.status, got.text, got.complete) == (200, expected.text, True)

    async def counted() -> dict[str, float] | None:
        after = await computed(session, decode.url)
        grew = {source: after[source] - before[source] for source in SOURCES}
        return grew if sum(grew.values()) >= got.prompt_tokens else None

    grew = await wait_until(counted, COUNTED_S, "the decode engine has counted the prompt")
    assert grew is not None
    # The last token is always computed, so a prompt of whole blocks brings one block less.
    whole = (got.prompt_tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    assert grew["external_kv_transfer"] > 0
    assert grew["external_kv_transfer"] + grew["local_cache_hit"] == whole
    assert grew["local_compute"] == got.prompt_tokens - whole


async def test_predictions_are_right_and_nothing_is_held(
    session: aiohttp.ClientSession, shared_proxy: ProxyProcess
) -> None:
    body = GREEDY | {"prompt": prose(150, "twice over a store")}
    first, second = [await ask(session, shared_proxy.url, COMPLETIONS, body) for _ in range(2)]
    assert (first.text, first.status) == (second.text, 200)
    assert second.predicted == (second.prompt_tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    page = await read_metrics(session, shared_proxy.url)
    assert page.total("kvproxy_holds_total") == 0
    assert page.total("kvproxy_prediction_legs_total", outcome="over") == 0
