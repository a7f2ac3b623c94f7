"""Each attack is one function: what an untrusted client may send, by the limits kvproxy has at its
defaults."""

import asyncio
import dataclasses
import json
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from proxy.tokenizing.local.pieces import MAX_PIECE_BYTES
from tests.hostile.target import Said, Target

Run = Callable[[Target], Coroutine[Any, Any, Said]]

_CYRILLIC = "".join(map(chr, range(ord("а"), ord("я") + 1)))  # noqa: RUF001  # it is Cyrillic

COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack and the flags of the kvproxy it is made on."""

    name: str
    what: str
    run: Run
    flags: tuple[str, ...] = ()
    repeats: bool = True
    """Whether one that is short is sent many times at once; False where it is many of itself, or not sent by
    clients."""


ATTACKS: dict[str, Attack] = {}


def together(said: Sequence[Said]) -> Said:
    """Several answers as one: the worst status, and all that was sent."""
    return Said(
        max(one.status for one in said),
        b"",
        sum(one.sent_bytes for one in said),
        sum(one.requests for one in said),
        sum(one.connections for one in said),
    )


def attack(*flags: str, repeats: bool = True) -> Callable[[Run], Run]:
    """Register a function as an attack: its name is the attack's, its docstring says what it is."""

    def register(run: Run) -> Run:
        name = run.__name__.replace("_", "-")
        ATTACKS[name] = Attack(name, (run.__doc__ or "").strip().splitlines()[0], run, flags, repeats)
        return run

    return register


