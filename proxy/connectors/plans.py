"""A plan says in which order the legs of a request go, who makes their bodies, and what is held meanwhile.

    plan      the legs                                            what is held: its table
    -------   -------------------------------------------------   -------------------------------------------
    Whole     one, on one instance                                nothing
    InTurn    the decode leg is made of the prefill leg's         blocks on the prefill instance till fetched
              answer, and sent after it                           (`serving/custody.py`); none if not `leased`
    AtOnce    both are sent at the same time; the engines meet    blocks that the engines see to themselves
              by what their bodies name                           (`serving/custody_at_once.py`)

Frozen values: a connector makes them, `serving` and the doctor carry them out, and each order asks for no
more methods than it needs.
"""

from typing import Protocol

import msgspec

from proxy.connectors.handoff import Handoff
from proxy.request.body import Body, Encoded
from proxy.request.dialects import Usage


class Pair(msgspec.Struct, frozen=True):
    """The two ends of one attempt."""

    prefill: str
    """`host:port`, as `decode`."""
    decode: str
    prefill_rank: int
    """The data-parallel rank, as `decode_rank`."""
    decode_rank: int
    attempt_id: str
    """An id that no other attempt has, of this request or another."""


class LegsInTurn(Protocol):
    """Bodies of a prefill leg, and of the decode leg that its answer makes possible."""

    def prefill_body(self, first: Body) -> Encoded:
        """The body of the prefill leg. `first`: the client's request for its first token alone, not
        streamed.
        """
        ...

    def read_handoff(self, answer: bytes, usage: Usage) -> Handoff:
        """Read the answer of a prefill leg, whose usage is known. Raises ValueError if the decode leg needs
        more.
        """
        ...

    def decode_body(self, body: Body, handoff: Handoff) -> Encoded:
        """The body of the decode leg: the client's request, and the way to its prefilled blocks."""
        ...

    def fetch_body(self, first: Body, handoff: Handoff) -> Encoded | None:
        """The body of a leg that only brings the blocks to the decode instance; None where there are none to
        fetch. `first`: as for `prefill_body`.

        The leg goes before the decode leg of a request for several sequences: without it each of them would
        fetch the blocks.
        """
        ...

    def release_body(self, least: Body, handoff: Handoff) -> bytes | None:
        """The body with which a decode engine gives a hold back; None where nothing is held.

        `least`: the smallest request of the route that it is sent to.
        """
        ...


class LegsAtOnce(Protocol):
    """Bodies of two legs that are sent at the same time to a pair, which both may name."""

    def request_id(self, pair: Pair) -> str:
        """The request id of both legs: `pair.attempt_id`, except where engines find each other by what it
        says.
        """
        ...

    def prefill_body(self, first: Body, pair: Pair) -> Encoded:
        """The body of the prefill leg. `first`: the client's request for its first token alone, not
        streamed.
        """
        ...

    def decode_body(self, body: Body, pair: Pair) -> Encoded:
        """The body of the decode leg: the client's request, and where its KV comes from."""
        ...

    def read_handoff(self, answer: bytes, usage: Usage) -> Handoff:
        """Read the answer of a prefill leg for metrics. Raises ValueError if it is no such answer: then the
        attempt has failed.
        """
        ...


class Whole(msgspec.Struct, frozen=True):
    """One instance serves the whole request, because this connector cannot split it."""

    @property
    def one_prompt(self) -> bool:
        """Whether a leg may hold one prompt only."""
        return False


class InTurn(msgspec.Struct, frozen=True):
    """The prefill leg goes first, and the decode leg after its answer."""

    legs: LegsInTurn
    leased: bool
    """Whether a finished prefill leg leaves blocks held on its instance, until they are fetched or their
    lease ends."""

    @property
    def one_prompt(self) -> bool:
        """Whether a leg may hold one prompt only: an answer names the held blocks of one."""
        return self.leased


class AtOnce(msgspec.Struct, frozen=True):
    """Both legs go at the same time, to the chosen pair.

    A leg that fails ends the other; the next attempt has a pair and an id of its own. Nothing can be given
    back, so a connector plans this only if its engines free by themselves what is not fetched.
    """

    legs: LegsAtOnce

    @property
    def one_prompt(self) -> bool:
        """Whether a leg may hold one prompt only: the engines meet by one id."""
        return True


Plan = Whole | InTurn | AtOnce
