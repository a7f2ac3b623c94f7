"""What enters and leaves the cache is published as it happens, in vLLM's form and order."""

import time
from typing import Any

import msgspec
import pytest
import zmq.asyncio

from scripts.workshop.engines.engine import BLOCK_TOKENS
from tests.contract.asking import Engine
from tests.contract.listening import Journal, Subscriber, decoded, hashes, stored_tokens
from tests.contract.prompts import ids, token_ids
from tests.contract.shapes import assert_fits

B = BLOCK_TOKENS


@pytest.fixture
async def journal(engine: Engine, context: zmq.asyncio.Context) -> Journal:
    """The plain engine's events from now on; its cache is empty."""
    made = Journal(context, engine.spec)
    await made.empty_cache(engine)
    return made


STORED = {
    "type": "BlockStored",
    "block_hashes": [int, ...],
    "parent_block_hash": None,
    "token_ids": [int, ...],
    "block_size": B,
    "lora_id": None,
    "medium": "GPU",
    "lora_name": None,
    "extra_keys": [None, ...],
    "group_idx": 0,
    "kv_cache_spec_kind": "full_attention",
}


async def test_a_stored_prompt_has_vllms_fields(engine: Engine, journal: Journal) -> None:
    body = ids(3 * B + 1, "stored")
    await engine.served(body)
    [event] = await journal.stored(3)
    assert_fits(event, STORED | {"token_ids": body["prompt"][: 3 * B]})
    assert len(set(event["block_hashes"])) == 3
    assert all(0 <= block < 2**64 for block in event["block_hashes"])


@pytest.mark.parametrize(
    ("fields", "lora", "extra"),
    [
        ({"cache_salt": "tenant-1"}, None, [["tenant-1"], None, None]),
        ({"model": "alpha"}, "alpha", [["alpha"]] * 3),
        (
            {"model": "alpha", "cache_salt": "tenant-1"},
            "alpha",
            [["alpha", "tenant-1"], ["alpha"], ["alpha"]],
        ),
    ],
)
async def test_a_salt_and_an_adapter_are_extra_keys(
    engine: Engine, journal: Journal, fields: dict[str, Any], lora: str | None, extra: list[Any]
) -> None:
    body = ids(3 * B, "extra")
    await engine.served(body)
    await engine.served(body | fields)
    plain, keyed = await journal.stored(6)
    found = {"lora_id": int if lora else None, "lora_name": lora, "extra_keys": extra}
    assert_fits(keyed, STORED | found | {"token_ids": body["prompt"]})
    assert not set(plain["block_hashes"]) & set(keyed["block_hashes"])


async def test_only_full_blocks_are_stored(engine: Engine, journal: Journal) -> None:
    await engine.served(ids(B - 1, "not full"))
    await engine.served(ids(B, "just full"))
    [event] = await journal.stored(1)
    assert event["token_ids"] == token_ids(B, "just full")


async def test_a_longer_prompt_stores_what_is_new_under_its_parent(engine: Engine, journal: Journal) -> None:
    body = ids(4 * B, "grows")
    await engine.served(body | {"prompt": body["prompt"][: 2 * B]})
    await engine.served(body)
    first, second = await journal.stored(4)
    assert second["parent_block_hash"] == first["block_hashes"][-1]
    assert second["token_ids"] == body["prompt"][2 * B :]


@pytest.mark.parametrize(("generated", "blocks"), [(31, 1), (32, 2), (64, 3)])
async def test_generated_tokens_fill_blocks_one_by_one(
    engine: Engine, journal: Journal, generated: int, blocks: int
) -> None:
    body = ids(B + 1, f"generates {generated}", generated, return_token_ids=True)
    [choice] = (await engine.served(body)).json["choices"]
    await engine.served(ids(B, f"afterwards {generated}"))
    *events, after = await journal.stored(blocks + 1)
    assert after["parent_block_hash"] is None
    assert [len(event["block_hashes"]) for event in events] == [1] * blocks
    chain = hashes(events)
    assert [event["parent_block_hash"] for event in events] == [None, *chain[:-1]]
    assert stored_tokens(events) == (body["prompt"] + choice["token_ids"])[: blocks * B]


async def test_a_hit_is_not_announced_unless_a_full_report_is_asked_for(
    engine: Engine, journal: Journal
) -> None:
    body = ids(2 * B + 1, "hit")
    await engine.served(body)
    await engine.served(body)
    await engine.served(body | {"vllm_xargs": {"kv_cache_report_mode": "full"}})
    first, again = await journal.stored(4)
    assert again == first


