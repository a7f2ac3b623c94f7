"""Prefill and decode stand-ins on real sockets."""

import asyncio
import contextlib
import json
from typing import Any

import aiohttp
import msgspec
import pytest

from proxy.simulation import StandIn
from proxy.simulation.engine.request import Remote
from proxy.simulation.engine.values import Handshake, Pull
from proxy.simulation.live.side_channel import Reply, SideChannelClient, TransferError
from tests.proxy.simulation.conftest import Ask, Start
from tests.proxy.simulation.driving import CHAT, COMPLETIONS, PREFILL

PROMPT = "the import statement loads a module and every function returns some value when sorted by key"


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": PROMPT, "temperature": 0, "max_tokens": 12, **fields}


@pytest.fixture
async def pair(start: Start) -> tuple[StandIn, StandIn]:
    """Two engines that have spoken before."""
    p, d = await start(block_size=4), await start(block_size=4)
    d.model.peers.met(p.model.engine_id)
    return p, d


async def prefill(ask: Ask, engine: StandIn, **fields: Any) -> dict[str, Any]:
    status, answer = await ask(engine, body(max_tokens=1, kv_transfer_params=PREFILL, **fields))
    assert status == 200
    params = answer["kv_transfer_params"]
    assert isinstance(params, dict)
    return params


async def test_a_silent_engine_is_asked_for_blocks_once() -> None:
    """A pull it may still read must not be followed by a second one, which would find the hold gone."""
    asked: list[bytes] = []
    peers: list[asyncio.Task[None] | None] = []
    talks = True

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            while size := await reader.read(4):
                asked.append(await reader.readexactly(int.from_bytes(size, "big")))
                if talks:
                    reply = msgspec.msgpack.encode(Reply(known=True))
                    writer.write(len(reply).to_bytes(4, "big") + reply)
        writer.transport.abort()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    remote = Remote("127.0.0.1", server.sockets[0].getsockname()[1], "an engine", "a request", (1,))
    client = SideChannelClient(timeout_s=0.5)
    async with server:
        await asyncio.gather(*(client.tell(Handshake(remote, 0.0)) for _ in range(3)))
        asked.clear()
        talks = False
        with pytest.raises(TransferError, match="no reply"):
            await client.pull(Pull("mine", remote, (1,), 0.0))
        assert len(asked) == 1
        client.close()
        await asyncio.gather(*(peer for peer in peers if peer is not None))


async def plain_text(ask: Ask, start: Start) -> str:
    _, answer = await ask(await start(), body())
    return str(answer["choices"][0]["text"])


async def test_a_pair_answers_as_one_engine(pair: tuple[StandIn, StandIn], ask: Ask, start: Start) -> None:
    p, d = pair
    params = await prefill(ask, p)
    assert (params["remote_host"], params["remote_port"]) == p.model.address
    assert params["remote_request_id"].startswith("cmpl-")
    assert p.model.holds.ids() == [params["remote_request_id"]]
    _, answer = await ask(d, body(kv_transfer_params=params))
    assert answer["choices"][0]["text"] == await plain_text(ask, start)
    assert answer["kv_transfer_params"] is None
    assert (len(p.model.holds), p.model.holds.pulled) == (0, 1)
    assert d.model.stats.prompt_by_source["external_kv_transfer"] == params["remote_num_tokens"]
    assert d.model.stats.prompt_by_source["local_compute"] == 0


async def test_cached_tokens_are_those_of_the_prefill_engine(pair: tuple[StandIn, StandIn], ask: Ask) -> None:
    p, d = pair
    for expected in (0, 16):
        params = await prefill(ask, p)
        assert params["remote_prefill_cached_tokens"] == expected
        _, answer = await ask(d, body(kv_transfer_params=params))
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == expected


