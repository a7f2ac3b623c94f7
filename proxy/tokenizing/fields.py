"""A prompt counts as known only if every member of the request is known to shape it, or known not to."""

import re
from array import array
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from proxy.errors import BadRequestError
from proxy.request.body import MAX_SCALAR_BYTES, WHOLE_BYTES, Body, Encoded, Pieces
from proxy.request.dialects import CHAT, Dialect
from proxy.request.dialects.completions import PromptShape, prompt_shape
from proxy.request.generation import GenerationRequest
from proxy.request.json_pieces import (
    COPIED_BYTES,
    PIECE_BYTES,
    Buffer,
    contains,
    lists_of_numbers,
    matches,
    only_item,
    slices,
)
from proxy.tokenizing.contents import look_through, renamed_reasoning, with_stubs
from proxy.tokenizing.engine_facts import EngineFacts
from proxy.tokenizing.local.bounds import Bounds, Excess, least_characters
from proxy.tokenizing.members import NO_MEMBERS, TRUNCATING, Members, kind_of, members_of
from proxy.tokenizing.tool_choices import Choice, Tools
from proxy.tokenizing.why_unknown import WhyUnknown

_VARIABLES = CHAT.prompt_members.variables


class Truncation(msgspec.Struct, frozen=True):
    """How a prompt that is too long is shortened."""

    tokens: int
    """The number of tokens that stay."""
    side: str | None
    """The side on which others are cut off; None: the tokenizer's own side, where special tokens are counted
    separately."""


class Given(msgspec.Struct, frozen=True):
    """The client sent token ids: nothing to tokenize."""

    token_ids: "array[int]"
    kind: str
    truncation: Truncation | None = None
    members: Members = NO_MEMBERS


