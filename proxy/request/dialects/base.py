"""A dialect is all that kvproxy knows of one generating route; it is pure, and one object serves all requests."""

import abc
from collections.abc import Collection, Mapping
from typing import ClassVar

import msgspec

from proxy.request.body import Body


class Shape(msgspec.Struct, frozen=True):
    """What of a request decides how it is served."""

    stream: bool
    sequences: int = 1
    """How many answers to each prompt are asked for."""
    prompts: int = 1
    """More than one are served each by itself where a connector hands over one prompt's blocks; that takes the
    members of a completion (`serving.lists`)."""
    whole: bool = False
    """Splitting it into a prefill and a decode leg would gain nothing or lose KV; one instance serves it all."""


class Usage(msgspec.Struct, frozen=True):
    """What an answer tells of its prompt; None where it does not tell."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None


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
    default_answer_tokens: ClassVar[int | None]
    """How long an answer may become whose request does not say; None for as long as fits."""
    most_items: ClassVar[Mapping[str, int]] = {}
    """How many items the members that are lists may have."""
    long_members: ClassVar[Collection[str]] = ()
    """Members that may hold any number of values: token ids."""

    @abc.abstractmethod
    def read(self, body: Body) -> Shape:
        """Apply the engine's rules to the members that `first_token_only` replaces. Raises BadRequestError.

        A decode engine would find anything wrong there only after prefilled blocks wait for it.
        """

    @abc.abstractmethod
    def answer_limit(self, body: Body) -> tuple[str, int] | None:
        """The member that limits the length of the answer, and how; None if none does. `read` has passed the body."""

    @abc.abstractmethod
    def first_token_only(self, body: Body) -> Body:
        """The request for its first token alone, as one unstreamed answer: what every prefill leg asks."""

    @abc.abstractmethod
    def usage(self, answer: bytes) -> Usage:
        """What a whole answer tells of its prompt. Raises ValueError if it is no such answer."""