async def test_a_spent_hold_is_another_text_with_status_200(
    pair: tuple[StandIn, StandIn], ask: Ask, start: Start
) -> None:
    p, d = pair
    params = await prefill(ask, p)
    texts = []
    for salt in ("a", "b"):
        status, answer = await ask(d, body(kv_transfer_params=params, cache_salt=salt))
        assert status == 200
        texts.append(answer["choices"][0]["text"])
    right = await plain_text(ask, start)
    assert texts[0] == right != texts[1]


async def test_a_lease_that_ends_is_counted(start: Start, ask: Ask, until: Any) -> None:
    p, d = await start(block_size=4, lease_s=0.05), await start(block_size=4)
    params = await prefill(ask, p)
    await until(lambda: p.model.holds.expired == 1)
    assert p.model.cache.pool.usage == 0.0
    status, answer = await ask(d, body(kv_transfer_params=params))
    assert status == 200
    assert answer["choices"][0]["text"] != await plain_text(ask, start)


async def test_a_streamed_prefill_leg_loses_its_params(pair: tuple[StandIn, StandIn], http: Any) -> None:
    p, _ = pair
    asked = body(max_tokens=1, kv_transfer_params=PREFILL, stream=True)
    async with http.post(p.url + COMPLETIONS, json=asked) as response:
        assert "kv_transfer_params" not in await response.text()
    assert len(p.model.holds) == 1


async def test_only_one_sequences_params_are_told(pair: tuple[StandIn, StandIn], ask: Ask) -> None:
    p, _ = pair
    params = await prefill(ask, p, prompt=[PROMPT, PROMPT + " more"])
    assert len(p.model.holds) == 2
    assert params["remote_request_id"] == p.model.holds.ids()[0]


@pytest.mark.parametrize(
    ("fields", "status"),
    [({"model": "nope"}, 404), ({"max_tokens": 0}, 400), ({"min_tokens": 99}, 400), ({"prompt": [[]]}, 400)],
)
async def test_a_refused_decode_leg_frees_the_hold(
    pair: tuple[StandIn, StandIn], ask: Ask, until: Any, fields: dict[str, Any], status: int
) -> None:
    p, d = pair
    params = await prefill(ask, p)
    assert (await ask(d, body(kv_transfer_params=params) | fields))[0] == status
    await until(lambda: p.model.holds.released == 1)
    assert len(p.model.holds) == 0


async def test_a_first_refusal_frees_nothing_until_the_next(start: Start, ask: Ask, until: Any) -> None:
    p, d = await start(block_size=4), await start(block_size=4)
    leg = body(kv_transfer_params=await prefill(ask, p), model="nope")
    assert (await ask(d, leg))[0] == 404
    await until(lambda: p.model.engine_id in d.model.peers)
    assert len(p.model.holds) == 1
    assert (await ask(d, leg))[0] == 404
    await until(lambda: p.model.holds.released == 1)


@pytest.mark.parametrize("fields", [{"stream_options": {"include_usage": True}}, {"n": "x"}, {"prompt": ""}])
async def test_a_body_that_does_not_parse_frees_nothing(
    pair: tuple[StandIn, StandIn], ask: Ask, fields: dict[str, Any]
) -> None:
    p, d = pair
    params = await prefill(ask, p)
    assert (await ask(d, body(kv_transfer_params=params) | fields))[0] == 400
    await ask(d, body())  # whatever the engine had to say is said
    assert len(p.model.holds) == 1
    assert p.model.holds.released == 0