def repeated(text: bytes, times: int, at_once: int = 10_000) -> Iterable[bytes]:
    """The same text so many times, in parts that are sent one after another."""
    part = text * at_once
    yield from [part] * (times // at_once)
    yield text * (times % at_once)


@attack()
async def no_place_to_cut(target: Target) -> Said:
    """A prompt of `<|en` 12 million times: one piece for every tokenizer."""
    return await target.post(COMPLETIONS, [b'{"prompt": "', *repeated(b"<|en", 12_000_000), b'"}'])


@attack()
async def no_place_to_cut_that_may_fit(target: Target) -> Said:
    """A prompt of `<|en` 500 000 times: 2 MB that a context of 131072 tokens could hold by their size."""
    return await target.post(
        COMPLETIONS, [b'{"max_tokens": 1, "prompt": "', *repeated(b"<|en", 500_000), b'"}']
    )


@attack()
async def no_place_to_cut_that_is_tokenized(target: Target) -> Said:
    """A prompt of `<|en` as often as makes the longest piece that is tokenized."""
    begin = b'{"max_tokens":1,"prompt":"%05d' % target.fresh()
    return await target.post(COMPLETIONS, [begin, *repeated(b"<|en", MAX_PIECE_BYTES // 4 - 2), b'"}'])


@attack(
    repeats=False
)  # the stand-ins' vocabulary makes a token of each byte: the ids alone take 4 bytes each
async def cyrillic_that_is_tokenized(target: Target) -> Said:
    """A prompt of Cyrillic words, which have no place to cut, as long as is tokenized."""
    rng = random.Random(target.fresh())  # any letters will do
    words = ("".join(rng.choices(_CYRILLIC, k=7)) for _ in range(MAX_PIECE_BYTES // 15))
    return await target.post(COMPLETIONS, [b'{"max_tokens":1,"prompt":"', " ".join(words).encode(), b'"}'])


@attack()
async def small_tools(target: Target) -> Said:
    """A chat with 23 MB of small tools."""
    tool = b'{"type":"function","function":{"name":"f","parameters":{"a":[1,2]}}},'
    tools = [b'"tools":[', *repeated(tool, 23 * MB // len(tool)), tool[:-1], b"]"]
    return await target.post(CHATS, [b'{"messages":[{"role":"user","content":"Hi"}],', *tools, b"}"])


@attack()
async def one_large_tool(target: Target) -> Said:
    """A chat with one tool whose schema has two million numbers."""
    begin = b'"tools":[{"type":"function","function":{"name":"f","parameters":{"enum":['
    tools = [begin, *repeated(b"1,", 2_000_000), b"1]}}}]"]
    return await target.post(CHATS, [b'{"messages":[{"role":"user","content":"Hi"}],', *tools, b"}"])


def _members(count: int) -> Iterable[bytes]:
    for start in range(0, count, 10_000):
        numbers = range(start, min(count, start + 10_000))
        yield b"".join(b'"m%d":1,' % number for number in numbers)


@attack()
async def tools_that_are_rendered(target: Target) -> Said:
    """A chat with as many values in its tools as are given to a template."""
    tool = b'{"type":"function","function":{"name":"f","parameters":{"enum":[' + b"1," * 900 + b"1]}}},"
    tools = [b'"tools":[', tool * 99, tool[:-1], b"]"]
    return await target.post(
        CHATS, [b'{"max_tokens":1,"messages":[{"role":"user","content":"Hi"}],', *tools, b"}"]
    )


@attack()
async def prose(target: Target) -> Said:
    """A chat of 1.1 MB of words, all different, which are rendered and tokenized."""
    first = 110_000 * target.fresh()
    words = " ".join(f"word{number}" for number in range(first, first + 110_000)).encode()
    return await target.post(
        CHATS, [b'{"max_tokens":1,"messages":[{"role":"user","content":"', words, b'"}]}']
    )


@attack()
async def commas_in_text(target: Target) -> Said:
    """A chat of 1 MB of commas in its text, which is split where it comes in."""
    return await target.post(
        CHATS, [b'{"max_tokens":1,"messages":[{"role":"user","content":"', b"a," * 510_000, b'"}]}']
    )


@attack()
async def brackets_in_text(target: Target) -> Said:
    """A chat of 1 MB of brackets in its text, which is split where it comes in."""
    return await target.post(
        CHATS, [b'{"max_tokens":1,"messages":[{"role":"user","content":"', b"[]{}" * 255_000, b'"}]}']
    )


@attack()
async def special_tokens(target: Target) -> Said:
    """A prompt of 100 000 names of special tokens."""
    return await target.post(
        COMPLETIONS, [b'{"max_tokens":1,"prompt":"', *repeated(b"<|end|>", 100_000), b'"}']
    )


@attack()
async def special_tokens_in_little(target: Target) -> Said:
    """A prompt of 5700 names of special tokens, in 40 KB."""
    return await target.post(COMPLETIONS, [b'{"max_tokens":1,"prompt":"', *repeated(b"<|end|>", 5700), b'"}'])


@attack()
async def nearly_special_tokens(target: Target) -> Said:
    """A prompt of 24 000 beginnings of special tokens' names, of which there are 1000."""
    return await target.post(
        COMPLETIONS, [b'{"max_tokens":1,"prompt":"', *repeated(b"<|r a ", 24_000), b'"}']
    )


@attack()
async def nearly_special_tokens_in_little(target: Target) -> Said:
    """A prompt of 12 600 beginnings of special tokens' names, in 38 KB."""
    return await target.post(COMPLETIONS, [b'{"max_tokens":1,"prompt":"', *repeated(b"<|r", 12_600), b'"}'])


@attack()
async def messages_in_little(target: Target) -> Said:
    """A chat of 128 messages, as many as are read at once."""
    message = b'{"role":"user","content":"' + b"x" * 40 + b'"},'
    body = [b'{"max_tokens":1,"messages":[', *repeated(message, 127), message[:-1], b"]}"]
    return await target.post(CHATS, body)


@attack()
async def four_at_once(target: Target) -> Said:
    """Four of different kinds at the same time."""
    each = (no_place_to_cut_that_may_fit, ids_with_truncation, tools_that_are_rendered, escapes)
    async with asyncio.TaskGroup() as group:
        answers = [group.create_task(one(target), name=one.__name__) for one in each]
    return together([task.result() for task in answers])


@attack()
async def unknown_members(target: Target) -> Said:
    """Four million members that nobody knows."""
    return await target.post(COMPLETIONS, [b"{", *_members(4_000_000), b'"prompt":"Hi"}'])


@attack()
async def fewer_unknown_members(target: Target) -> Said:
    """95 000 members that nobody knows, in 0.9 MB."""
    return await target.post(COMPLETIONS, [b"{", *_members(95_000), b'"prompt":"Hi"}'])


@attack()
async def members_in_little(target: Target) -> Said:
    """25 000 members that nobody knows, in a body that is small."""
    return await target.post(COMPLETIONS, [b"{", *_members(25_000), b'"prompt":"Hi"}'])


@attack()
async def tiny_messages(target: Target) -> Said:
    """A chat of two million messages."""
    return await target.post(
        CHATS, [b'{"messages":[', *repeated(b'{"role":"user"},', 2_000_000), b'{"role":"user"}]}']
    )


@attack()
async def many_messages(target: Target) -> Said:
    """A chat of as many messages as are taken."""
    message = b'{"role":"user","content":"a"},'
    return await target.post(CHATS, [b'{"messages":[', *repeated(message, 16_000), message[:-1], b"]}"])


@attack()
async def ids_with_truncation(target: Target) -> Said:
    """30 million token ids of which 100 are to stay."""
    body = [
        b'{"truncate_prompt_tokens":100,"truncation_side":"left","prompt":[',
        *repeated(b"1,", 30_000_000),
    ]
    return await target.post(COMPLETIONS, [*body, b"1]}"])


@attack()
async def ids_with_truncation_that_are_taken(target: Target) -> Said:
    """Four million token ids of which 100 are to stay."""
    body = [
        b'{"max_tokens":1,"truncate_prompt_tokens":100,"truncation_side":"left","prompt":[',
        *repeated(b"1234,", 4_000_000),
    ]
    return await target.post(COMPLETIONS, [*body, b"1]}"])


@attack()
async def ids(target: Target) -> Said:
    """30 million token ids."""
    return await target.post(COMPLETIONS, [b'{"prompt":[', *repeated(b"1,", 30_000_000), b"1]}"])


@attack()
async def ids_that_fit(target: Target) -> Said:
    """120 000 token ids, which a context of 131072 holds."""
    return await target.post(
        COMPLETIONS, [b'{"max_tokens":1,"prompt":[', *repeated(b"1234,", 120_000), b"1]}"]
    )


@attack()
async def lists_of_ids(target: Target) -> Said:
    """100 lists of 9000 token ids."""
    one = b"[" + b",".join([b"17"] * 9000) + b"]"
    said = await target.post(COMPLETIONS, [b'{"max_tokens":1,"prompt":[', b",".join([one] * 100), b"]}"])
    return dataclasses.replace(said, requests=100)  # each is served by itself


@attack()
async def long_model(target: Target) -> Said:
    """A model's name of 60 MB."""
    return await target.post(
        COMPLETIONS, [b'{"prompt":"Hi","model":"', *repeated(b"m" * 1000, 60_000), b'"}']
    )


@attack()
async def long_priority(target: Target) -> Said:
    """A list of 15 million numbers as priority."""
    return await target.post(
        COMPLETIONS, [b'{"prompt":"Hi","max_tokens":1,"priority":[', *repeated(b"1,", 15_000_000), b"1]}"]
    )


@attack()
async def long_salt(target: Target) -> Said:
    """A cache salt of 60 MB."""
    return await target.post(
        COMPLETIONS,
        [b'{"prompt":"Hi","max_tokens":1,"cache_salt":"', *repeated(b"s" * 1000, 60_000), b'"}'],
    )


@attack()
async def escapes(target: Target) -> Said:
    """60 MB of escaped characters, halves of surrogate pairs among them."""
    body = [b'{"prompt":"', *repeated(b"\\u4e2d\\ud83d\\ude00", 3_300_000), b'"}']
    return await target.post(COMPLETIONS, body)


@attack()
async def brackets(target: Target) -> Said:
    """60 MB of empty lists within lists."""
    return await target.post(
        COMPLETIONS, [b'{"prompt":"Hi","x":[', *repeated(b"[[[]]],", 8_500_000), b"[]]}"]
    )


@attack()
async def large_image(target: Target) -> Said:
    """A chat with an image of 60 MB, which is no attack: it has to go through."""
    image = [
        b'{"type":"image_url","image_url":{"url":"data:image/png;base64,',
        *repeated(b"iVBO", 15_000_000),
    ]
    text = b'{"type":"text","text":"What is it?"},'
    message = [b'{"role":"user","content":[', text, *image, b'"}}]}']
    return await target.post(CHATS, [b'{"max_tokens":1,"messages":[', *message, b"]}"])


@attack()
async def large_list_of_texts(target: Target) -> Said:
    """Two texts of 20 MB in one list."""
    text = b'"' + b"word " * 4_000_000 + b'"'
    return await target.post(COMPLETIONS, [b'{"max_tokens":1,"prompt":[', text, b",", text, b"]}"])


@attack()
async def many_prompts(target: Target) -> Said:
    """A million texts of one letter in one list."""
    return await target.post(
        COMPLETIONS, [b'{"max_tokens":1,"prompt":["a"', *repeated(b',"a"', 1_000_000), b"]}"]
    )


@attack()
async def long_content_type(target: Target) -> Said:
    """A content type as long as a header line may be."""
    body = json.dumps({"prompt": "Hi"}).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: {'x' * 8000}\r\n"
    return await target.send(
        [f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode(), body],
        size_bytes=len(body),
    )
