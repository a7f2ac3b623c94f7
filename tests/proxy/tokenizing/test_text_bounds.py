"""What no context can hold is refused by its size, before anything is rendered, tokenized or asked; what may
fit never is."""

import asyncio
import json
import pathlib
import subprocess
import sys
import threading
import time
import tracemalloc
from array import array
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.admission import BodyBudget
from proxy.fleet import Fleet
from proxy.request import dialects
from proxy.request.dialects import Dialect
from proxy.request.generation import GenerationRequest, read_request
from proxy.request.outline import outline, signs_of
from proxy.tokenizing.fields import Ask, Given, Unknowable, what_to_tokenize
from proxy.tokenizing.local import pieces
from proxy.tokenizing.local.bounds import Bounds, Excess, Limits, least_characters
from proxy.tokenizing.local.tokenizer import LocalTokenizer
from proxy.tokenizing.prompts import PromptTokenizer
from proxy.tokenizing.why_unknown import WhyUnknown
from tests.helpers.service import wait_until
from tests.helpers.tiny_model import write_tiny_model

SMALL = Bounds(longest=10, sure=10, characters_a_token=4)


def request(dialect: Dialect, **members: Any) -> GenerationRequest:
    data = json.dumps(members).encode()
    return read_request(dialect, data, "tiny", signs_of(data) or outline(data))


def completion(prompt: Any, **members: Any) -> GenerationRequest:
    return request(dialects.COMPLETIONS, prompt=prompt, **members)


def chat(*messages: tuple[str, Any], **members: Any) -> GenerationRequest:
    said = [{"role": role, "content": content} for role, content in messages]
    return request(dialects.CHAT, messages=said, **members)


@given(st.text(max_size=200), st.booleans(), st.booleans())
def test_no_text_has_fewer_characters_than_it_is_said_to_have(
    text: str, blanks: bool, ascii_only: bool
) -> None:
    raw = memoryview(json.dumps(text, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"))
    really = len(text) if blanks else len("".join(text.split()))
    assert least_characters(raw, blanks=blanks) <= really


def test_plain_text_is_counted_exactly() -> None:
    raw = memoryview(json.dumps("plain é漢 text " * 50_000, ensure_ascii=False).encode())
    assert least_characters(raw, blanks=True) == 14 * 50_000
    assert least_characters(raw, blanks=False) == 11 * 50_000


@pytest.mark.parametrize(
    ("asked", "excess"),
    [
        (completion("x" * 40), None),
        (completion("x" * 41), Excess(10, None, 41, 4)),
        (completion(["x" * 41]), Excess(10, None, 41, 4)),
        (completion("x" * 41, truncate_prompt_tokens=5, truncation_side="left"), None),
        (completion("\n" * 41), None),  # more text than characters
        (completion(list(range(11))), Excess(10, 11)),
        (completion([list(range(11))]), Excess(10, 11)),
        (completion(list(range(10))), None),
        (completion(list(range(11)), truncate_prompt_tokens=5, truncation_side="left"), None),
        (chat(("user", "x" * 41)), Excess(10, None, 41, 4)),
        (chat(("system", "x" * 20), ("user", "y" * 21)), Excess(10, None, 41, 4)),
        (chat(("user", " " * 41)), None),  # templates may strip it
        (chat(("assistant", "x" * 41)), None),  # templates may leave thoughts out
    ],
)
def test_a_prompt_that_surely_fits_nowhere_is_refused(
    asked: GenerationRequest, excess: Excess | None
) -> None:
    how = what_to_tokenize(asked, SMALL)
    assert (how.excess if isinstance(how, Unknowable) else None) == excess


def test_nothing_is_refused_while_an_instance_has_not_told_its_length() -> None:
    told = Bounds(longest=10, characters_a_token=4)
    for asked in (completion("x" * 41), chat(("user", "x" * 41))):
        assert isinstance(what_to_tokenize(asked, told), Ask)
    assert what_to_tokenize(completion(list(range(11))), told) == Unknowable(
        WhyUnknown.TOO_LONG,
        "completions(prompt)",
        what_to_tokenize(completion(list(range(11))), told).members,
    )


def test_a_prompt_that_will_hardly_fit_is_left_to_engines() -> None:
    loose = Bounds(longest=10, sure=10, limits=Limits(least_work_bytes=100, work_bytes_a_token=0))
    tools = [{"type": "function", "function": {"name": "f"}}] * 10
    image = {"type": "image_url", "image_url": {"url": "data:" + "A" * 500}}
    for asked, why in (
        (completion("x" * 100), "too long"),
        (completion(list(range(100, 200)), truncate_prompt_tokens=5, truncation_side="left"), "too long"),
        (chat(("user", "hi"), tools=tools), "too long"),
        (chat(("assistant", "x" * 100)), "too long"),
        (completion("x" * 9), None),
        (chat(("user", [image])), None),  # what is not read of it does not count
    ):
        how = what_to_tokenize(asked, loose)
        assert (how.why if isinstance(how, Unknowable) else None) == why


def test_many_values_are_not_rendered() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"enum": [1] * 20_000}}}
    assert isinstance(what_to_tokenize(chat(("user", "hi"), tools=[tool])), Ask)
    few = Bounds(limits=Limits(max_work_values=20_000))
    how = what_to_tokenize(chat(("user", "hi"), tools=[tool]), few)
    assert isinstance(how, Unknowable)
    assert how.why == "too long"


