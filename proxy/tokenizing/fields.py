"""A prompt counts as known only if every member of the request is known to shape it, or known not to."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from proxy.body import Body
from proxy.errors import BadRequestError
from proxy.generation import GenerationRequest, PromptShape, Route
from proxy.tokenizing.engine_facts import EngineFacts
from proxy.tokenizing.members import NO_MEMBERS, TRUNCATING, VARIABLES, Members, kind_of, members_of
from proxy.tokenizing.tool_choices import Choice, Tools

_MAX_TOKEN_ID = 2**32 - 1


class Truncation(msgspec.Struct, frozen=True):
    """How a prompt that is too long is shortened."""

    tokens: int
    """How many stay."""
    side: str | None
    """Where others are cut off; None for the tokenizer's own choice, which counts special tokens apart."""


class Given(msgspec.Struct, frozen=True):
    """The client sent token ids: nothing to tokenize."""

    token_ids: list[int]
    kind: str
    truncation: Truncation | None = None
    members: Members = NO_MEMBERS


class Ask(msgspec.Struct, frozen=True):
    """An engine's /tokenize can tell, and so can its tokenizer in this process."""

    body: bytes
    kind: str
    needs: frozenset[str] = frozenset()
    """What the tokenizer in this process must agree with engines about: names of `parity.QUESTIONS`."""
    truncation: Truncation | None = None
    members: Members = NO_MEMBERS
    media: int = 0
    """How many images, sounds and videos the conversation has. `body` has stubs in their place, which no engine takes:
    only the tokenizer in this process can tell the prompt, and only up to the first of them."""

    @property
    def estimated_tokens(self) -> int:
        """The prompt's length where it is not known: four bytes of text a token."""
        return max(1, len(self.body) // 4 + self.media * MEDIA_TOKENS)


MEDIA_TOKENS = 1000
"""For load counting: what models make of an image of a megapixel, or of half a minute of sound (Qwen2.5-VL, Ultravox)."""


class Unknowable(msgspec.Struct, frozen=True):
    """The prompt's tokens cannot be told for sure; `why` is one of a few words, fit for a metric label."""

    why: str
    kind: str = ""
    members: Members = NO_MEMBERS


class _Part(msgspec.Struct):
    type: str | None = None
    uuid: Any = None


class _Message(msgspec.Struct):
    content: str | list[str | _Part] | None = None


class _Function(msgspec.Struct):
    name: str


class _NamedChoice(msgspec.Struct):
    function: _Function


_decode_length = msgspec.json.Decoder(Annotated[int, msgspec.Meta(ge=1)]).decode
_decode_side = msgspec.json.Decoder(Literal["left", "right"] | None).decode
_decode_variables = msgspec.json.Decoder(dict[str, msgspec.Raw] | None).decode
_decode_messages = msgspec.json.Decoder(list[_Message]).decode
_decode_raw_messages = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_decode_raw_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_raw_parts = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_choice = msgspec.json.Decoder(Literal["auto", "none", "required"] | _NamedChoice).decode
_decode_tokens = msgspec.json.Decoder(list[int]).decode
_decode_token_lists = msgspec.json.Decoder(list[list[int]]).decode
_decode_texts = msgspec.json.Decoder(list[str]).decode


def what_to_tokenize(
    request: GenerationRequest, longest: float = math.inf, facts: EngineFacts | None = None
) -> Given | Ask | Unknowable:
    """How the token ids of a request's prompt can be had.

    `longest`: in tokens; a longer list of token ids is not read, unless it is to be shortened. `facts`: what engines have
    said of how they read requests.

    `kind` names the members that shape the prompt, and those nobody knows: requests of one kind are rendered the same
    way, so one that turns out to be counted wrongly speaks for all of its kind.
    """
    facts = facts if facts is not None else EngineFacts()
    body, route = request.body, request.route
    members = members_of(body, route, facts.knows, facts.names)
    try:
        choice = _choice(body) if "tool_choice" in members.rarely else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Unknowable(
            "malformed", kind_of(route, members.shaping, members.rarely, members.apart), members
        )
    shaping, tools = set(members.shaping), Tools.SHOWN
    rarely = set(members.rarely) - {"tool_choice"}
    if choice is not None and "tools" in shaping:
        tools = facts.tools(choice)
        rarely.add(f"tool_choice {choice}")
    if tools is Tools.LEFT_OUT:
        shaping.discard("tools")
    kind = kind_of(route, shaping, rarely, members.apart)
    if tools is Tools.UNCLEAR:
        unclear = msgspec.structs.replace(members, unknown=(*members.unknown, "tool_choice"))
        return Unknowable("field", kind, unclear)
    if members.unknown:
        return Unknowable("field", kind, members)
    if request.prompt_count != 1:
        return Unknowable("prompt list", kind, members)
    try:
        truncation = _truncation(body, shaping)
        if route is not Route.CHAT:
            return _completion(request, shaping, kind, truncation, longest, members)
        needs, media = _of_contents(_decode_messages(body.raw("messages") or b"null"))
        if media < 0 or (media and (truncation is not None or "continue_final_message" in shaping)):
            return Unknowable("content part", kind, members)
        if media:
            kind += " before media"
        question = _question(request, shaping, _template_variables(body, shaping), stubs=media > 0)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadRequestError):
        return Unknowable("malformed", kind, members)
    return Ask(question, kind, _needs(body, shaping) | needs, truncation, members, media)