@pytest.mark.parametrize("where", ["body", "extra arguments", "header"])
async def test_what_a_session_stores_or_reports_names_it(
    engine: Engine, journal: Journal, where: str
) -> None:
    body = ids(3 * B + 1, f"in a session {where}")
    first = body | {"prompt": body["prompt"][: 2 * B + 1]}
    xargs: dict[str, Any] = {"kv_cache_report_mode": "full"}
    await engine.served(first)
    if where == "header":
        answer = await engine.ask(body | {"vllm_xargs": xargs}, X_Session_ID="s-1")
        assert answer.status == 200
    elif where == "body":
        await engine.served(body | {"vllm_xargs": xargs, "session_id": "s-1"})
    else:
        await engine.served(body | {"vllm_xargs": xargs | {"session_id": "s-1"}})
    plain, *report = await journal.stored(5)
    assert "session_id" not in plain
    assert [event["session_id"] for event in report] == ["s-1"] * 2


async def test_a_full_report_tells_the_old_and_the_new(engine: Engine, journal: Journal) -> None:
    body = ids(4 * B + 1, "reported")
    await engine.served(body | {"prompt": body["prompt"][: 2 * B + 1]})
    await engine.served(body | {"vllm_xargs": {"kv_cache_report_mode": "full"}})
    first, *report = await journal.stored(6)
    assert hashes(report)[:2] == first["block_hashes"]
    assert stored_tokens(report) == body["prompt"][: 4 * B]


async def test_a_prompt_of_whole_blocks_stores_its_last_one_each_time(
    engine: Engine, journal: Journal
) -> None:
    body = ids(2 * B, "duplicate")
    for _ in range(3):
        await engine.served(body)
    first, second, third = await journal.stored(4)
    assert second == third
    assert second["block_hashes"] == first["block_hashes"][1:]
    assert second["parent_block_hash"] == first["block_hashes"][0]


async def test_a_reset_is_announced_with_the_next_batch(engine: Engine, journal: Journal) -> None:
    body = ids(2 * B, "reset")
    await engine.served(body)
    [stored] = await journal.stored(2)
    _, _, answer = await engine.send("POST", "/reset_prefix_cache")
    assert answer == b'{"success":true}'
    assert await journal.events() == [stored]
    await engine.served(body)
    events = await journal.stored(4)
    assert events == [stored, {"type": "AllBlocksCleared"}, stored]
    batches = [decoded(payload) for _, payload in await journal.since(journal.next)]
    assert batches == [events[:1], events[1:]]


async def test_the_oldest_prompt_is_removed_first_and_from_its_end(engine: Engine, journal: Journal) -> None:
    """Prompts of 62 full blocks each, one more than there is room for."""
    prompts = engine.blocks // 63 + 1
    for n in range(prompts):
        await engine.served(ids(62 * B + 5, f"fills the cache {n}"))
    events = await journal.heard(lambda found: len(hashes(found)) >= 62 * prompts)
    oldest = hashes(events)[:62]
    removed = [event for event in events if event["type"] == "BlockRemoved"]
    assert_fits(
        removed,
        [{"type": "BlockRemoved", "block_hashes": [int], "medium": "GPU", "group_idx": 0}] * len(removed),
    )
    # Each request also has a block that is not full; those are the first to be used again.
    assert 63 * prompts - engine.blocks - prompts < len(removed) <= 63 * prompts - engine.blocks
    older, *others = hashes(removed, "BlockRemoved")  # the one block that was there before
    assert older not in oldest
    assert others == oldest[::-1][: len(others)]
    last = [event["type"] for event in events[-len(removed) - 1 :]]
    assert last == ["BlockRemoved"] * len(removed) + ["BlockStored"]


async def test_events_come_while_the_answer_is_generated(
    engine: Engine, context: zmq.asyncio.Context, journal: Journal
) -> None:
    async with engine.streaming(ids(2 * B, "early", 1500)):
        await journal.stored(5)
        assert await engine.metric("vllm:num_requests_running") == 1
    await engine.at_rest()


async def test_a_subscriber_hears_what_a_replay_tells(
    engine: Engine, context: zmq.asyncio.Context, journal: Journal
) -> None:
    subscriber = Subscriber(context, engine.spec, b"kv-")
    said = iter(range(1000))
    heard = [await subscriber.connected(lambda: engine.served(ids(B, f"said {next(said)}")))]
    for n in range(3):
        await engine.served(ids(B, f"heard {n}"))
        message = await subscriber.message()
        assert message is not None
        heard.append(message)
    subscriber.close()
    first = int.from_bytes(heard[0][1], "big")
    assert [(topic, number) for topic, number, _ in heard] == [
        (b"kv-events", (first + n).to_bytes(8, "big")) for n in range(4)
    ]
    replayed = await journal.since(first)
    assert [payload for _, payload in replayed] == [payload for _, _, payload in heard]


async def test_a_batch_is_time_events_and_rank(engine: Engine, journal: Journal) -> None:
    begun = time.time()
    await engine.served(ids(B, "a batch"))
    await journal.stored(1)
    [(_, payload)] = await journal.since(journal.next)
    stamp, events, rank = msgspec.msgpack.decode(payload)
    assert begun - 1 <= stamp <= time.time() + 1
    assert len(events) == 1
    assert rank == 0
