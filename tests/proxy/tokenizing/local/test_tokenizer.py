"""The tokenizer in this process gives what vLLM gave for the same requests, or leaves them to engines."""

import asyncio
import json
import pathlib
import subprocess
import sys
import threading
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from proxy.errors import ConfigError
from proxy.request import dialects
from proxy.request.generation import read_request
from proxy.tokenizing import LocalTokenizer, NotExactError, find_model, read_model
from proxy.tokenizing.fields import Ask, what_to_tokenize
from proxy.tokenizing.local.pieces import batches
from proxy.tokenizing.local.reading import loads
from proxy.tokenizing.local.templates import ChatTemplate, TemplateRefusedError
from proxy.tokenizing.local.tokenizer import INLINE_BYTES, INLINE_NESTED, INLINE_QUOTES, INLINE_READ_BYTES
from proxy.tokenizing.local.turns import INLINE_S, Job
from tests.helpers.tiny_model import write_tiny_model

DATA = pathlib.Path(__file__).parent / "data"
CHATS = json.loads((DATA / "chats.json").read_text("utf-8"))
RECORDED = json.loads((DATA / "prompts_0_32.json").read_text("utf-8"))

LEFT = {20, 28, 29, 42, 45, 49, 50, 51, 54, 56}
"""Requests with members that vLLM drops or reads in several ways, and with variables that mean something to
it."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocalTokenizer]:
    made = {}
    for name, setting in CHATS["templates"].items():
        directory = write_tiny_model(
            tmp_path_factory.mktemp(name), config=setting["config"], template=setting["template"]
        )
        made[name] = LocalTokenizer(read_model(directory))
    return made


def asked(request: dict[str, Any]) -> bytes | None:
    how = what_to_tokenize(read_request(dialects.CHAT, msgspec.json.encode(request), "tiny"))
    return bytes(how.body) if isinstance(how, Ask) else None


@pytest.mark.parametrize("number", range(len(CHATS["requests"])))
@pytest.mark.parametrize("name", CHATS["templates"])
def test_tokens_are_those_of_vllm_or_none(models: dict[str, LocalTokenizer], name: str, number: int) -> None:
    question = asked(CHATS["requests"][number])
    ours = models[name].answer_now(question) if question is not None else None
    theirs = RECORDED[name]["answers"][number]
    assert ours is None or ours.tolist() == theirs


@pytest.mark.parametrize("name", CHATS["templates"])
def test_few_chats_are_left_to_engines(models: dict[str, LocalTokenizer], name: str) -> None:
    left = []
    for number, (request, theirs) in enumerate(
        zip(CHATS["requests"], RECORDED[name]["answers"], strict=True)
    ):
        question = asked(request)
        if theirs is not None and (question is None or models[name].answer_now(question) is None):
            left.append(number)
    assert set(left) <= LEFT


@pytest.mark.parametrize("name", CHATS["templates"])
def test_contents_are_given_as_vllm_gives_them(models: dict[str, LocalTokenizer], name: str) -> None:
    template = models[name]._templates.choose(with_tools=False)
    assert template is not None
    assert ("openai" if template.wants_parts else "string") == RECORDED[name]["format"]


def render(source: str, messages: Any = None, **variables: Any) -> str:
    return ChatTemplate(source).render(messages or [{"role": "user", "content": "hi"}], **variables)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",  # what is given cannot be changed
        "{{ messages.__class__.__mro__ }}",
        "{{ raise_exception('no') }}",
        "{{ missing.attribute }}",
    ],
)
def test_a_template_can_refuse_and_can_do_no_harm(source: str) -> None:
    with pytest.raises(TemplateRefusedError):
        render(source)


def test_json_is_written_as_transformers_writes_it() -> None:
    assert render("{{ x | tojson }}", x={"b": "<é>", "a": None}) == '{"b": "<é>", "a": null}'
    assert render("{{ x | tojson(indent=1) }}", x=[1]) == "[\n 1\n]"


def test_a_broken_template_leaves_chats_to_engines(tmp_path: pathlib.Path) -> None:
    tokenizer = LocalTokenizer(read_model(write_tiny_model(tmp_path, template="{% for %}")))
    assert tokenizer.answer_now(b'{"messages": [{"role": "user", "content": "hi"}]}') is None
    assert tokenizer.answer_now(b'{"prompt": "hi"}') is not None


@pytest.mark.parametrize(
    "question",
    [b"{", b"[]", b"{}", b'{"prompt": 1}', b'{"prompt": "x", "new": 1}', b'{"messages": {}}',
    b'{"prompt": "\\ud800"}',
     b'{"messages": [1]}',
     b'{"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": "yes"}'],
)  # fmt: skip
def test_a_request_that_is_no_plain_question_is_left_to_engines(
    models: dict[str, LocalTokenizer], question: bytes
) -> None:
    assert models["chatml"].answer_now(question) is None


@pytest.mark.parametrize("name", CHATS["templates"])
def test_a_tool_call_that_no_tokenizer_reads_is_left_to_engines(
    models: dict[str, LocalTokenizer], name: str
) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "\\ud800"}'}}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}]
    question = asked({"model": "tiny", "messages": messages})
    ours = models[name].answer_now(question) if question is not None else None
    assert ours is None or ours.tolist()


def test_what_the_tokenizer_is_given_at_once_is_bounded(models: dict[str, LocalTokenizer]) -> None:
    texts = ["word " * n for n in (1, 30, 2, 3, 40, 1)]
    slices = list(batches(texts, 40))
    assert [text for batch, _ in slices for text in batch] == texts
    assert all(len(batch) == 1 or size_bytes == sum(map(len, batch)) <= 40 for batch, size_bytes in slices)
    chat = "<|turn|>".join(texts) * 20
    tokenizer = LocalTokenizer(read_model(models["chatml"].directory), slice_bytes=40)
    whole = tokenizer._tokenizer.encode(chat, add_special_tokens=False).ids
    assert tokenizer.pieces.encode(chat).tolist() == whole
    tokenizer.close()


async def test_long_questions_leave_the_event_loop_and_have_the_same_answer(
    models: dict[str, LocalTokenizer],
) -> None:
    question = msgspec.json.encode({"prompt": "some text, and more. " * 2000})
    threads = []

    class Seen(LocalTokenizer):
        def _encode(self, texts: Sequence[str]) -> "list[array[int]]":
            threads.append(threading.current_thread())
            return super()._encode(texts)

    tokenizer = Seen(read_model(models["chatml"].directory))
    threads.clear()
    answer = await tokenizer.answer(question)
    assert threads
    assert threading.main_thread() not in threads
    assert answer == tokenizer.answer_now(question)
    del threads[:]
    assert await tokenizer.answer(b'{"prompt": "something short"}') is not None
    assert threads == [threading.main_thread()]
    del threads[:]
    grown = msgspec.json.encode({"prompt": "some text, and more. " * 1900 + " which is new"})
    assert await tokenizer.answer(grown) == tokenizer.answer_now(grown)
    assert threads == [threading.main_thread()], "nearly all of it was known"
    del threads[:]
    new = msgspec.json.encode({"prompt": " ".join(f"another text {n}" for n in range(1000))})
    assert await tokenizer.answer(new) == tokenizer.answer_now(new)
    assert threads
    assert threading.main_thread() not in threads
    tokenizer.close()


@pytest.mark.parametrize(
    "prompt",
    [
        '"x" ' * (INLINE_QUOTES // 2) + "word " * (INLINE_BYTES // 5),  # as a chat of many messages has
        "xyz " * (INLINE_READ_BYTES // 4),
    ],
)
async def test_a_question_that_takes_long_to_read_is_read_off_the_event_loop(
    models: dict[str, LocalTokenizer], prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = LocalTokenizer(read_model(models["chatml"].directory))
    question = msgspec.json.encode({"prompt": prompt})
    known = tokenizer.answer_now(question)
    threads = []

    def encoding(text: str) -> Job["array[int]"]:
        threads.append(threading.current_thread())
        return type(tokenizer.pieces).encoding(tokenizer.pieces, text)

    monkeypatch.setattr(tokenizer.pieces, "encoding", encoding)
    assert await tokenizer.answer(question) == known
    assert threading.main_thread() not in threads
    assert len(threads) == 1
    tokenizer.close()


INDENTED = """\
{% for tool in tools or [] %}{{ tool | tojson(indent=4) }}{% endfor %}
{% for message in messages %}
{{ message.content }}{% if message.tool_calls %}{{ message.tool_calls | tojson(indent=4) }}{% endif %}
{% endfor %}"""


def nested(values: str, depth: int) -> dict[str, Any]:
    return {"x": json.loads("[" * depth + values + "]" * depth)}


def tools(count: int, parameters: dict[str, Any]) -> dict[str, Any]:
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    return {"messages": [{"role": "user", "content": "Hi"}], "tools": [tool] * count}


def calls(count: int, arguments: dict[str, Any], *, escaped: bool) -> bytes:
    written = json.dumps(arguments, separators=(",", ":"))
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "HERE"}}
    chat = {"messages": [{"role": "assistant", "content": "", "tool_calls": [call] * count}]}
    text = "".join(f"\\u{ord(sign):04x}" for sign in written) if escaped else json.dumps(written)[1:-1]
    return msgspec.json.encode(chat).replace(b"HERE", text.encode())


@pytest.mark.parametrize(
    ("question", "stays"),
    [
        (msgspec.json.encode(tools(16, nested("", 190))), False),
        (msgspec.json.encode(tools(1, nested(",".join("1" * 3500), 190))), False),
        (msgspec.json.encode(tools(85, nested("", 190))), False),
        (calls(16, nested("", 190), escaped=False), False),
        (calls(2, nested(",".join("1" * 150), 190), escaped=True), False),
        (msgspec.json.encode({"messages": [{"role": "user", "content": ""}] * 270}), False),
        (msgspec.json.encode(tools(1, nested("", 150))), True),
        (msgspec.json.encode(tools(10, nested("1,2,3,4", 5))), True),
        (msgspec.json.encode({"messages": [{"role": "user", "content": "Hi"}] * 120}), True),
    ],
    ids=[
        "deep", "many values that are deep", "longer", "arguments of calls", "escaped arguments of calls",
        "many messages", "deep once", "ordinary", "some messages",
    ],
)  # fmt: skip
async def test_a_question_that_may_grow_is_rendered_off_the_event_loop(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, question: bytes, stays: bool
) -> None:
    directory = write_tiny_model(tmp_path, config={}, template=INDENTED)
    tokenizer = LocalTokenizer(read_model(directory))
    made: dict[bool, list[int]] = {True: [], False: []}

    def encoding(text: str) -> Job["array[int]"]:
        made[threading.current_thread() is threading.main_thread()].append(len(text))
        return type(tokenizer.pieces).encoding(tokenizer.pieces, text)

    expected = tokenizer.answer_now(question)  # None if so many spaces in a row are too long a piece
    monkeypatch.setattr(tokenizer.pieces, "encoding", encoding)
    assert await tokenizer.answer(question) == expected
    assert len(made[stays]) == 1
    assert not made[not stays]
    assert sum(made[True]) <= 4 * INLINE_NESTED + len(question)
    tokenizer.close()


async def test_what_stands_before_media_is_tokenized_on_the_event_loop_only_if_all_of_it_is_little(
    models: dict[str, LocalTokenizer],
) -> None:
    here = []

    class Seen(LocalTokenizer):
        def _encode(self, texts: Sequence[str]) -> "list[array[int]]":
            if threading.current_thread() is threading.main_thread():
                here.append(sum(map(len, texts)))
            return super()._encode(texts)

    def question(before: str, behind: str) -> bytes:
        parts = [{"type": "text", "text": before}, {"type": "image"}, {"type": "text", "text": behind}]
        return msgspec.json.encode({"messages": [{"role": "user", "content": parts}]})

    tokenizer = Seen(read_model(models["parts"].directory))
    known = " ".join(f"some text {number}" for number in range(2000))
    assert tokenizer.answer_now(msgspec.json.encode({"prompt": f"<|pad|>{known}"})) is not None
    del here[:]
    long = question("what stands before it, ", known)
    found = await tokenizer.prefix(long)
    assert found is not None
    assert sum(here) <= INLINE_BYTES
    assert found == tokenizer.prefix_now(long)
    del here[:]
    short = question("something else before it, ", "which is short")
    assert await tokenizer.prefix(short) is not None
    assert here
    tokenizer.close()


async def test_memory_is_held_by_what_waits_for_a_turn_however_short_and_by_nothing_else(
    models: dict[str, LocalTokenizer],
) -> None:
    tokenizer = LocalTokenizer(read_model(models["chatml"].directory))
    told: list[str] = []

    def hold() -> Callable[[], None]:
        told.append("held")
        return lambda: told.append("given back")

    short = b'{"prompt": "something short"}'
    assert await tokenizer.answer(short, hold=hold) is not None
    assert not told
    tokenizer._loop_time.spend(INLINE_S)
    assert await tokenizer.answer(short, hold=hold) is not None
    assert told == ["held", "given back"]
    new = msgspec.json.encode({"prompt": " ".join(f"new text {n}" for n in range(1500))})
    await asyncio.sleep(0)
    assert await tokenizer.answer(new, hold=hold) is not None
    assert told == ["held", "given back"] * 2
    tokenizer._loop_time.spend(INLINE_S)
    assert await tokenizer.answer(short, hold=lambda: None) is None
    assert len(tokenizer._turns) == 0
    tokenizer.close()


async def test_many_short_questions_at_once_do_not_all_hold_up_the_event_loop(
    models: dict[str, LocalTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = LocalTokenizer(read_model(models["chatml"].directory))
    threads: list[threading.Thread] = []

    def encoding(text: str) -> Job["array[int]"]:
        threads.append(threading.current_thread())
        if threads[-1] is threading.main_thread():
            tokenizer._loop_time.spend(INLINE_S)  # as if it had taken so long
        return type(tokenizer.pieces).encoding(tokenizer.pieces, text)

    monkeypatch.setattr(tokenizer.pieces, "encoding", encoding)
    asked = [tokenizer.answer(b'{"prompt": "number %d"}' % number) for number in range(20)]
    assert None not in await asyncio.gather(*asked)
    assert threads.count(threading.main_thread()) == 1
    await asyncio.sleep(0)
    assert await tokenizer.answer(b'{"prompt": "later"}') is not None
    assert threads.count(threading.main_thread()) == 2
    tokenizer.close()


@pytest.mark.parametrize("size", [300_000, 1_000_000, 1_100_000])
@pytest.mark.parametrize("of", ["plain words, ", "é漢👩 ", '\\ "quoted"\n', "x😀"])
def test_a_long_value_is_read_as_by_the_decoder_of_engines(size: int, of: str) -> None:
    text = of * (size // len(of))
    messages = [{"role": "user", "content": text}, {"role": "user", "content": "short"}] * 2
    for value in (messages, [1.0, 10**30, None, *messages], {"a": text, "b": list(range(20_000))}):
        written = json.dumps(value, ensure_ascii=False)
        assert loads(written.encode("utf-8", "surrogatepass")) == json.loads(written)
    assert loads(json.dumps(messages).encode()) == messages


def special(tmp_path: pathlib.Path, processor: dict[str, Any] | None) -> LocalTokenizer:
    directory = write_tiny_model(tmp_path)
    made_of = json.loads((directory / "tokenizer.json").read_text("utf-8"))
    made_of["post_processor"] = processor
    (directory / "tokenizer.json").write_text(json.dumps(made_of), "utf-8")
    return LocalTokenizer(read_model(directory))


def template_processing(single: list[dict[str, Any]]) -> dict[str, Any]:
    tokens = {
        name: {"id": name, "ids": [n], "tokens": [name]} for n, name in enumerate(("<|pad|>", "<|turn|>"))
    }
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": tokens}


BEGIN = {"SpecialToken": {"id": "<|pad|>", "type_id": 0}}
END = {"SpecialToken": {"id": "<|turn|>", "type_id": 0}}
TEXT = {"Sequence": {"id": "A", "type_id": 0}}


@pytest.mark.parametrize(
    ("single", "before", "behind"),
    [([TEXT], [], []), ([BEGIN, TEXT], [0], []), ([BEGIN, TEXT, END], [0], [1])],
)
def test_completions_get_their_special_tokens(
    tmp_path: pathlib.Path, single: list[dict[str, Any]], before: list[int], behind: list[int]
) -> None:
    tokenizer = special(tmp_path, template_processing(single))
    bare = tokenizer.answer_now(b'{"prompt": "hi there", "add_special_tokens": false}')
    whole = tokenizer.answer_now(b'{"prompt": "hi there"}')
    assert bare is not None
    assert whole is not None
    assert whole.tolist() == [*before, *bare, *behind]
    assert tokenizer.ends_plainly is not bool(behind)
    chat = b'{"messages": [{"role": "user", "content": "hi"}]%s}'
    plain, more = (
        tokenizer.answer_now(chat % b""),
        tokenizer.answer_now(chat % b', "add_special_tokens": true'),
    )
    assert plain is not None
    assert more is not None
    assert more.tolist() == [*before, *plain, *behind]


def test_special_tokens_in_the_middle_leave_completions_to_engines(tmp_path: pathlib.Path) -> None:
    tokenizer = special(tmp_path, template_processing([TEXT, BEGIN, TEXT]))
    assert tokenizer.answer_now(b'{"prompt": "hi"}') is None
    assert tokenizer.answer_now(b'{"prompt": "hi", "add_special_tokens": false}') is not None


def test_a_tokenizer_that_throws_dice_is_not_used(tmp_path: pathlib.Path) -> None:
    directory = write_tiny_model(tmp_path)
    made_of = json.loads((directory / "tokenizer.json").read_text("utf-8"))
    made_of["model"]["dropout"] = 0.1
    (directory / "tokenizer.json").write_text(json.dumps(made_of), "utf-8")
    with pytest.raises(NotExactError, match="random"):
        LocalTokenizer(read_model(directory))


def test_older_models_have_their_special_tokens_in_a_file_of_their_own(tmp_path: pathlib.Path) -> None:
    directory = write_tiny_model(tmp_path, config={"chat_template": "{{ bos_token }}|{{ eos_token }}"})
    older = {
        "bos_token": {"content": "<|pad|>"},
        "eos_token": "<|end|>",
        "additional_special_tokens": ["<x>"],
    }
    (directory / "special_tokens_map.json").write_text(json.dumps(older), "utf-8")
    tokenizer = LocalTokenizer(read_model(directory))
    bar = tokenizer.answer_now(b'{"prompt": "|"}')
    assert bar is not None
    answer = tokenizer.answer_now(b'{"messages": [{"role": "user", "content": "hi"}]}')
    assert answer is not None
    assert answer.tolist() == [0, *bar, 2]
    assert len(tokenizer.answer_now(b'{"prompt": "<x>"}') or ()) == 1


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="has no tokenizer"):
        find_model(str(tmp_path))
    with pytest.raises(ConfigError, match="nothing is downloaded"):
        find_model("neither/there")


def test_its_libraries_are_loaded_with_the_first_tokenizer() -> None:
    script = "import sys, proxy.cli.main; print({'jinja2', 'tokenizers'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout == "set()\n"
