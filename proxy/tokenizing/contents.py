"""What the messages of a conversation contain is found out without a copy of their long texts and images."""

from typing import Any

import msgspec

from proxy.request.body import Body
from proxy.tokenizing.local.bounds import Bounds, Excess, least_characters

_NULL = msgspec.Raw(b"null")


class _Part(msgspec.Struct):
    type: str | None = None
    uuid: msgspec.Raw = _NULL


class _Message(msgspec.Struct):
    role: msgspec.Raw = _NULL
    content: msgspec.Raw = _NULL


_decode_part = msgspec.json.Decoder(_Part).decode
_decode_message = msgspec.json.Decoder(_Message).decode
_decode_raw_parts = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_raw_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal", "thinking"})
"""Types of content parts that vLLM takes as text."""
_TEXT_OR_NAME = _TEXT_PARTS | {"tool_reference"}
_STUBS = {
    "image": frozenset({"image_url", "input_image", "image_pil", "image_embeds"}),
    "audio": frozenset({"audio_url", "input_audio", "audio_embeds"}),
    "video": frozenset({"video_url", "video_embeds"}),
}
"""What templates see of a part of these types: the medium, and the members that vLLM does not know."""
_OF_PARTS = frozenset(
    """
    audio_embeds audio_url closed data file image_embeds image_pil image_url input_audio name
    prompt_cache_breakpoint
    refusal text thinking type uuid video_embeds video_url
    """.split()  # noqa: SIM905  # as members.py
)
"""The members of parts that vLLM 0.32 knows (`_KNOWN_CONTENT_PART_FIELDS`). It gives templates all others of
a medium."""
_MEDIA = {part: stub for stub, parts in _STUBS.items() for part in parts}


class Contents(msgspec.Struct):
    """What the contents of messages need and have."""

    needs: frozenset[str] = frozenset()
    """What the tokenizer here must agree with engines about for their parts."""
    media: int = 0
    """The number of parts that are media; -1 if some are neither media nor text."""
    media_bytes: int = 0
    too_much: bool = False
    """Whether some message, without its long texts, is longer than any that is read."""
    excess: Excess | None = None


def look_through(body: Body, bounds: Bounds) -> Contents:
    """Look through the messages. Raises msgspec.DecodeError if an engine would refuse them."""
    view = body.view("messages") or memoryview(b"null")
    found, characters = Contents(), 0
    may_be_long = len(view) > bounds.max_characters
    for item in body.short_items("messages"):
        if len(item) > bounds.limits.max_work_bytes:
            found.too_much = True
            continue
        message = _decode_message(item)
        content = memoryview(message.content)
        if may_be_long and message.role in _SHOWN_WHOLE:
            characters += _least_of(body.text(content))
        if found.media >= 0:
            _look_at(content, found, body)
    found.excess = bounds.of_characters(characters)
    return found


_SHOWN_WHOLE = (msgspec.Raw(b'"user"'), msgspec.Raw(b'"system"'))
"""Roles whose contents templates show, except white space around them; of an assistant's they may leave out
thoughts."""


def _least_of(content: memoryview) -> int:
    """The number of characters of a message's content that are surely in the prompt: those of a text."""
    return least_characters(content, blanks=False) if bytes(content[:1]) == b'"' else 0


def _look_at(content: memoryview, found: Contents, body: Body) -> None:
    first = bytes(content[:1])
    if first != b"[":
        if first != b'"' and bytes(content[:4]) != b"null":
            raise msgspec.DecodeError("a content is a text or a list")
        return
    for part in _decode_raw_parts(content):
        view = memoryview(part)
        if bytes(view[:1]) == b'"':
            found.needs = _PARTS
            continue
        kind = _decode_part(part)
        if kind.type in _MEDIA:
            found.media += 1
            found.media_bytes += body.whole_bytes(bytes(view))
        elif kind.type not in _TEXT_OR_NAME or kind.uuid != _NULL:
            found.media = -1  # with a uuid vLLM looks for media, whatever the type is
            return
        elif kind.type != "text":
            found.needs = _PARTS


_PARTS = frozenset({"text parts"})


def with_stubs(body: Body) -> bytes:
    """The messages with a stub in place of each image, sound and video, whose data is not copied, and marks
    for long texts.
    """
    messages: list[dict[str, Any]] = []
    for message in map(_decode_raw_members, body.short_items("messages")):
        shown: dict[str, Any] = dict(message)
        if "content" in message and bytes(memoryview(message["content"])[:1]) == b"[":
            shown["content"] = [_stub(part) for part in _decode_raw_parts(message["content"])]
        messages.append(shown)
    return msgspec.json.encode(messages)


def _stub(part: msgspec.Raw) -> Any:
    if bytes(memoryview(part)[:1]) != b"{":
        return part
    stub = _MEDIA.get(_decode_part(part).type or "")
    if stub is None:
        return part
    members = _decode_raw_members(part)
    return {"type": stub} | {name: value for name, value in members.items() if name not in _OF_PARTS}


def renamed_reasoning(body: Body) -> bytes:
    """The messages with the newer name of reasoning, as chats are read: /tokenize does not know the older
    one. Marks stand for long texts.
    """
    renamed: list[Any] = []
    for raw in body.short_items("messages"):
        message: Any = msgspec.Raw(raw)
        if raw[:1] == b"{":
            message = _decode_raw_members(raw)
            older = message.pop("reasoning_content", _NULL)
            if older != _NULL:
                newer = message.get("reasoning", _NULL)
                message["reasoning"] = older if newer == _NULL else newer
        renamed.append(message)
    return msgspec.json.encode(renamed)