class Ask(msgspec.Struct, frozen=True):
    """An engine's /tokenize, or its tokenizer in this process, can make the token ids."""

    body: Encoded
    """A long one is read where the request's own lies, so what waits for its turn holds no second one."""
    kind: str
    needs: frozenset[str] = frozenset()
    """What the tokenizer in this process must agree with engines about: names of `parity.QUESTIONS`."""
    truncation: Truncation | None = None
    members: Members = NO_MEMBERS
    media: int = 0
    """The number of images, sounds and videos of the conversation.

    `body` has stubs in their place, which no engine takes: only the tokenizer in this process can make the
    prompt, and only up to the first of them."""

    @property
    def estimated_tokens(self) -> int:
        """The length of the prompt if its tokens are not known: four bytes of text a token."""
        return max(1, len(self.body) // 4 + self.media * MEDIA_TOKENS)


MEDIA_TOKENS = 1000
"""The tokens that count for the load of one of them: what models make of an image of a megapixel, or of half
a minute of sound (Qwen2.5-VL, Ultravox)."""


class Unknowable(msgspec.Struct, frozen=True):
    """The prompt's tokens cannot be known for certain."""

    why: WhyUnknown
    kind: str = ""
    members: Members = NO_MEMBERS
    excess: Excess | None = None
    """By how much it is longer than any context; None if it may fit."""


class Sorted(msgspec.Struct, frozen=True):
    """What the members of a request are to its prompt, before their values are read."""

    request: GenerationRequest
    """The request in a dialect in TOKENIZED, which `/tokenize` knows."""
    shaping: frozenset[str]
    kind: str
    members: Members


class _Function(msgspec.Struct):
    name: str


class _NamedChoice(msgspec.Struct):
    function: _Function


_decode_length = msgspec.json.Decoder(Annotated[int, msgspec.Meta(ge=1)]).decode
_decode_side = msgspec.json.Decoder(Literal["left", "right"] | None).decode
_decode_variables = msgspec.json.Decoder(dict[str, msgspec.Raw] | None).decode
_decode_choice = msgspec.json.Decoder(Literal["auto", "none", "required"] | _NamedChoice).decode
_decode_tokens = msgspec.json.Decoder(list[int]).decode
_MANY_IDS_BYTES = 2048
_OF_PLAIN_IDS = b"0123456789,"


def what_to_tokenize(
    request: GenerationRequest, bounds: Bounds | None = None, facts: EngineFacts | None = None
) -> Given | Ask | Unknowable:
    """How to get the token ids of a request's prompt: `sort_members` and `read_prompt` in one."""
    found = sort_members(request, facts if facts is not None else EngineFacts(), as_tokenized(request))
    return found if isinstance(found, Unknowable) else read_prompt(found, bounds or Bounds())


def as_tokenized(request: GenerationRequest) -> tuple[Dialect, Body] | None:
    """The request in a dialect that `/tokenize` knows; None if only the engine knows how its prompt is made.

    It takes long for a large body of another dialect, so another thread may do it.
    """
    return request.dialect.prompt(request.body)


def sort_members(
    request: GenerationRequest, facts: EngineFacts, told: tuple[Dialect, Body] | None
) -> Sorted | Unknowable:
    """What the members are to the prompt; `facts`: how engines read requests; `told`: `as_tokenized` of it.

    `kind` names the members that shape the prompt, and unknown ones: requests of one kind are rendered in the
    same way, so if one of them is counted wrongly, all of its kind are.
    """
    if told is None:
        return Unknowable(WhyUnknown.ROUTE, request.dialect.name)
    dialect, body = told
    name = dialect.name
    if dialect is not request.dialect:
        name = f"{request.dialect.name} as {name}"
        request = msgspec.structs.replace(request, dialect=dialect, body=body)
    members = members_of(body, dialect, facts.knows, facts.names)
    try:
        choice = _choice(body) if "tool_choice" in members.rarely else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Unknowable(
            WhyUnknown.MALFORMED, kind_of(name, members.shaping, members.rarely, members.apart), members
        )
    shaping, tools = members.shaping, Tools.SHOWN
    rarely = members.rarely - {"tool_choice"}
    if choice is not None and "tools" in shaping:
        tools = facts.tools(choice)
        rarely |= {f"tool_choice {choice}"}
    if tools is Tools.LEFT_OUT:
        shaping -= {"tools"}
    kind = kind_of(name, shaping, rarely, members.apart)
    if tools is Tools.UNCLEAR:
        unclear = msgspec.structs.replace(members, unknown=(*members.unknown, "tool_choice"))
        return Unknowable(WhyUnknown.FIELD, kind, unclear)
    if members.unknown:
        return Unknowable(WhyUnknown.FIELD, kind, members)
    if request.prompt_count != 1:
        return Unknowable(WhyUnknown.PROMPT_LIST, kind, members)
    return Sorted(request, shaping, kind, members)


def read_prompt(found: Sorted, bounds: Bounds) -> Given | Ask | Unknowable:
    """How to get the token ids. Pure; it takes long for a large body, so another thread may do it.

    Of a prompt that is longer than the bounds only as much is read as shows that.
    """
    request, body = found.request, found.request.body
    shaping, kind, members = set(found.shaping), found.kind, found.members
    try:
        truncation = _truncation(body, shaping)
        if request.dialect is not CHAT:
            return _completion(request, shaping, kind, truncation, bounds, members)
        contents = look_through(body, bounds)
        media = contents.media
        if contents.excess is not None and truncation is None and media == 0:
            return Unknowable(WhyUnknown.TOO_LONG, kind, members, contents.excess)
        if media < 0 or (media and (truncation is not None or "continue_final_message" in shaping)):
            return Unknowable(WhyUnknown.CONTENT_PART, kind, members)
        if contents.too_much or _is_too_much(body, shaping, contents.media_bytes, bounds):
            return Unknowable(WhyUnknown.TOO_LONG, kind, members)
        if media:
            kind += " before media"
        messages = _messages(body)
        needs = _needs(shaping, messages) | contents.needs
        question = _question(
            request,
            shaping,
            _template_variables(body, shaping),
            stubs=media > 0,
            renamed="reasoning" in needs and contains(messages, _OLD_REASONING),
        )
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadRequestError):
        return Unknowable(WhyUnknown.MALFORMED, kind, members)
    return Ask(question, kind, needs, truncation, members, media)


