"""A dialect is all that kvproxy knows of one generating route: pure, one object for all requests."""

import abc
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, NamedTuple

import msgspec

from proxy.errors import EngineFailedError, RequestError, envelope
from proxy.request.body import Body
from proxy.request.sse import event_of

UNAUTHORIZED: dict[str, Any] = {"error": "Unauthorized"}
"""vLLM's answer to a request without a key."""


class Shape(msgspec.Struct, frozen=True):
    """What decides how a request is served."""

    stream: bool
    sequences: int = 1
    """The number of answers that are asked for to each prompt."""
    prompts: int = 1
    """The number of prompts. Several are served each by itself, where a connector hands over the blocks of
    one prompt; that takes the members of a completion (`serving.lists`)."""
    whole: bool = False
    """Whether one instance serves the whole request, because two legs would gain nothing or lose KV."""


class Usage(msgspec.Struct, frozen=True):
    """What an answer, or an event of one, says of its tokens; None where it says nothing."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    """The prompt's tokens that were cached."""
    answer_tokens: int | None = None
    """The generated tokens of all sequences together."""
    first_token_ms: float | None = None
    """From the step that began it to the first token, as vLLM's `--enable-per-request-metrics` says."""
    created_tokens: int | None = None
    """The prompt's tokens that were put into the cache."""


class PromptMembers(msgspec.Struct, frozen=True):
    """The members of a dialect in TOKENIZED that shape the prompt."""

    asked: frozenset[str] = frozenset()
    """Members that change the prompt's tokens, and that an engine's `/tokenize` takes word for word."""
    variables: frozenset[str] = frozenset()
    """Members that vLLM gives to the chat template as variables; for `/tokenize` they are put among these."""
    unknowable: frozenset[str] = frozenset()
    """Members that shape the prompt in a way that only the engine knows."""
    rarely: frozenset[str] = frozenset()
    """Members that shape the prompt at few engines: prompts with them are a kind of their own."""


class Failure(NamedTuple):
    """An engine's own statement that a request failed."""

    status: int
    """From 400 to 599; 500 if the engine gives none."""
    body: bytes
    """The body of an answer of that status."""
    event: bytes
    """The event in a stream; empty if there was no stream."""