def _choice(body: Body) -> Choice | None:
    """The choice of tools, None for what an absent one means. Raises msgspec.DecodeError for what an engine refuses."""
    choice = _decode_choice(body.raw("tool_choice") or b"null")
    if isinstance(choice, _NamedChoice):
        return Choice.NAMED
    return None if choice == "auto" else Choice(choice)


_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal", "thinking"})
"""Types of content parts that vLLM takes as text."""
_TEXT_OR_NAME = _TEXT_PARTS | {"tool_reference"}
_STUBS = {
    "image": frozenset({"image_url", "input_image", "image_pil", "image_embeds"}),
    "audio": frozenset({"audio_url", "input_audio", "audio_embeds"}),
    "video": frozenset({"video_url", "video_embeds"}),
}
"""What templates see of a part of these types: which of the three it is, and the members that vLLM does not know."""
_OF_PARTS = frozenset(
    """
    audio_embeds audio_url closed data file image_embeds image_pil image_url input_audio name prompt_cache_breakpoint
    refusal text thinking type uuid video_embeds video_url
    """.split()  # noqa: SIM905  # as members.py
)
"""The members of parts that vLLM 0.32 knows (`_KNOWN_CONTENT_PART_FIELDS`). It gives templates all others of a medium."""
_MEDIA = {part: stub for stub, parts in _STUBS.items() for part in parts}


def _of_contents(messages: Sequence[_Message]) -> tuple[frozenset[str], int]:
    """What must be agreed about for the parts of the contents, and how many are media; -1 if some are neither."""
    media, needs = 0, frozenset[str]()
    for message in messages:
        for part in message.content if isinstance(message.content, list) else ():
            if isinstance(part, str):
                needs = _PARTS
            elif part.type in _MEDIA:
                media += 1
            elif part.type not in _TEXT_OR_NAME or part.uuid is not None:
                return needs, -1  # with a uuid vLLM looks for media whatever the type is
            elif part.type != "text":
                needs = _PARTS
    return needs, media


_PARTS = frozenset({"text parts"})


def _with_stubs(raw: bytes) -> list[dict[str, Any]]:
    """The messages with a stub for each image, sound and video, whose data is not copied."""
    messages: list[dict[str, Any]] = []
    for message in _decode_raw_messages(raw):
        shown: dict[str, Any] = dict(message)
        if "content" in message and bytes(memoryview(message["content"])[:1]) == b"[":
            shown["content"] = [_stub(part) for part in _decode_raw_parts(message["content"])]
        messages.append(shown)
    return messages


def _stub(part: msgspec.Raw) -> Any:
    if bytes(memoryview(part)[:1]) != b"{":
        return part
    stub = _MEDIA.get(msgspec.json.decode(part, type=_Part).type or "")
    if stub is None:
        return part
    members = _decode_raw_members(part)
    return {"type": stub} | {name: value for name, value in members.items() if name not in _OF_PARTS}