def _is_too_much(body: Body, shaping: set[str], media_bytes: int, bounds: Bounds) -> bool:
    """Whether the members that make the prompt are more than is read of any prompt, because it will hardly
    fit.
    """
    size_bytes = sum(len(body.view(name) or b"") for name in shaping) - media_bytes
    values = sum(map(body.values_in, shaping))
    return size_bytes > bounds.work_bytes or values > bounds.limits.max_work_values


def _choice(body: Body) -> Choice | None:
    """The choice of tools; None for `auto`, which is also the meaning of an absent one. Raises
    msgspec.DecodeError for what an engine refuses.
    """
    view = body.view("tool_choice") or b"null"
    if len(view) > MAX_SCALAR_BYTES:
        raise msgspec.DecodeError("longer than any choice")
    choice = _decode_choice(view)
    if isinstance(choice, _NamedChoice):
        return Choice.NAMED
    return None if choice == "auto" else Choice(choice)


def _truncation(body: Body, shaping: set[str]) -> Truncation | None:
    """Raises msgspec.DecodeError for what an engine refuses, or where the length depends on the leg."""
    if "truncate_prompt_tokens" not in shaping:
        return None  # a side alone has no effect
    tokens = _decode_length(body.view("truncate_prompt_tokens") or b"")
    return Truncation(tokens, _decode_side(body.view("truncation_side") or b"null"))


def _template_variables(body: Body, shaping: set[str]) -> dict[str, Any]:
    """`chat_template_kwargs` with the members that vLLM adds to them."""
    if not shaping & _VARIABLES:
        return {}
    variables: dict[str, Any] = _decode_variables(body.view("chat_template_kwargs") or b"null") or {}
    members = {name: msgspec.Raw(body.view(name) or b"null") for name in shaping & _VARIABLES}
    if "reasoning_effort" in members and "enable_thinking" not in variables:
        members["enable_thinking"] = msgspec.Raw(
            b"true" if body.value("reasoning_effort") != "none" else b"false"
        )
    return {"chat_template_kwargs": variables | members}


def _messages(body: Body) -> Buffer:
    """To be searched: those of a small body are copied once."""
    messages = body.view("messages") or memoryview(b"")
    return bytes(messages) if len(messages) <= COPIED_BYTES else messages


def _needs(shaping: set[str], messages: Buffer) -> frozenset[str]:
    needs = {"chat"} | (shaping & {*_VARIABLES, "tools", "chat_template_kwargs", "continue_final_message"})
    if matches(messages, _ANY_MARK, _LONGEST_MARK):
        needs |= {what for mark, what in _MARKS.items() if contains(messages, mark)}
    return frozenset(needs)


_MARKS = {
    b'"tool': "tools",  # a tool's message, or calls of tools
    b'"developer"': "developer",
    b'"reasoning': "reasoning",
}
_OLD_REASONING = b'"reasoning_content"'
_ANY_MARK = re.compile(b"|".join(map(re.escape, _MARKS)))
"""Most messages have none, which one search shows: it stops at quotes alone."""
_LONGEST_MARK = max(map(len, _MARKS))


def _question(
    request: GenerationRequest,
    shaping: set[str],
    put: dict[str, Any],
    *,
    stubs: bool = False,
    renamed: bool = False,
) -> Encoded:
    """The question for an engine's /tokenize; with stubs for media, for the tokenizer in this process.

    `renamed`: whether some message may have the older name of reasoning.
    """
    body = request.body
    members: dict[str, Any] = {
        name: msgspec.Raw(view)
        for name in sorted(shaping - TRUNCATING - _VARIABLES)
        if (view := body.view(name)) is not None
    }
    if stubs:
        members["messages"] = msgspec.Raw(body.whole(with_stubs(body)))
    elif renamed:
        members["messages"] = msgspec.Raw(body.whole(renamed_reasoning(body)))
    return _encoded(members | put | {"model": request.model})


