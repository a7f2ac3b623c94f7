"""What an untrusted engine may answer: each attack is an engine that is added to a kvproxy that serves."""

import asyncio
import dataclasses
import json
from collections.abc import Iterator

from tests.hostile.attacks import COMPLETIONS, MB, attack, repeated
from tests.hostile.raw_engine import HEAD, RawEngine, answer, raw_engine
from tests.hostile.target import Said, Target

LOOKS_S = 11.0
"""In which kvproxy asks twice what an engine serves and where it publishes."""


@attack(repeats=False)
async def long_list_of_models(target: Target) -> Said:
    """An engine that is up, whose `/v1/models` then has 200 MB each time."""
    card = b'{"id":"x","object":"model"},'
    async with raw_engine({}) as engine:
        added = await target.admin("/instances/add", {"instance": engine.address, "type": "prefill"})
        engine.says["/v1/models"] = lambda: [
            HEAD + b"\r\n",
            b'{"data":[',
            *repeated(card, 200 * MB // len(card)),
            card[:-1] + b"]}",
        ]
        await asyncio.sleep(LOOKS_S)
        return _with(engine, added)


@attack(repeats=False)
async def endless_event(target: Target) -> Said:
    """A stream that is one event without an end, in pieces of 1 KB."""

    def stream() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        yield b"5\r\ndata:\r\n"
        for _ in range(20_000):
            yield b"400\r\n" + b"x" * 1024 + b"\r\n"

    async with raw_engine({COMPLETIONS: stream}) as engine:
        return await _streamed(target, engine)


@attack(repeats=False)
async def large_error_events(target: Target) -> Said:
    """A stream of events of 8 MB, each an error of nested lists, or something like one."""

    def stream() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        yield b'data: {"choices":[{"text":"a"}]}\n\n'
        for begin in (b'data: {"x":["error",', b'data: {"error":[', b'data: {"error":{"code":['):
            yield from [
                begin,
                *repeated(b"[[1],[2]],", 800_000),
                b"[]]}}\n\n" if b"code" in begin else b"[]]}\n\n",
            ]

    async with raw_engine({COMPLETIONS: stream}) as engine:
        return await _streamed(target, engine)


def _with(engine: RawEngine, said: Said) -> Said:
    """The same, with what the engine sent."""
    return dataclasses.replace(said, sent_bytes=said.sent_bytes + engine.sent_bytes)


async def _streamed(target: Target, engine: RawEngine) -> Said:
    """What a client is told of that engine's events."""
    await target.admin("/instances/add", {"instance": engine.address, "type": "decode"})
    await target.drain("decode")
    said = await target.post(COMPLETIONS, [b'{"prompt":"Hi","max_tokens":9,"stream":true}'])
    return _with(engine, said)


@attack(repeats=False)
async def many_ranks(target: Target) -> Said:
    """An engine that tells of 1024 ranks that publish, and of metrics with as many."""
    ranks = {
        str(n): {"endpoint": f"tcp://*:{10_000 + n}", "replay_endpoint": "tcp://*:9"} for n in range(1024)
    }
    line = 'vllm:cache_config_info{engine="%d",num_gpu_blocks="9"} 1\n'
    metrics = "".join(line % n for n in range(1024)).encode()
    says = {"/kv_event_sources": answer(json.dumps(ranks).encode()), "/metrics": answer(metrics)}
    async with raw_engine(says) as engine:
        before = target.descriptors
        added = await target.admin("/instances/add", {"instance": engine.address, "type": "prefill"})
        await asyncio.sleep(LOOKS_S)
        opened = target.descriptors - before
        said = _with(engine, added)
    if opened > 100:
        raise RuntimeError(f"kvproxy opened {opened} descriptors for one engine")
    return said


@attack(repeats=False)
async def long_params(target: Target) -> Said:
    """A prefill leg's answer of 200 MB of transfer params, nested."""
    async with raw_engine({COMPLETIONS: lambda: [HEAD + b"\r\n", *_params()]}) as engine:
        await target.admin("/instances/add", {"instance": engine.address, "type": "prefill"})
        await target.drain("prefill")
        return _with(engine, await target.post(COMPLETIONS, [b'{"prompt":"Hi","max_tokens":1}']))


@attack(repeats=False)
async def params_that_fit(target: Target) -> Said:
    """A prefill leg's answer of 4 MB of transfer params, nested, for a prompt that may have as many."""
    async with raw_engine({COMPLETIONS: lambda: [HEAD + b"\r\n", *_params(400_000)]}) as engine:
        await target.admin("/instances/add", {"instance": engine.address, "type": "prefill"})
        await target.drain("prefill")
        body = [b'{"max_tokens":1,"prompt":[', *repeated(b"1234,", 100_000), b"1]}"]
        return _with(engine, await target.post(COMPLETIONS, body))


def _params(lists: int = 20_000_000) -> Iterator[bytes]:
    yield b'{"usage":{"prompt_tokens":100001},"choices":[],"kv_transfer_params":{"remote_block_ids":['
    yield from repeated(b"[[1],[2]],", lists)
    yield b"[]]}}"


@attack(repeats=False)
async def odd_metrics(target: Target) -> Said:
    """A metrics page of 8 MB of empty lines and lines that almost tell something."""
    page = (
        b"\n" * (4 * MB)
        + b'vllm:engine_sleep_state{sleep_state="' * 50_000
        + b'\nvllm:cache_config_info{engine="1"' * 50_000
    )
    says = {"/metrics": answer(page), "/is_sleeping": answer(b'{"is_sleeping": true}')}
    async with raw_engine(says) as engine:
        added = await target.admin("/instances/add", {"instance": engine.address, "type": "prefill"})
        await asyncio.sleep(LOOKS_S)
        return _with(engine, added)
