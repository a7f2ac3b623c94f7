"""The model against a real engine's recorded session: the same blocks stored and removed, in the same
order."""

from typing import Any

import msgspec
import pytest

from kvevents import AllBlocksCleared, BlockRemoved, BlockStored, Event
from proxy.simulation import EngineModel, EventForm
from proxy.simulation.engine.block_hashes import int_hash
from proxy.simulation.live.publisher import EventWriter
from tests.kvevents import recorded
from tests.proxy.simulation import driving

BLOCK, BLOCKS = 32, 24  # --kv-tokens 768
MAX_TOKENS = {"generation fills blocks": 80}


def recorded_events(messages: list[int]) -> list[dict[str, Any]]:
    """In order; how a step's events are cut into batches depends on vLLM's asynchronous scheduling."""
    frames = recorded.frames("kv_events_0_32_int")
    return [event for i in messages for event in msgspec.msgpack.decode(frames[i][2])[1]]


def serve(engine: EngineModel, step: recorded.Step, number: int) -> list[Event]:
    requests = [
        driving.request(
            f"{number}-{answer}",
            step.prompt_token_ids,
            MAX_TOKENS.get(step.what, 4),
            sampling={"ignore_eos": True, "salt": answer},
            lora=step.lora_name,
            lora_id=1 if step.lora_name else None,
            cache_salt=step.cache_salt,
        )
        for answer in range(step.answers)
    ]
    engine.add(requests[0])
    for late in requests[1:]:  # further answers reach the engine one by one
        driving.step(engine)
        engine.add(late)
    events = driving.run(engine)
    if step.cached_tokens is not None:
        assert requests[-1].local_hit == step.cached_tokens
    return events


class Names:
    """Hashes of two engines that name the same blocks."""

    def __init__(self) -> None:
        self.theirs: dict[Any, Any] = {None: None}
        self.ours: dict[Any, Any] = {None: None}

    def same(self, ours: Any, theirs: Any) -> bool:
        return bool(
            self.theirs.setdefault(ours, theirs) == theirs and self.ours.setdefault(theirs, ours) == ours
        )


def test_every_event_of_the_session_is_the_real_engines() -> None:
    engine = driving.model(block_size=BLOCK, blocks=BLOCKS, max_model_len=512)
    names, compared = Names(), 0
    for number, step in enumerate(recorded.session().steps):
        if step.what.startswith("reset"):
            assert engine.reset_prefix_cache()
            continue
        ours, theirs = serve(engine, step, number), recorded_events(step.messages)
        assert [type(event).__name__ for event in ours] == [event["type"] for event in theirs], step.what
        for mine, real in zip(ours, theirs, strict=True):
            compared += 1
            if isinstance(mine, AllBlocksCleared):
                continue
            for pair in zip(mine.block_hashes, real["block_hashes"], strict=True):
                assert names.same(*pair), step.what
            if isinstance(mine, BlockStored):
                assert names.same(mine.parent_block_hash, real["parent_block_hash"])
    assert compared > 70


def test_the_fields_on_the_wire_are_the_real_engines() -> None:
    engine = driving.model(block_size=BLOCK, blocks=BLOCKS, max_model_len=512)
    session = recorded.session()
    step = next(s for s in session.steps if s.lora_name and s.cache_salt)
    [real] = recorded_events(step.messages)
    [mine] = msgspec.msgpack.decode(EventWriter(EventForm()).batch(serve(engine, step, 0), 0, 1.5))[1]
    assert list(mine) == list(real)
    for event in (mine, real):
        del event["block_hashes"]
    assert mine == real


@pytest.mark.parametrize("form", [EventForm(), EventForm(bytes_hashes=True)])
def test_a_removal_has_the_real_engines_fields(form: EventForm) -> None:
    name = bytes(range(32))
    removed = BlockRemoved(block_hashes=[name], medium="GPU", group_idx=0)
    [mine] = msgspec.msgpack.decode(EventWriter(form).batch([removed], 0, 1.5))[1]
    assert mine == {
        "type": "BlockRemoved",
        "block_hashes": [name if form.bytes_hashes else int_hash(name)],
        "medium": "GPU",
        "group_idx": 0,
    }


def test_arrays_are_what_older_engines_wrote() -> None:
    engine = driving.model()
    events = driving.run(engine, driving.request("r", range(300, 309)))
    maps = EventWriter(EventForm()).batch(events, 3, 1.5)
    assert EventWriter(EventForm(arrays=True)).batch(events, 3, 1.5) == recorded.as_arrays(maps)
