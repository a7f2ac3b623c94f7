"""A route that is served whole is a dialect whose requests are never split: an engine judges all but the
model.
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import msgspec

from proxy.request.body import Body
from proxy.request.dialects import CHAT, COMPLETIONS
from proxy.request.dialects.base import Dialect, PromptMembers, Shape, Usage
from proxy.request.dialects.openai import OpenAiDialect
from proxy.request.passing import By, Carries, Whole


class _Error(msgspec.Struct):
    type: Any = None


class _ErrorAnswer(msgspec.Struct):
    error: _Error | None = None


_decode_error = msgspec.json.Decoder(_ErrorAnswer).decode


class WholeDialect(OpenAiDialect):
    """The dialect of a row of the table. If a stream answers, it is one of OpenAI's."""

    noun = "a request"
    answer_schema: ClassVar[Mapping[str, Any]] = {}
    default_answer_tokens: ClassVar[int | None] = 1
    has_prompt = False
    limits = ()
    null_n_is_one = True

    def __init__(self, route: Whole) -> None:
        self.name = route.name
        self.path = route.path
        self.summary = route.does
        self.route = route
        self.computes = route.by is not By.ANY

    def read(self, body: Body) -> Shape:  # noqa: ARG002  # an engine judges it
        """As `Dialect`."""
        return Shape(stream=False, whole=True)

    def answer_limit(self, body: Body) -> tuple[str, int] | None:  # noqa: ARG002
        """As `Dialect`: nothing is generated, or nobody knows how much."""
        return None

    def least_answer_tokens(self, body: Body) -> int:  # noqa: ARG002
        """As `Dialect`."""
        return 0

    def may_end_early(self, body: Body) -> bool:  # noqa: ARG002
        """As `Dialect`."""
        return True

    def computed_sequences(self, body: Body) -> int:  # noqa: ARG002
        """As `Dialect`."""
        return 1

    def usage(self, answer: bytes) -> Usage:
        """As `Dialect`; nothing for an answer that counts in another way."""
        try:
            return super().usage(answer)
        except ValueError:
            return Usage()

    def lacks_model(self, answer: bytes) -> bool:
        """As `Dialect`: an engine whose model does not do this has no such route, which says nothing of the
        model.
        """
        try:
            error = _decode_error(answer).error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        return error is not None and error.type == "NotFoundError"


class _ChatBatch(WholeDialect):
    """Several conversations, for placement several answers to the first: where that is cached, what all share
    is.
    """

    has_prompt = True
    default_answer_tokens = None
    max_items: ClassVar[Mapping[str, int]] = CHAT.max_items

    def read(self, body: Body) -> Shape:
        """As `Dialect`."""
        return Shape(stream=False, sequences=max(1, self._count(body)), whole=True)

    def answer_limit(self, body: Body) -> tuple[str, int] | None:
        """As `Dialect`."""
        return CHAT.answer_limit(body)

    def prompt(self, body: Body) -> tuple[Dialect, Body] | None:
        """As `Dialect`."""
        if not self._count(body):
            return None
        first = next(body.each_item("messages"))
        return CHAT, body.changed({"messages": msgspec.Raw(bytes(first))})

    def _count(self, body: Body) -> int:
        view = body.view("messages")
        if view is None or bytes(view[:1]) != b"[":
            return 0
        return sum(1 for _ in body.each_item("messages"))


class _Invocations(WholeDialect):
    """A request of another route, known by its members, in the order in which vLLM tries them."""

    has_prompt = True
    default_answer_tokens = None
    long_members = ("prompt",)
    max_items: ClassVar[Mapping[str, int]] = CHAT.max_items
    prompt_members: ClassVar[PromptMembers] = PromptMembers(unknowable=COMPLETIONS.prompt_members.unknowable)

    def read(self, body: Body) -> Shape:
        """As `Dialect`."""
        meant = _meant(body)
        return Shape(stream=False, whole=True) if meant is None else _whole(meant.read(body))

    def answer_limit(self, body: Body) -> tuple[str, int] | None:
        """As `Dialect`."""
        meant = _meant(body)
        return None if meant is None else meant.answer_limit(body)

    def least_answer_tokens(self, body: Body) -> int:
        """As `Dialect`."""
        meant = _meant(body)
        return 0 if meant is None else meant.least_answer_tokens(body)

    def may_end_early(self, body: Body) -> bool:
        """As `Dialect`."""
        meant = _meant(body)
        return True if meant is None else meant.may_end_early(body)

    def computed_sequences(self, body: Body) -> int:
        """As `Dialect`."""
        meant = _meant(body)
        return 1 if meant is None else meant.computed_sequences(body)

    def prompt(self, body: Body) -> tuple[Dialect, Body] | None:
        """As `Dialect`."""
        meant = _meant(body)
        return None if meant is None else (meant, body)


def _meant(body: Body) -> OpenAiDialect | None:
    return CHAT if "messages" in body else COMPLETIONS if "prompt" in body else None


def _whole(shape: Shape) -> Shape:
    return msgspec.structs.replace(shape, whole=True)


class _Form(WholeDialect):
    """A multipart form."""

    takes_form = True


class _Socket(WholeDialect):
    """A WebSocket."""

    opens_socket = True


_OF_PROMPTS: Mapping[str, type[WholeDialect]] = {"chat_batch": _ChatBatch, "invocations": _Invocations}


def whole_dialects(routes: Iterable[Whole]) -> tuple[WholeDialect, ...]:
    """The dialects of the rows."""
    return tuple(map(_dialect, routes))


def _dialect(route: Whole) -> WholeDialect:
    if route.carries is Carries.FORM:
        return _Form(route)
    if route.carries is Carries.SOCKET:
        return _Socket(route)
    return (_OF_PROMPTS[route.name] if route.by is By.PROMPT else WholeDialect)(route)