async def test_a_restarted_prefill_engine_is_an_error(
    pair: tuple[StandIn, StandIn], ask: Ask, http: Any
) -> None:
    p, d = pair
    params = await prefill(ask, p)
    before = p.port, params["remote_port"], p.model.engine_id
    await p.restart()
    assert (p.port, p.model.address[1]) == before[:2]
    assert p.model.engine_id != before[2]
    status, answer = await ask(d, body(kv_transfer_params=params))
    assert status == 500
    assert answer["error"] == {
        "message": "Internal server error",
        "type": "InternalServerError",
        "param": None,
        "code": 500,
    }
    params = await prefill(ask, p)
    await p.stop()
    async with http.post(d.url + COMPLETIONS, json=body(kv_transfer_params=params, stream=True)) as response:
        assert response.status == 200
        events = (await response.text()).split("\n\n")
    assert json.loads(events[0].removeprefix("data: "))["error"]["code"] == 500
    assert events[1:] == ["data: [DONE]", ""]
    chat = {"messages": [{"role": "user", "content": "the"}], "n": 2, "stream": True}
    async with http.post(d.url + CHAT, json=chat | {"kv_transfer_params": params}) as response:
        assert response.status == 200
        *roles, error, done, end = (await response.text()).split("\n\n")
    deltas = [json.loads(role.removeprefix("data: "))["choices"][0]["delta"] for role in roles]
    assert deltas == [{"role": "assistant", "content": ""}] * 2
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == 500
    assert (done, end) == ("data: [DONE]", "")
    assert d.model.stats.failed_transfers >= 3
    assert d.model.stats.finished["error"] >= 3


async def test_or_decode_computes_the_prompt_itself(start: Start, ask: Ask) -> None:
    p, d = await start(block_size=4), await start(block_size=4, recompute=True)
    params = await prefill(ask, p)
    await p.restart()
    status, answer = await ask(d, body(kv_transfer_params=params))
    assert status == 200
    assert answer["choices"][0]["text"] == await plain_text(ask, start)
    assert d.model.stats.prompt_by_source["local_compute"] > 0


async def test_a_bare_flag_kills_the_decode_engine(
    pair: tuple[StandIn, StandIn], ask: Ask, http: aiohttp.ClientSession
) -> None:
    _, d = pair
    status, answer = await ask(d, body(kv_transfer_params={"do_remote_prefill": True}))
    assert status == 500
    assert answer["error"]["message"].startswith("EngineCore encountered an issue.")
    async with asyncio.timeout(10):
        await d.ended.wait()
    with pytest.raises(aiohttp.ClientConnectorError):
        await http.get(d.url + "/health")
    await d.restart()
    assert (await ask(d, body()))[0] == 200


async def test_a_decode_client_that_leaves_frees_the_hold(
    start: Start, ask: Ask, http: Any, until: Any
) -> None:
    p, d = await start(block_size=4), await start(block_size=4, max_sequences=1)
    d.model.peers.met(p.model.engine_id)
    params = await prefill(ask, p)
    busy = http.post(d.url + COMPLETIONS, json=body(max_tokens=8000, stream=True))
    async with busy as running:
        await running.content.readany()
        leg = asyncio.ensure_future(ask(d, body(kv_transfer_params=params)))  # noqa: TID251  # ended below
        await until(lambda: d.model.scheduler.waiting == 1)
        leg.cancel()
        await until(lambda: p.model.holds.released == 1)
        running.close()
    await until(lambda: d.model.unfinished == 0)


async def test_a_prefill_client_that_leaves_holds_nothing(start: Start, http: Any, until: Any) -> None:
    p = await start(block_size=4)
    asked = body(max_tokens=8000, kv_transfer_params=PREFILL)
    with pytest.raises(TimeoutError):
        await http.post(p.url + COMPLETIONS, json=asked, timeout=aiohttp.ClientTimeout(total=0.05))
    await until(lambda: p.model.unfinished == 0)
    assert len(p.model.holds) == 0


async def test_each_rank_has_holds_of_its_own(start: Start, ask: Ask) -> None:
    p, d = await start(block_size=4, ranks=2), await start(block_size=4)
    status, answer = await ask(
        p, body(max_tokens=1, kv_transfer_params=PREFILL), COMPLETIONS, **{"X-data-parallel-rank": "1"}
    )
    assert status == 200
    assert [len(rank.model.holds) for rank in p.ranks] == [0, 1]
    await ask(d, body(kv_transfer_params=answer["kv_transfer_params"]))
    assert p.ranks[1].model.holds.pulled == 1
