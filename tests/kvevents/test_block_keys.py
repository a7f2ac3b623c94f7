from array import array
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvevents.block_keys import BlockHasher, Prompt
from kvevents.contents import UnkeyableRun
from kvevents.events import BlockStored, EngineHash, Reason

HASHER = BlockHasher(b"test")
TOKENS = list(range(1, 9))


def run(
    count: int = 2,
    *,
    token_ids: list[int] | None = None,
    lora_name: str | None = None,
    lora_id: int | None = None,
    extra_keys: list[Any] | None = None,
) -> BlockStored:
    tokens = TOKENS[: 4 * count] if token_ids is None else token_ids
    return BlockStored(
        list(range(count)), None, tokens, 4, lora_id=lora_id, lora_name=lora_name, extra_keys=extra_keys
    )


SALTED = [["s"], None]
BOTH = [["a", "s"], ["a"]]


@pytest.mark.parametrize(
    ("prompt", "event"),
    [
        (Prompt(TOKENS), run()),
        (Prompt(TOKENS), run(extra_keys=[None, None])),
        (Prompt(TOKENS), run(extra_keys=[[], ()])),
        (Prompt(TOKENS), run(extra_keys=[])),
        (Prompt(TOKENS, lora_name="", cache_salt=""), run()),
        (Prompt(tuple(TOKENS)), run()),
        (Prompt(TOKENS, lora_name="a"), run(lora_name="a")),
        (Prompt(TOKENS, lora_name="a"), run(lora_name="a", extra_keys=[["a"], ["a"]])),
        (Prompt(TOKENS, lora_name="a"), run(lora_name="a", extra_keys=[("a",), "a"])),
        (Prompt(TOKENS, lora_name="a"), run(lora_name="a", lora_id=7)),
        (Prompt(TOKENS, cache_salt="s"), run(extra_keys=SALTED)),
        (Prompt(TOKENS, cache_salt="s"), run(extra_keys=[("s",), []])),
        (Prompt(TOKENS, lora_name="a", cache_salt="s"), run(lora_name="a", extra_keys=BOTH)),
        (Prompt(TOKENS, lora_name="a", cache_salt="a"), run(lora_name="a", extra_keys=[["a", "a"], ["a"]])),
    ],
)
def test_prompt_and_event_agree(prompt: Prompt, event: BlockStored) -> None:
    assert HASHER.of_prompt(prompt, 4) == HASHER.of_run(None, event)


DISTINCT = [
    run(),
    run(lora_name="a"),
    run(lora_name="b"),
    run(lora_id=1),
    run(lora_id=2),
    run(extra_keys=SALTED),
    run(extra_keys=[["a"], None]),
    run(lora_name="a", extra_keys=BOTH),
    run(lora_name="s", extra_keys=[["s", "a"], ["s"]]),
    run(extra_keys=[[1], None]),
    run(extra_keys=[["1"], None]),
    run(extra_keys=[[b"1"], None]),
    run(extra_keys=[[True], None]),
    run(extra_keys=[[1.0], None]),
    run(extra_keys=[[None], None]),
    run(extra_keys=[[["hash", 0]], None]),
    run(extra_keys=[[["hash", 1]], None]),
    run(extra_keys=[["hash", 0], None]),
    run(extra_keys=[[["hash"], 0], None]),
    run(extra_keys=[[["hash", 0], "s"], None]),
    run(token_ids=[0, 2, 3, 4, 5, 6, 7, 8]),
    run(token_ids=[2**32 - 1, 2, 3, 4, 5, 6, 7, 8]),
]


def test_different_content_has_different_keys_from_the_first_block_on() -> None:
    keys = [key for event in DISTINCT for key in HASHER.of_run(None, event)]
    assert len(set(keys)) == len(keys)


