"""A stand-in with a draft model that looks ahead finds a block only before the tokens that followed it, and
tells so."""

import random
from collections import Counter

import pytest

from kvevents import BlockRemoved, BlockStored, PrefixIndex, Prompt, Slot
from tests.proxy.simulation.driving import model, request, run, say


@pytest.mark.parametrize("ahead", [1, 3, 5])
def test_a_block_that_looks_ahead_is_cached_when_what_follows_it_is_there(ahead: int) -> None:
    engine = model(lookahead=ahead, connector=False)
    prompt = list(range(300, 300 + 8 + ahead - 1))  # one too few behind its second block
    (first, *later) = run(engine, request("first", prompt, max_tokens=3))
    assert isinstance(first, BlockStored)
    assert first.block_hashes[1:] == []
    assert first.lookahead_token_ids == [prompt[4 : 4 + ahead]]
    (second, *_) = later
    assert isinstance(second, BlockStored)
    assert second.token_ids == prompt[4:8]
    generated = say(model(lookahead=ahead, connector=False), prompt, 1)
    assert second.lookahead_token_ids == [[*prompt[8:], *generated]]
    again, other = (
        request(name, [*prompt, token, 1])
        for name, token in (("again", generated[0]), ("other", generated[0] + 1))
    )
    run(engine, again)
    run(engine, other)
    assert (again.local_hit, other.local_hit) == (8, 4)


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_an_index_finds_what_an_engine_finds(ahead: int) -> None:
    dice = random.Random(ahead)
    engine, index = model(lookahead=ahead, connector=False, blocks=400), PrefixIndex()
    slot = Slot("engine", 0, "GPU")
    hits = Counter[int]()
    for number in range(400):
        prompt = dice.choices([300, 301], [0.9, 0.1], k=dice.randrange(1, 30))
        found = index.match(Prompt(prompt)).get(slot, 0)
        one = request(str(number), prompt, max_tokens=dice.randrange(1, 9))
        for event in run(engine, one):
            match event:
                case BlockStored():
                    assert not index.store("engine", 0, event).dropped
                case BlockRemoved():
                    index.remove("engine", 0, event)
        assert one.local_hit == min(found, (len(prompt) - 1) // 4 * 4)
        hits[one.local_hit] += 1
    assert len(hits) > 4


def test_a_full_report_tells_what_follows_too() -> None:
    engine = model(lookahead=1, connector=False)
    prompt = list(range(300, 309))
    first = run(engine, request("first", prompt))
    again = run(engine, request("again", [*prompt, 5], full_report=True))
    assert first == again
    late = PrefixIndex()
    for event in again:
        assert isinstance(event, BlockStored)
        late.store("engine", 0, event)
    assert late.match(Prompt(prompt)) == {Slot("engine", 0, "GPU"): 8}
    assert late.match(Prompt([*prompt[:8], 5])) == {Slot("engine", 0, "GPU"): 4}
