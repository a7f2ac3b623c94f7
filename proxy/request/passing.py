"""Every route that one engine serves whole is one row of a table: serving, metrics, docs and descriptions are
made of it.

Pure. A path that is in no row, and that no `--pass` names, is not served.
"""

import enum
from collections.abc import Iterable

import msgspec


class Model(enum.StrEnum):
    """How the model of a request is told."""

    MEMBER = "member `model`"
    """By the member of a JSON object, which may be missing."""
    FIELD = "field `model`"
    """By a field of a multipart form, which may be missing."""
    QUERY = "query `model`"
    """By the query, where it may be missing."""


class By(enum.StrEnum):
    """By what the instance is chosen."""

    PROMPT = "affinity"
    """By where its prompt is cached, as for a generating route."""
    LOAD = "least load"
    ANY = "least load, prefill ones too"
    """Nothing is computed for it, so it waits for no room, and where no other instance is up, one that only
    prefills serves it."""


class Carries(enum.StrEnum):
    """What a request consists of."""

    JSON = "JSON"
    FORM = "multipart form"
    """Streamed through: it is not held whole, so it can be sent again only while none of it was sent."""
    SOCKET = "WebSocket"


class Whole(msgspec.Struct, frozen=True):
    """One route that one instance serves whole."""

    path: str
    """The path, of kvproxy and of engines alike."""
    name: str
    """The `route` of its metrics. Several names of one route share it."""
    does: str
    """What it does, as a summary."""
    by: By = By.LOAD
    carries: Carries = Carries.JSON
    model: Model = Model.MEMBER
    more: str = ""
    """What else there is to know, in Markdown."""

    @property
    def method(self) -> str:
        """The HTTP method of its requests."""
        return "GET" if self.carries is Carries.SOCKET else "POST"


_SCALED_OUT = "403 of engines without `--enable-scale-out`"
_HEARS = "404 of engines whose model does not hear"
_POOLS = "404 of engines whose model does not do it"

ROUTES: tuple[Whole, ...] = (
    Whole(
        "/v1/chat/completions/batch",
        "chat_batch",
        "Answer several conversations",
        By.PROMPT,
        more="goes where the first conversation is cached",
    ),
    Whole("/generative_scoring", "generative_scoring", "Score items by the next token"),
    Whole(
        "/invocations",
        "invocations",
        "Whatever the body is a request of, for SageMaker",
        By.PROMPT,
        more="affinity for bodies of chats and completions, streams included",
    ),
    Whole("/v1/embeddings", "embeddings", "Embed texts", more=_POOLS),
    Whole("/v2/embed", "embed", "Embed texts in Cohere's words", more=_POOLS),
    Whole("/pooling", "pooling", "What the model's pooler says of texts", more=_POOLS),
    Whole("/classify", "classify", "Classify texts", more=_POOLS),
    Whole("/score", "score", "Score pairs of texts", more=_POOLS),
    Whole("/v1/score", "score", "Score pairs of texts", more=_POOLS),
    Whole("/rerank", "rerank", "Order documents by a query", more=_POOLS),
    Whole("/v1/rerank", "rerank", "Order documents by a query", more=_POOLS),
    Whole("/v2/rerank", "rerank", "Order documents by a query", more=_POOLS),
    Whole("/tokenize", "tokenize", "The tokens of a prompt or a conversation", By.ANY),
    Whole("/v1/messages/count_tokens", "count_tokens", "How many tokens messages are", By.ANY),
    Whole("/detokenize", "detokenize", "The text of tokens", By.ANY),
    Whole("/v1/completions/render", "render", "The token ids of a completion", By.ANY, more=_SCALED_OUT),
    Whole("/v1/chat/completions/render", "render", "The token ids of a chat", By.ANY, more=_SCALED_OUT),
    Whole("/v1/messages/render", "render", "The token ids of a message", By.ANY, more=_SCALED_OUT),
    Whole("/v1/responses/render", "render", "The token ids of a response", By.ANY, more=_SCALED_OUT),
    Whole("/v1/completions/derender", "derender", "A completion of token ids", By.ANY, more=_SCALED_OUT),
    Whole(
        "/v1/chat/completions/derender", "derender", "A chat's answer of token ids", By.ANY, more=_SCALED_OUT
    ),
    Whole(
        "/v1/audio/transcriptions",
        "transcriptions",
        "The words of a recording",
        carries=Carries.FORM,
        model=Model.FIELD,
        more=_HEARS,
    ),
    Whole(
        "/v1/audio/translations",
        "translations",
        "The words of a recording in English",
        carries=Carries.FORM,
        model=Model.FIELD,
        more=_HEARS,
    ),
    Whole(
        "/v1/realtime",
        "realtime",
        "The words of a voice as it speaks",
        carries=Carries.SOCKET,
        model=Model.QUERY,
        more="403 of engines whose model does not hear",
    ),
)
"""The routes of vLLM 0.32 that are served whole."""

PASSED = "passed"
"""The `route` of the metrics of paths that `--pass` names."""


def routes_passed(paths: Iterable[str]) -> tuple[Whole, ...]:
    """A row for each path of `--pass`."""
    return tuple(Whole(path, PASSED, "What engines answer there") for path in paths)