def test_multi_modal_keys_in_a_later_block_keep_the_blocks_before_it() -> None:
    plain, image = HASHER.of_run(None, run()), HASHER.of_run(None, run(extra_keys=[None, [["hash", 0]]]))
    assert plain[0] == image[0]
    assert plain[1] != image[1]
    assert HASHER.of_run(None, run(extra_keys=[None, [("hash", 0)]])) == image


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), max_size=40), st.integers(1, 9), st.data())
def test_a_prompt_in_two_runs_has_the_keys_of_one(tokens: list[int], size: int, data: st.DataObject) -> None:
    keys = HASHER.of_prompt(Prompt(tokens), size)
    assert len(keys) == len(tokens) // size
    cut = data.draw(st.integers(0, len(keys)))
    head, tail = tokens[: cut * size], tokens[cut * size : len(keys) * size]
    first = HASHER.of_run(None, BlockStored([0] * cut, None, head, size))
    rest = HASHER.of_run(first[-1] if first else None, BlockStored([0] * (len(keys) - cut), 0, tail, size))
    assert first + rest == keys


def test_keys_depend_on_the_secret_and_the_parent() -> None:
    keys = HASHER.of_prompt(Prompt([1] * 8), 4)
    assert keys[0] != keys[1]
    assert BlockHasher(b"test").of_prompt(Prompt([1] * 8), 4) == keys
    assert BlockHasher(b"other").of_prompt(Prompt([1] * 8), 4) != keys
    assert BlockHasher().of_prompt(Prompt([1] * 8), 4) != BlockHasher().of_prompt(Prompt([1] * 8), 4)


def test_a_prompt_tells_the_keys_that_were_made_of_it() -> None:
    hasher, prompt = HASHER, Prompt(range(40))
    assert prompt.block_keys() == {}
    keys = {size: hasher.of_prompt(prompt, size) for size in (8, 16)}
    hasher.prompt_keys(prompt, 16, lookahead=1)
    ahead = hasher.prompt_keys(prompt, 4, lookahead=1)
    told = prompt.block_keys()
    assert {size: told[size].tolist() for size in keys} == keys
    assert told[4] is ahead
    assert len(told) == 3


def test_block_sizes_do_not_share_keys() -> None:
    assert set(HASHER.of_prompt(Prompt(TOKENS), 4)).isdisjoint(HASHER.of_prompt(Prompt(TOKENS), 8))


@pytest.mark.parametrize("token", [-1, 2**32, 2**70])
def test_a_prompt_ends_before_a_token_no_engine_can_have(token: int) -> None:
    assert HASHER.of_prompt(Prompt([1, 2, 3, 4, 5, token, 7, 8]), 4) == HASHER.of_prompt(
        Prompt([1, 2, 3, 4]), 4
    )


@pytest.mark.parametrize("size", [0, -4])
def test_a_block_size_must_be_positive(size: int) -> None:
    with pytest.raises(ValueError, match="block_size"):
        HASHER.of_prompt(Prompt(TOKENS), size)


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (run(token_ids=[1, 2, 3]), Reason.MISALIGNED),
        (run(token_ids=[1] * 9), Reason.MISALIGNED),
        (run(0, token_ids=[1]), Reason.MISALIGNED),
        (run(extra_keys=[None]), Reason.MISALIGNED),
        (run(extra_keys=[None] * 3), Reason.MISALIGNED),
        (BlockStored([1], None, [1], 0), Reason.MISALIGNED),
        (BlockStored([1], None, [], -1), Reason.MISALIGNED),
        (run(token_ids=[1, 2, 3, 4, 5, 6, 7, -1]), Reason.TOKENS),
        (run(token_ids=[1, 2, 3, 4, 5, 6, 7, 2**32]), Reason.TOKENS),
        (run(extra_keys=[nested(9), None]), Reason.EXTRA_KEYS),
        (run(extra_keys=[nested(5_000), None]), Reason.EXTRA_KEYS),
        (run(extra_keys=[[{"a": 1}], None]), Reason.EXTRA_KEYS),
    ],
)
def test_an_unkeyable_run_says_why(event: BlockStored, reason: Reason) -> None:
    with pytest.raises(UnkeyableRun) as caught:
        HASHER.of_run(None, event)
    assert caught.value.reason is reason


LONG = [token * 7919 % 150_000 for token in range(400 * 4)]