def test_a_long_list_of_ids_is_read_in_parts() -> None:
    ids = [17, 4_294_967_295] * 100_000
    how = what_to_tokenize(completion(ids))
    assert isinstance(how, Given)
    assert list(how.token_ids) == ids
    for bad in (4_294_967_296, -1, 1.5, True, None):
        how = what_to_tokenize(completion([*ids, bad]))
        assert isinstance(how, Unknowable)
        assert how.why == "malformed"


# -- with the real tokenizer, in front of stand-ins ---------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("longest", "most"), [(float("inf"), 1 << 22), (131_072, 1 << 22), (1 << 20, 1 << 22), (10**7, 4 * 10**7)]
)
def test_longer_contexts_take_more_ids(longest: float, most: int) -> None:
    assert Bounds(longest).of_ids(most) is None
    assert Bounds(longest).of_ids(most + 1) is not None


async def test_what_a_template_makes_too_long_is_refused_as_well(
    model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    template = "{% for m in messages %}{{ m.content }}{{ ' and so on' * 1000 }}{% endfor %}"
    local = LocalTokenizer(_read(write_tiny_model(tmp_path, template=template)))
    body = msgspec.json.encode({"messages": [{"role": "user", "content": "hi"}]})
    assert await local.answer(body) is not None
    with pytest.raises(ValueError, match="10002 characters"):
        await local.answer(body, max_characters=10_001)
    local.close()


def _read(directory: pathlib.Path) -> Any:
    from proxy.tokenizing import read_model

    return read_model(directory)


class Watched(LocalTokenizer):
    """Tells what the library is asked to encode."""

    def __init__(self, directory: pathlib.Path, **sizes: int) -> None:
        self.asked: list[list[int]] = []
        """The lengths of the texts, by slice."""
        super().__init__(_read(directory), **sizes)
        self.asked.clear()

    def _encode(self, texts: Sequence[str]) -> "list[array[int]]":
        self.asked.append([*map(len, texts)])
        return super()._encode(texts)


async def test_a_piece_that_is_too_long_is_no_answer_here(model: pathlib.Path) -> None:
    local = Watched(model, max_piece_bytes=2000)
    assert local.answer_now(msgspec.json.encode({"prompt": "<|en" * 1000})) is None
    assert local.asked == []
    assert local.answer_now(msgspec.json.encode({"prompt": "some words " * 1000})) is not None
    assert max(map(max, local.asked)) <= 2000 + pieces.CHUNK
    local.close()


_TOKENIZE_IN_LITTLE = """
import resource, sys
import msgspec
from proxy.tokenizing import LocalTokenizer, read_model
local = LocalTokenizer(read_model(__import__("pathlib").Path(sys.argv[1])))
local.answer_now(msgspec.json.encode({"prompt": "some words <|en" * 100}))
with open("/proc/self/statm") as file:
    now_bytes = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now_bytes + (192 << 20), -1))
for text in ("<|en" * 1_000_000, "<|end|>" * 100_000, "some words " * 200_000):
    found = local.answer_now(msgspec.json.encode({"prompt": text}))
    print(None if found is None else len(found))
"""


def test_tokenizing_takes_little_whatever_the_text(model: pathlib.Path) -> None:
    """Cut nowhere, the first text would take 800 MB, and the library ends the process that has not so
    much."""
    done = subprocess.run(
        [sys.executable, "-c", _TOKENIZE_IN_LITTLE, str(model)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    uncut, special, words = done.stdout.split()
    assert (uncut, special) == ("None", "100000")
    assert int(words) > 200_000


class Slow(Watched):
    """Encodes once it may."""

    def __init__(self, directory: pathlib.Path, **sizes: int) -> None:
        self.at_work, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        super().__init__(directory, **sizes)
        self.at_work.clear()
        self.go_on.clear()

    def _encode(self, texts: Sequence[str]) -> "list[array[int]]":
        self.at_work.set()
        assert self.go_on.wait(20)
        return super()._encode(texts)


async def test_memory_is_charged_until_the_thread_has_ended(model: pathlib.Path) -> None:
    local, memory = Slow(model, slice_bytes=2000), BodyBudget(8 << 20)
    nobody: Any = None  # is asked
    tokenizer = PromptTokenizer(Fleet(), nobody, clock=time.monotonic, local=local, memory=memory)
    tokenizer._parity.learn("engine:8000", "tiny", {})
    asked = asyncio.get_running_loop().create_task(tokenizer.tokenize(completion("some words " * 5000), []))
    await asyncio.to_thread(local.at_work.wait, 20)
    assert memory.held_bytes > 8 * 55_000
    asked.cancel()
    await asyncio.wait({asked})
    assert memory.held_bytes > 8 * 55_000
    local.go_on.set()
    await wait_until(lambda: memory.held_bytes == 0, "the end of the thread's work")
    assert len(local.asked) <= 2, "who left had more tokenized than the slice that was at work"
    await tokenizer.close()


async def test_a_text_that_waits_for_its_turn_is_held_once(model: pathlib.Path) -> None:
    """Each is one piece, which one thread alone may take: the others wait in the bodies of their requests."""
    local = Slow(model)
    asked = [completion(f"{number:02}" + "<|en" * 15_000) for number in range(40)]
    text_bytes = sum(request.body.size_bytes for request in asked)
    tracemalloc.start()
    try:
        questions = [what_to_tokenize(request, Bounds()) for request in asked]
        assert all(isinstance(question, Ask) for question in questions)
        answers = [
            asyncio.get_running_loop().create_task(local.answer(question.body))
            for question in questions
            if isinstance(question, Ask)
        ]
        await asyncio.to_thread(local.at_work.wait, 20)
        await wait_until(lambda: len(local._turns) == len(asked) - 1, "no more being read")
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes < text_bytes / 4
    local.go_on.set()
    found = await asyncio.gather(*answers)
    assert None not in found
    local.close()


def test_ids_of_a_text_of_one_piece_are_held_once(model: pathlib.Path) -> None:
    local = LocalTokenizer(_read(model))
    question = msgspec.json.encode({"prompt": "x" * 30_000, "add_special_tokens": False})
    assert local.answer_now(question) is local.answer_now(question)
    local.close()
