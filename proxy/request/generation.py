"""A `GenerationRequest` is a body from which every leg can be made: members that kvproxy changes obey vLLM's
rules.

Members that the prefill leg replaces (lengths, `n`, streaming) would otherwise be judged by the decode engine
alone, after prefilled blocks wait for it.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from kvevents import REPORT_SESSION
from proxy.errors import BadRequestError, cut
from proxy.request.body import MAX_SCALAR_BYTES, Body
from proxy.request.dialects.base import Dialect
from proxy.request.outline import MAX_VALUES, Outline, Signs

NEVER_FROM_A_CLIENT = ("kv_transfer_params", "ec_transfer_params", "request_id")
"""Members with which a client could crash a decode engine, read another prompt's KV, or take part in
another's request."""

NEVER_AS_AN_XARG = frozenset({*NEVER_FROM_A_CLIENT, "kv_cache_report_mode"})
"""Members that no client may set in `vllm_xargs`, which vLLM takes as its own extra arguments, so the same
names work there; a full cache report would announce blocks a second time."""


class GenerationRequest(msgspec.Struct, frozen=True):
    """One client request, checked and cleaned."""

    dialect: Dialect
    body: Body
    """The client's own members, without those that no client may set."""
    model: str
    stream: bool
    prompt_count: int
    """The number of prompts."""
    sequences: int
    """The number of answers that are asked for to each prompt."""
    whole: bool
    """Whether one instance serves the whole request, as `Shape.whole`."""
    answer_limit: tuple[str, int] | None
    """The member that limits the length of the answer, and its value; None if none does."""

    def with_member(self, name: str, value: Any) -> "GenerationRequest":
        """The same request with another value of a member, which MUST be none that a dialect reads."""
        return msgspec.structs.replace(self, body=self.body.changed({name: value}))

    @property
    def usual_answer_tokens(self) -> int:
        """The tokens that an answer without a limit surely has; where it may fill the context, any room is
        enough.
        """
        return self.dialect.default_answer_tokens or 1

    @property
    def estimated_tokens(self) -> int:
        """The length in tokens for counting load, if no tokenizer was asked: four bytes a token, and next to
        nothing where no model computes.
        """
        return max(1, self.body.size_bytes // 4) if self.dialect.computes else 1


MAX_XARGS_BYTES = 256 << 10
"""The largest `vllm_xargs`, whose members are looked through."""

_SCALARS = (
    "model",
    "stream",
    "stream_options",
    "n",
    "max_tokens",
    "max_completion_tokens",
    "min_tokens",
    "priority",
    "session_id",
    "cache_salt",
    "echo",
    "use_beam_search",
    "reasoning_effort",
)
"""Members that kvproxy reads itself and that are numbers or short texts."""


def read_request(
    dialect: Dialect | tuple[Dialect, ...],
    data: bytes | bytearray,
    default_model: str,
    found: Outline | Signs | None = None,
) -> GenerationRequest:
    """The request in `data`, the bytes of an HTTP body; its members show which of several dialects it is in.

    `found`: the outline of a large body, or the signs of any other. Raises BadRequestError.
    """
    body = Body.of_outline(data, found) if isinstance(found, Outline) else Body.parse(bytes(data), found)
    if isinstance(dialect, tuple):
        dialect = _spoken(dialect, body)
    _check_sizes(dialect, body)
    body = dialect.cleaned(_clean(body))
    model = body.value("model")
    if model is None:
        model = default_model
    if not isinstance(model, str):
        raise BadRequestError("model must be a string", param="model")
    asked = dialect.read(body)
    limit = dialect.answer_limit(body)
    return GenerationRequest(
        dialect, body, model, asked.stream, asked.prompts, asked.sequences, asked.whole, limit
    )


def _spoken(dialects: Sequence[Dialect], body: Body) -> Dialect:
    """The one dialect that the body is in. Raises BadRequestError."""
    known = [(dialect, dialect.known_by) for dialect in dialects if dialect.known_by is not None]
    found = [dialect for dialect, member in known if member in body]
    if len(found) != 1:
        known_by = " or ".join(f"{member} ({dialect.noun})" for dialect, member in known)
        raise BadRequestError(f"either {known_by} is needed")
    return found[0]


def _check_sizes(dialect: Dialect, body: Body) -> None:
    """Raises BadRequestError for a body with more, or longer, parts than any request has."""
    if body.size_bytes <= MAX_SCALAR_BYTES and not body.is_counted:
        return
    limits = dict.fromkeys(_SCALARS, MAX_SCALAR_BYTES) | {"vllm_xargs": MAX_XARGS_BYTES}
    for name, max_bytes in limits.items():
        view = body.view(name)
        if view is not None and len(view) > max_bytes:
            raise BadRequestError(f"{name} is longer than {max_bytes} bytes", param=name)
    for name, most in dialect.max_items.items():
        if (count := body.items_in(name)) > most:
            raise BadRequestError(f"{name} has {count} items: at most {most} are taken", param=name)
    for name in body.names() if body.size_bytes > MAX_VALUES else ():
        if name not in dialect.long_members and (count := body.values_in(name)) > MAX_VALUES:
            raise BadRequestError(f"{cut(name)} has more than {MAX_VALUES} values", param=cut(name))


def _read_xargs(body: Body) -> dict[str, msgspec.Raw]:
    """The members of `vllm_xargs`; none if it is no object, which engines judge."""
    if "vllm_xargs" not in body:
        return {}
    try:
        return _decode_xargs(body.view("vllm_xargs") or b"null") or {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def _is_text(raw: msgspec.Raw | None, text: str) -> bool:
    """Whether a value is that text, however it is written; an escaped character takes six bytes."""
    view = memoryview(raw or b"")
    return (
        len(view) <= 8 * len(text) + 2 and bytes(view[:1]) == b'"' and bool(msgspec.json.decode(view) == text)
    )


_decode_xargs = msgspec.json.Decoder(dict[str, msgspec.Raw] | None).decode


_LOOKED_INTO = frozenset({*NEVER_FROM_A_CLIENT, "session_id", "vllm_xargs"})


def _clean(body: Body) -> Body:
    if body.has_none_of(_LOOKED_INTO):
        return body
    drop = [name for name in NEVER_FROM_A_CLIENT if name in body]
    if "session_id" in body and body.value("session_id") == REPORT_SESSION:
        drop.append("session_id")  # it marks reports that kvproxy asked for, and nothing else
    put = {}
    xargs = _read_xargs(body)
    if xargs:
        never = NEVER_AS_AN_XARG & xargs.keys()
        if _is_text(xargs.get("session_id"), REPORT_SESSION):
            never |= {"session_id"}
        if never:
            put["vllm_xargs"] = {name: value for name, value in xargs.items() if name not in never}
    return body.changed(put, drop) if drop or put else body
