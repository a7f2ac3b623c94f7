"""What is known of a chat with media begins the prompt an engine makes of it, and ends before the first of
them."""

import pathlib
from typing import Any

import msgspec
import pytest

from proxy.request import dialects
from proxy.request.generation import read_request
from proxy.tokenizing import LocalTokenizer, read_model
from proxy.tokenizing.fields import Ask, what_to_tokenize
from tests.helpers.tiny_model import write_tiny_model

IMAGE = "<|pad|>"
HEAD = "{%- for m in messages %}{{ '<|turn|>' ~ m.role ~ '\n' }}"
TAIL = "{{ '<|end|>\n' }}{%- endfor %}"
PARTS = "{%- for p in m.content %}{{ p.text if p.type == 'text' else '<|pad|>' }}{%- endfor %}"
IN_ORDER = HEAD + PARTS + TAIL
IMAGES_FIRST = (
    HEAD
    + "{%- for p in m.content if p.type == 'image' %}{{ '<|pad|>' }}{% endfor %}"
    + "{%- for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}"
    + TAIL
)
SEES_THEM = (
    "{%- set ns = namespace(image=false) %}"
    "{%- for m in messages %}{%- for p in m.content if p.type == 'image' %}{%- set ns.image = true %}"
    "{%- endfor %}{%- endfor %}{{ 'with images ' if ns.image else 'text only ' }}" + IN_ORDER
)
STRINGS = HEAD + "{{ m.content }}" + TAIL

SYSTEM = {"role": "system", "content": "You are very brief and you say so now and then."}
BEFORE = "What can be seen in this picture, and in the other one?"
STUB = {"type": "image"}
CHAT: list[dict[str, Any]] = [
    SYSTEM,
    {
        "role": "user",
        "content": [{"type": "text", "text": BEFORE}, STUB, {"type": "text", "text": "Well?"}, STUB],
    },
]


def tokenizer(directory: pathlib.Path, template: str) -> LocalTokenizer:
    return LocalTokenizer(read_model(write_tiny_model(directory, template=template)))


def known(local: LocalTokenizer, messages: list[dict[str, Any]]) -> list[int]:
    found = local.prefix_now(msgspec.json.encode({"messages": messages, "model": "tiny"}))
    return [] if found is None else found.tolist()


def answered(local: LocalTokenizer, messages: list[dict[str, Any]]) -> list[int]:
    question = {"messages": messages, "model": "tiny", "add_generation_prompt": False}
    found = local.answer_now(msgspec.json.encode(question))
    assert found is not None
    return found.tolist()


def tokens(local: LocalTokenizer, text: str) -> list[int]:
    found = local.answer_now(msgspec.json.encode({"prompt": text, "add_special_tokens": False}))
    assert found is not None
    return found.tolist()


TURN = f"<|turn|>system\n{SYSTEM['content']}<|end|>\n<|turn|>user\n"


@pytest.mark.parametrize(
    ("template", "before"),
    [(IN_ORDER, TURN + BEFORE), (IMAGES_FIRST, TURN), (STRINGS, TURN), (SEES_THEM, "")],
    ids=["in order", "images first", "strings", "sees them"],
)
def test_what_is_known_ends_before_the_first_image(
    tmp_path: pathlib.Path, template: str, before: str
) -> None:
    local = tokenizer(tmp_path, template)
    whole = tokens(local, before)
    found = known(local, CHAT)
    assert found == whole[: len(found)]
    assert len(whole) - len(found) <= 4


@pytest.mark.parametrize("first", ["0", "Q", IMAGE, "0 something else", "<", " ", ""])
@pytest.mark.parametrize("template", [IN_ORDER, IMAGES_FIRST, STRINGS, SEES_THEM])
def test_no_text_moves_the_image_into_what_is_known(
    tmp_path: pathlib.Path, template: str, first: str
) -> None:
    local = tokenizer(tmp_path, template)
    content = [{"type": "text", "text": first}, STUB, {"type": "text", "text": first}]
    found = known(local, [SYSTEM, {"role": "user", "content": content}])
    before = tokens(local, TURN + (first if template == IN_ORDER else ""))
    assert found == before[: len(found)]


def test_a_template_may_look_at_members_of_media_that_vllm_does_not_know(tmp_path: pathlib.Path) -> None:
    sees_marks = (
        "{%- set ns = namespace(marked=false) %}"
        "{%- for m in messages %}{%- for p in m.content if p.cache_control %}{%- set ns.marked = true %}"
        "{%- endfor %}{%- endfor %}{{ 'marked ' if ns.marked else '' }}" + IN_ORDER
    )
    local = tokenizer(tmp_path, sees_marks)
    assert known(local, CHAT) != []
    picture = {"type": "image_url", "image_url": {"url": "data:,"}, "cache_control": {"type": "ephemeral"}}
    messages = [SYSTEM, {"role": "user", "content": [{"type": "text", "text": BEFORE}, picture]}]
    how = what_to_tokenize(read_request(dialects.CHAT, msgspec.json.encode({"messages": messages}), "tiny"))
    assert isinstance(how, Ask)
    prefix = local.prefix_now(how.body)
    found = [] if prefix is None else prefix.tolist()
    rendered = tokens(local, "marked " + TURN + BEFORE)
    assert found == rendered[: len(found)]


def test_a_chat_that_begins_with_an_image_and_one_of_special_tokens_are_not_known(
    tmp_path: pathlib.Path,
) -> None:
    local = tokenizer(tmp_path, IN_ORDER)
    assert known(local, [{"role": "user", "content": [STUB, {"type": "text", "text": BEFORE}]}]) == []
    question = {"messages": CHAT, "add_special_tokens": True}
    assert local.prefix_now(msgspec.json.encode(question)) is None
    for broken in (b"{", b"{}", b'{"messages": 1}', b'{"messages": [1]}'):
        assert local.prefix_now(broken) is None


def test_what_a_tool_says_has_no_media(tmp_path: pathlib.Path) -> None:
    tool = {"role": "tool", "tool_call_id": "1", "content": [STUB]}
    assert known(tokenizer(tmp_path, IN_ORDER), [SYSTEM, tool]) == []


@pytest.mark.parametrize(
    ("texts", "seen"),
    [(["", "hello"], "hello"), (["a", "", "", "b", ""], "a\nb"), (["", ""], ""), (["a", "b"], "a\nb")],
)
def test_a_template_of_strings_sees_no_empty_parts(
    tmp_path: pathlib.Path, texts: list[str], seen: str
) -> None:
    local = tokenizer(tmp_path, STRINGS)
    content = [{"type": "text", "text": text} for text in texts]
    found = [answered(local, [{"role": "user", "content": shown}]) for shown in (content, seen)]
    assert found[0] == found[1]


def test_a_template_of_parts_sees_empty_parts_and_they_stay_in_what_a_tool_said(
    tmp_path: pathlib.Path,
) -> None:
    local = tokenizer(
        tmp_path, HEAD + "{%- for p in m.content %}{{ '<' ~ (p.text or p) ~ '>' }}{% endfor %}" + TAIL
    )
    content = [{"type": "text", "text": text} for text in ("", "hello")]
    asked = answered(local, [{"role": "user", "content": content}])
    assert asked == tokens(local, "<|turn|>user\n<{'type': 'text', 'text': ''}><hello><|end|>\n")
    tool = {"role": "tool", "tool_call_id": "1"}
    several, joined = (answered(local, [SYSTEM, tool | {"content": shown}]) for shown in (content, "\nhello"))
    assert several == joined