class Dialect(abc.ABC):
    """One generating route. Members that no client may set are removed before a dialect sees a body."""

    name: str
    """The `route` of its metrics."""
    path: str
    """The HTTP path, of kvproxy and of engines alike. Errors on paths below it are in its words, too."""
    noun: str
    """The word for one request."""
    known_by: ClassVar[str | None] = None
    """The member that all its requests have and no other dialect's have: `/explain` finds the dialect by it.
    None if there is no such member; `/explain` is then told the route."""
    summary: str
    """What the route does, for `/openapi.json`."""
    request_schema: ClassVar[Mapping[str, Any]] = {"type": "object"}
    """A JSON schema of requests. It may refer to those of `edge/routes/openapi.json`."""
    answer_schema: ClassVar[Mapping[str, Any]] = {"type": "object"}
    """A JSON schema of whole answers."""
    error_schema: ClassVar[Mapping[str, Any] | None] = None
    """A JSON schema of errors in its own words; None: they have the one envelope."""
    ending: ClassVar[str]
    """What ends a stream, in Markdown."""
    is_optional: ClassVar[bool] = False
    """Whether an engine may not have the route; it says so then, with 403 or 404."""
    default_answer_tokens: ClassVar[int | None]
    """The most tokens of an answer whose request sets no limit; None: as many as fit."""
    max_items: ClassVar[Mapping[str, int]] = {}
    """The most items of members that are lists."""
    long_members: ClassVar[Collection[str]] = ()
    """Members that may hold any number of values: token ids."""
    prompt_members: ClassVar[PromptMembers] = PromptMembers()
    """Needed of a dialect in TOKENIZED."""
    has_prompt: ClassVar[bool] = True
    """Whether its requests have prompts; without, they are placed by load alone, and nobody misses the
    tokens."""

    computes = True
    """Whether engines' models compute anything for its requests. Without, they take no room, and where no
    other instance is up, one that only prefills serves them."""
    opens_socket: ClassVar[bool] = False
    """Whether its requests open WebSockets, which are joined to one engine's."""
    takes_form: ClassVar[bool] = False
    """Whether its requests are multipart forms, which one engine gets as they arrive."""

    def cleaned(self, body: Body) -> Body:
        """The body without what no client may set in members of this dialect alone."""
        return body

    @abc.abstractmethod
    def read(self, body: Body) -> Shape:
        """Apply the engine's rules to the members that `first_token_only` replaces. Raises BadRequestError.

        Otherwise a decode engine would find their errors, after prefilled blocks wait for it.
        """

    @abc.abstractmethod
    def answer_limit(self, body: Body) -> tuple[str, int] | None:
        """The member that limits the answer, and its value; None if none does. `read` has passed the body."""

    def least_answer_tokens(self, body: Body) -> int:  # noqa: ARG002  # nothing is asked for
        """The tokens that each answer has at least."""
        return 0

    def may_end_early(self, body: Body) -> bool:  # noqa: ARG002
        """Whether an answer may end before its limit."""
        return True

    def computed_sequences(self, body: Body) -> int:  # noqa: ARG002
        """The number of answers to each prompt that are computed, if more than are asked for."""
        return 1

    @abc.abstractmethod
    def first_token_only(self, body: Body) -> Body:
        """The request for its first token alone, as one unstreamed answer: the base of every prefill leg."""

    @abc.abstractmethod
    def usage(self, answer: bytes) -> Usage:
        """The usage in a whole answer. Raises ValueError if it is no such answer."""

    def prompt(self, body: Body) -> "tuple[Dialect, Body] | None":  # noqa: ARG002  # nothing is known of it
        """The request as a request of a dialect in TOKENIZED; None if only the engine knows how the prompt is
        made.

        It has all that shapes the prompt, and no member that means something else there. `read` has passed
        the body. Without it requests are placed by load alone.
        """
        return None

    stores: ClassVar[bool] = False
    """Whether engines may store its answers, and serve requests that build on them."""

    def may_store(self, body: Body) -> bool:  # noqa: ARG002
        """Whether the engine that answers may store the answer. `read` has passed the body."""
        return False

    def builds_on(self, body: Body) -> str | None:  # noqa: ARG002
        """The id of the stored answer that a request builds on; None if it builds on none."""
        return None

    def lacks_model(self, answer: bytes) -> bool:  # noqa: ARG002  # every engine has the route
        """Whether an engine's answer of status 404 says that it does not have the model."""
        return True

    recounts: ClassVar[bool] = False
    """Whether `recounted` changes anything."""

    def recounted(self, told: bytes, prefill: Usage) -> bytes:  # noqa: ARG002  # most count the prompt alike
        """An answer, or a run of events, of a decode leg, whose prompt is counted as by the prefill leg: an
        engine that fetched the blocks has computed none that would be new in its cache.
        """
        return told

    # -- streams: each is asked of the data of one event, which is never empty ----------------------------

    @abc.abstractmethod
    def produces(self, data: bytes) -> bool:
        """Whether an event has something generated, so that the client's answer may begin with it."""

    @abc.abstractmethod
    def ends(self, data: bytes) -> bool:
        """Whether an event ends a complete stream."""

    @abc.abstractmethod
    def failure(self, data: bytes, event: bytes = b"") -> Failure | None:
        """The failure that an event, or a whole answer, is about; None if it is about none."""

    def wants_judging(self, run: bytes) -> bool:  # noqa: ARG002  # the safe answer
        """Whether a run of events may have an end or a failure. It is called for every chunk: a search, no
        more.
        """
        return True

    # -- errors that are ours ------------------------------------------------------------------------------

    def error(self, error: RequestError) -> dict[str, Any]:
        """The body of an answer that ends in `error`."""
        return envelope(str(error), error.kind, error.status, error.param)

    def unauthorized(self) -> dict[str, Any]:
        """The body of the answer to a request without one of the client keys."""
        return UNAUTHORIZED

    def error_event(self, error: RequestError) -> bytes:
        """The last event of a stream that ends in `error`: its connection is cut behind it."""
        return event_of(msgspec.json.encode(self.error(error)))

    def late_answer(self, status: int, body: bytes) -> bytes:
        """The event for an engine's answer of that status that came after the client's answer had begun."""
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