@pytest.mark.parametrize("given", [tuple(LONG), array("I", LONG), np.array(LONG, np.uint32), np.array(LONG)])
def test_tokens_come_in_any_form(given: Any) -> None:
    assert HASHER.of_prompt(Prompt(given), 4) == HASHER.of_prompt(Prompt(LONG), 4)


def test_a_numpy_prompt_ends_before_a_token_no_engine_can_have() -> None:
    tokens = np.array([1, 2, 3, 4, 5, -1, 7, 8])
    assert HASHER.of_prompt(Prompt(tokens), 4) == HASHER.of_prompt(Prompt([1, 2, 3, 4]), 4)


@pytest.mark.parametrize("cut", [1, 126, 127, 128, 253, 254, 255, 399])
def test_a_run_goes_on_at_any_depth(cut: int) -> None:
    keys = HASHER.of_prompt(Prompt(LONG), 4)
    hashes: list[EngineHash] = list(range(400))
    head = BlockStored(hashes[:cut], None, LONG[: cut * 4], 4)
    tail = BlockStored(hashes[cut:], cut - 1, LONG[cut * 4 :], 4)
    assert HASHER.of_run(None, head) + HASHER.of_run(keys[cut - 1], tail) == keys
    key = keys[cut - 1]
    for digest, expected in zip(HASHER.digests(tail).numbers(), keys[cut:], strict=True):
        key = HASHER.of_block(key, digest)
        assert key == expected


def test_keys_are_small_positive_numbers() -> None:
    assert all(0 < key < 2**60 for key in HASHER.of_prompt(Prompt(LONG), 1))


def test_a_prompts_keys_are_made_once_for_each_hasher_and_block_size() -> None:
    prompt = Prompt(LONG)
    assert HASHER.prompt_keys(prompt, 4) is HASHER.prompt_keys(prompt, 4)
    assert len(HASHER.prompt_keys(prompt, 8)) == 200
    assert BlockHasher(b"other").of_prompt(prompt, 4) != HASHER.of_prompt(prompt, 4)


def thue_morse(length: int, zero: int, one: int) -> list[int]:
    return [one if i.bit_count() & 1 else zero for i in range(length)]


def runs_of(text: list[int]) -> list[int]:
    return [token for token in text[: len(text) // 4] for _ in range(4)]


NOISE = np.random.default_rng(5).integers(0, 2, (40, 4096))
AWKWARD = {
    "one token": [[token] * 4096 for token in (0, 1, 2, 2**31, 2**32 - 1)],
    "shifted": [[0] * i + [1] + [0] * (4095 - i) for i in range(40)],
    "swapped": [[*range(i), i + 9, *range(i + 1, i + 9), i, *range(i + 10, 4096)] for i in range(40)],
    "far apart": [(row * 2**17 + 5).tolist() for row in NOISE],
    "farthest apart": [(row * 2**31).tolist() for row in NOISE],
    "Thue-Morse": [
        thue_morse(4096, 5, 6),
        thue_morse(4096, 6, 5),
        runs_of(thue_morse(4096, 5, 2**17 + 5)),
        runs_of(thue_morse(4096, 2**17 + 5, 5)),
    ],
}


@pytest.mark.parametrize("prompts", AWKWARD.values(), ids=AWKWARD)
def test_awkward_prompts_collide_no_more_than_chance_has_it(prompts: list[list[int]]) -> None:
    different = {tuple(prompt[:end]) for prompt in prompts for end in range(4, 4097, 4)}
    low = met = 0
    for secret in (b"1", b"2", b"3"):
        hasher = BlockHasher(secret)
        keys = {key for prompt in prompts for key in hasher.of_prompt(Prompt(prompt), 4)}
        assert len(keys) == len(different)
        # The low bits of the sums, where weak multiplication shows first; as many as make some meet.
        bits = (len(keys) ** 2 // 200).bit_length()
        low += len(keys) - len({key & ((1 << bits) - 1) for key in keys})
        met += len(keys) ** 2 / 2 / 2**bits
    assert low < met + 6 * met**0.5