def _truncation(body: Body, shaping: set[str]) -> Truncation | None:
    """Raises msgspec.DecodeError for what an engine refuses, or where the length depends on the leg."""
    if "truncate_prompt_tokens" not in shaping:
        return None  # a side alone does nothing
    tokens = _decode_length(body.raw("truncate_prompt_tokens") or b"")
    return Truncation(tokens, _decode_side(body.raw("truncation_side") or b"null"))


def _template_variables(body: Body, shaping: set[str]) -> dict[str, Any]:
    """`chat_template_kwargs` with the members that vLLM puts there."""
    if not shaping & VARIABLES[Route.CHAT]:
        return {}
    variables: dict[str, Any] = _decode_variables(body.raw("chat_template_kwargs") or b"null") or {}
    members = {name: msgspec.Raw(body.raw(name) or b"null") for name in shaping & VARIABLES[Route.CHAT]}
    if "reasoning_effort" in members and "enable_thinking" not in variables:
        members["enable_thinking"] = msgspec.Raw(
            b"true" if body.value("reasoning_effort") != "none" else b"false"
        )
    return {"chat_template_kwargs": variables | members}


def _needs(body: Body, shaping: set[str]) -> frozenset[str]:
    messages = body.raw("messages") or b""
    needs = {"chat"} | (
        shaping & {*VARIABLES[Route.CHAT], "tools", "chat_template_kwargs", "continue_final_message"}
    )
    if b'"tool' in messages:  # a tool's message, or calls of tools
        needs.add("tools")
    return frozenset(needs | {what for mark, what in _MARKS.items() if mark in messages})


_MARKS = {b'"developer"': "developer", b'"reasoning': "reasoning"}


def _question(
    request: GenerationRequest, shaping: set[str], put: dict[str, Any], *, stubs: bool = False
) -> bytes:
    """What to ask an engine's /tokenize; with stubs for media, what to ask the tokenizer here."""
    members: dict[str, Any] = {
        name: msgspec.Raw(raw)
        for name in sorted(shaping - TRUNCATING - VARIABLES[Route.CHAT])
        if (raw := request.body.raw(name)) is not None
    }
    messages = request.body.raw("messages") or b""
    if stubs:
        members["messages"] = _with_stubs(messages)
    elif b'"reasoning_content"' in messages:
        members["messages"] = _renamed_reasoning(request.body.value("messages"))
    return msgspec.json.encode(members | put | {"model": request.model})


def _renamed_reasoning(messages: list[Any]) -> list[Any]:
    """As chats are read: /tokenize does not know the older name."""
    renamed = []
    for message in messages:
        if isinstance(message, dict) and (older := message.pop("reasoning_content", None)) is not None:
            message["reasoning"] = older if message.get("reasoning") is None else message["reasoning"]
        renamed.append(message)
    return renamed


def _completion(
    request: GenerationRequest,
    shaping: set[str],
    kind: str,
    truncation: Truncation | None,
    longest: float,
    members: Members,
) -> Given | Ask | Unknowable:
    raw = request.body.raw("prompt") or b"null"
    given = request.prompt_shape in {PromptShape.IDS, PromptShape.ID_LISTS}
    if given and truncation is None and raw.count(b",") >= longest:
        return Unknowable(
            "too long", kind, members
        )  # a million numbers hold the loop for a tenth of a second
    needs = frozenset({"completion"})
    match request.prompt_shape:
        case PromptShape.TEXT:
            return Ask(_question(request, shaping, {}), kind, needs, truncation, members)
        case PromptShape.TEXTS:
            (text,) = _decode_texts(raw)
            return Ask(_question(request, shaping, {"prompt": text}), kind, needs, truncation, members)
        case PromptShape.IDS:
            token_ids = _decode_tokens(raw)
        case PromptShape.ID_LISTS:
            (token_ids,) = _decode_token_lists(raw)
        case _:
            return Unknowable("malformed", kind, members)
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) <= _MAX_TOKEN_ID):
        return Unknowable("malformed", kind, members)
    return Given(token_ids, f"{kind} as token ids", truncation, members)
