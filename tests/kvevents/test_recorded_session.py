"""What a real engine published, applied to an index, predicts what that engine reported."""

from collections.abc import Callable

import pytest

from kvevents.applier import Applier
from kvevents.block_keys import Prompt
from kvevents.decoder import Message, read_live
from kvevents.observer import NullObserver
from kvevents.prefix_index import PrefixIndex
from kvevents.slots import Slot
from tests.kvevents import recorded

SLOT = Slot("engine", 0, "GPU")
BLOCK = 32


def unchanged(payload: bytes) -> bytes:
    return payload


@pytest.mark.parametrize("encoding", [unchanged, recorded.as_arrays])
def test_every_step_is_predicted(encoding: Callable[[bytes], bytes]) -> None:
    index = PrefixIndex()
    applier = Applier(SLOT.instance, SLOT.rank, index, NullObserver())
    messages = [read_live(frames) for frames in recorded.frames("kv_events_0_32_int")]
    assert [message.number for message in messages] == list(range(29))
    just_reset = False  # an engine tells of a reset only with its next batch
    for step in recorded.session().steps:
        prompt = Prompt(step.prompt_token_ids, step.lora_name, step.cache_salt)
        length = len(prompt.token_ids)
        predicted = min(index.match(prompt).get(SLOT, 0), max(length - 1, 0) // BLOCK * BLOCK)
        if step.answers == 1 and step.cached_tokens is not None and not just_reset:
            assert predicted == step.cached_tokens, step.what
        just_reset = step.what.startswith("reset")
        for number in step.messages:
            message = messages[number]
            for _ in applier.apply(Message(message.topic, number, encoding(message.payload))):
                pass
        assert index.match(prompt).get(SLOT, 0) == length // BLOCK * BLOCK, step.what
    assert index.orphans(SLOT.instance, SLOT.rank) == 0
    assert index.block_size(SLOT.instance, SLOT.rank) == BLOCK


def test_the_engine_never_holds_more_than_its_blocks() -> None:
    index = PrefixIndex()
    applier = Applier(SLOT.instance, SLOT.rank, index, NullObserver())
    for frames in recorded.frames("kv_events_0_32_int"):
        for _ in applier.apply(read_live(frames)):
            pass
        assert index.blocks()[SLOT] <= 24


def test_a_stream_with_long_hashes_from_its_second_message_on() -> None:
    index = PrefixIndex()
    applier = Applier(SLOT.instance, SLOT.rank, index, NullObserver())
    held = []
    for frames in recorded.frames("kv_events_0_32_bytes"):
        for _ in applier.apply(read_live(frames)):
            pass
        held.append(index.blocks()[SLOT])
    assert held == [2, 4, 6, 7, 3]
    assert index.orphans(SLOT.instance, SLOT.rank) == 0