def _encoded(members: dict[str, Any]) -> Encoded:
    """An object, in pieces unless it is small."""
    parts: list[Buffer] = []
    for name, value in members.items():
        parts += [b"," if parts else b"{", msgspec.json.encode(name), b":"]
        parts.append(memoryview(value) if isinstance(value, msgspec.Raw) else msgspec.json.encode(value))
    parts.append(b"}")
    return Pieces(parts) if sum(map(len, parts)) > WHOLE_BYTES else b"".join(parts)


def _completion(
    request: GenerationRequest,
    shaping: set[str],
    kind: str,
    truncation: Truncation | None,
    bounds: Bounds,
    members: Members,
) -> Given | Ask | Unknowable:
    body, needs = request.body, frozenset({"completion"})
    view = body.view("prompt") or memoryview(b"null")
    match prompt_shape(body)[0]:
        case PromptShape.TEXT:
            return _text(request, view, shaping, kind, truncation, bounds, members) or Ask(
                _question(request, shaping, {}), kind, needs, truncation, members
            )
        case PromptShape.TEXTS:
            item = only_item(view)
            if too_long := _text(request, item, shaping, kind, truncation, bounds, members):
                return too_long
            put = {"prompt": msgspec.Raw(item)}
            return Ask(_question(request, shaping, put), kind, needs, truncation, members)
        case PromptShape.IDS:
            ids = view
        case PromptShape.ID_LISTS:
            ids = only_item(view)
        case _:
            return Unknowable(WhyUnknown.MALFORMED, kind, members)
    count = sum(part.count(b",") for part in slices(ids, PIECE_BYTES)) + 1
    if truncation is None and count > bounds.longest:
        return Unknowable(WhyUnknown.TOO_LONG, kind, members, bounds.of_tokens(count))
    if truncation is not None and len(ids) > bounds.work_bytes:
        return Unknowable(WhyUnknown.TOO_LONG, kind, members)
    return Given(_token_ids(ids), f"{kind} as token ids", truncation, members)


def _text(
    request: GenerationRequest,
    text: memoryview,
    shaping: set[str],
    kind: str,
    truncation: Truncation | None,
    bounds: Bounds,
    members: Members,
) -> Unknowable | None:
    """Why a text is not tokenized, if it is too long for that; None if it is not."""
    if truncation is None and len(text) > bounds.max_characters:
        excess = bounds.of_characters(least_characters(text, blanks=True))
        if excess is not None:
            return Unknowable(WhyUnknown.TOO_LONG, kind, members, excess)
    is_too_much = len(text) > bounds.work_bytes or _is_too_much(request.body, shaping, 0, bounds)
    return Unknowable(WhyUnknown.TOO_LONG, kind, members) if is_too_much else None


_IDS_AT_ONCE_BYTES = 256 << 10


def _token_ids(ids: memoryview) -> "array[int]":
    """Token ids; a long list is read in parts, between which other threads have a turn.

    Raises msgspec.DecodeError, also for an id that is no number of 32 bits.
    """
    found = array("I")
    try:
        for part in lists_of_numbers(ids) if len(ids) > _IDS_AT_ONCE_BYTES else (ids,):
            if len(part) < _MANY_IDS_BYTES or (plain := _plain_ids(bytes(part))) is None:
                found += array("I", _decode_tokens(part))
            else:
                found.frombytes(plain)
    except OverflowError as error:
        raise msgspec.DecodeError(str(error)) from None
    return found


def _plain_ids(part: bytes) -> bytes | None:
    """The ids of a list as 32-bit numbers, in half of the time that a decoder takes; None if it has to decide
    what they are.

    numpy takes more for numbers than JSON does, so nothing but digits and commas is given to it.
    """
    part = part[1:-1]
    if b" " in part:
        part = part.replace(b", ", b",")
    if part.translate(None, _OF_PLAIN_IDS):
        return None
    try:
        numbers = np.fromstring(part.decode(), np.int64, sep=",")
    except (DeprecationWarning, ValueError):  # of two commas, or one at an end
        return None
    if len(numbers) != part.count(b",") + 1 or int(numbers.max()) > _MAX_ID:
        return None
    return numbers.astype(np.uint32).tobytes()


_MAX_ID = 2**32 - 1
