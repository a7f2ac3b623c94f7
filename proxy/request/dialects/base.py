"""A dialect is all that kvproxy knows of one generating route: pure, one object for all requests."""

import abc
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, NamedTuple

import msgspec

from proxy.errors import EngineFailedError, RequestError, envelope
from proxy.request.body import Body
from proxy.request.sse import event_of


class Shape(msgspec.Struct, frozen=True):
    """What of a request decides how it is served."""

    stream: bool
    sequences: int = 1
    """How many answers to each prompt are asked for."""
    prompts: int = 1
    """More than one are served each by itself where a connector hands over one prompt's blocks; that takes
    the members of a completion (`serving.lists`)."""
    whole: bool = False
    """One instance serves it all: splitting it into two legs would gain nothing or lose KV."""


class Usage(msgspec.Struct, frozen=True):
    """What an answer, or an event of one, tells of its tokens; None where it does not tell."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    """Of the prompt's."""
    answer_tokens: int | None = None
    """Generated ones, of all sequences together."""


class PromptMembers(msgspec.Struct, frozen=True):
    """Which members of a dialect in TOKENIZED shape the prompt."""

    asked: frozenset[str] = frozenset()
    """They change the prompt's tokens, and an engine's `/tokenize` takes them word for word."""
    variables: frozenset[str] = frozenset()
    """vLLM gives them to the chat template as variables; in the words of `/tokenize` they are that."""
    unknowable: frozenset[str] = frozenset()
    """They shape the prompt in a way only the engine knows."""
    rarely: frozenset[str] = frozenset()
    """They shape it at few engines: prompts with them are a kind of their own."""


class Failure(NamedTuple):
    """An engine's own word that a request failed."""

    status: int
    """From 400 to 599; 500 where none is told."""
    body: bytes
    """As an answer of that status would have it."""
    event: bytes
    """As a stream has it; empty for what was no stream."""


class Dialect(abc.ABC):
    """One generating route. Bodies were cleaned of what no client may set before a dialect sees them."""

    name: ClassVar[str]
    """The label of its metrics."""
    path: ClassVar[str]
    """The HTTP path, on kvproxy and on engines alike. It MUST begin with `/v1/`, which client keys guard."""
    noun: ClassVar[str]
    """What one request is called."""
    known_by: ClassVar[str]
    """The member that all its requests have and no other dialect's do; `/explain` knows it by that."""
    summary: ClassVar[str]
    """What it does, for `/openapi.json`."""
    request_schema: ClassVar[Mapping[str, Any]] = {"type": "object"}
    """A JSON schema of requests. It may refer to those of `edge/routes/openapi.json`."""
    answer_schema: ClassVar[Mapping[str, Any]] = {"type": "object"}
    """The same of whole answers."""
    ending: ClassVar[str]
    """What ends a stream, in Markdown."""
    default_answer_tokens: ClassVar[int | None]
    """How long an answer may become whose request does not say; None for as long as fits."""
    max_items: ClassVar[Mapping[str, int]] = {}
    """How many items the members that are lists may have."""
    long_members: ClassVar[Collection[str]] = ()
    """Members that may hold any number of values: token ids."""
    prompt_members: ClassVar[PromptMembers] = PromptMembers()
    """Of a dialect in TOKENIZED."""

    @abc.abstractmethod
    def read(self, body: Body) -> Shape:
        """Apply the engine's rules to the members that `first_token_only` replaces. Raises BadRequestError.

        A decode engine would find anything wrong there only after prefilled blocks wait for it.
        """

    @abc.abstractmethod
    def answer_limit(self, body: Body) -> tuple[str, int] | None:
        """The member that limits the answer, and its value; None if none does. `read` has passed the body."""

    def least_answer_tokens(self, body: Body) -> int:  # noqa: ARG002  # nothing is asked for
        """How long each answer surely becomes."""
        return 0

    def may_end_early(self, body: Body) -> bool:  # noqa: ARG002
        """Whether an answer may end before its limit."""
        return True

    def computed_sequences(self, body: Body) -> int:  # noqa: ARG002
        """How many answers to each prompt are computed, where these are more than are asked for."""
        return 1

    @abc.abstractmethod
    def first_token_only(self, body: Body) -> Body:
        """The request for its first token alone, as one unstreamed answer: what every prefill leg asks."""

    @abc.abstractmethod
    def usage(self, answer: bytes) -> Usage:
        """What a whole answer tells of its prompt. Raises ValueError if it is no such answer."""

    def prompt(self, body: Body) -> "tuple[Dialect, Body] | None":  # noqa: ARG002  # nothing is known of it
        """The request in the words of a dialect in TOKENIZED, with all that shapes the prompt and no member
        that means something else there; None if only the engine knows how the prompt is made. `read` has
        passed the body.

        Without it requests are placed by load alone.
        """
        return None

    # -- streams: each is asked of the data of one event, which is never empty ----------------------------

    @abc.abstractmethod
    def produces(self, data: bytes) -> bool:
        """Whether an event holds something generated, so that the client's answer may begin with it."""

    @abc.abstractmethod
    def ends(self, data: bytes) -> bool:
        """Whether an event is the one that ends a complete stream."""

    @abc.abstractmethod
    def failure(self, data: bytes, event: bytes = b"") -> Failure | None:
        """The failure that an event, or a whole answer, tells of; None if it tells of none."""

    def wants_judging(self, run: bytes) -> bool:  # noqa: ARG002  # the safe answer
        """Whether a run of events may hold an end or a failure. Every chunk is asked: a search, no more."""
        return True

    # -- errors that are ours ------------------------------------------------------------------------------

    def error(self, error: RequestError) -> dict[str, Any]:
        """The body of an answer that ends in `error`."""
        return envelope(str(error), error.kind, error.status, error.param)

    def error_event(self, error: RequestError) -> bytes:
        """The last event of a stream that ends in `error`: its connection is cut behind it."""
        return event_of(msgspec.json.encode(self.error(error)))

    def late_answer(self, status: int, body: bytes) -> bytes:
        """The event for an engine's answer of that status which came when another had been given already."""
        try:
            said = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            said = None
        if isinstance(said, dict) and "error" in said:
            return event_of(msgspec.json.encode(said))
        error = EngineFailedError(f"the engine answered with status {status}")
        if status >= 400:
            error.status = status
        return self.error_event(error)
