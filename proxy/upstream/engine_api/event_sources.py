"""An engine says at `/kv_event_sources` where its ranks publish their KV events; `caches` decides which of
these addresses are used.

The answer is an object that maps ranks, as text, to endpoints (vLLM 0.32), or an array of endpoints that name
their ranks themselves; one that names none has its place in the array as its rank.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from proxy.fleet import MAX_RANKS
from proxy.upstream.engine_api.asking import Question, UnreadableError, decode

PATH = "/kv_event_sources"

MAX_TOLD_RANKS = 128
"""The most ranks that one engine's answer may name; each takes three descriptors. More must be named with
`?events=`."""

_Rank = Annotated[int, msgspec.Meta(ge=0, lt=MAX_RANKS)]
_Text = Annotated[str, msgspec.Meta(max_length=300)]
_Ranks = msgspec.Meta(max_length=MAX_TOLD_RANKS)


class ToldSource(msgspec.Struct, frozen=True):
    """The endpoints of one rank, word for word as the engine wrote them."""

    endpoint: _Text
    replay_endpoint: _Text | None = None
    topic: _Text | None = None
    data_parallel_rank: _Rank | None = None
    dp_rank: _Rank | None = None
    rank: _Rank | None = None

    @property
    def named_rank(self) -> int | None:
        """The rank that it names, under any of the three names; None if it names none."""
        return next((n for n in (self.data_parallel_rank, self.dp_rank, self.rank) if n is not None), None)


def by_rank(answer: Any) -> Mapping[int, ToldSource]:
    """The sources in a decoded answer, lowest rank first.

    Raises UnreadableError if it is no such answer, or names more than MAX_TOLD_RANKS ranks, a rank of
    MAX_RANKS or more, or a rank twice.
    """
    try:
        found = _numbered(answer) if isinstance(answer, list) else _keyed(answer)
    except msgspec.ValidationError as error:
        raise UnreadableError(f"not an answer of {PATH}: {error}") from None
    return dict(sorted(found.items()))


def _keyed(answer: Any) -> Mapping[int, ToldSource]:
    found: dict[int, ToldSource] = msgspec.convert(
        answer, Annotated[dict[_Rank, ToldSource], _Ranks], strict=False, str_keys=True
    )
    return found


def _numbered(answer: list[Any]) -> Mapping[int, ToldSource]:
    found: dict[int, ToldSource] = {}
    for place, source in enumerate(
        msgspec.convert(answer, Annotated[list[ToldSource], _Ranks], strict=False)
    ):
        rank = place if source.named_rank is None else source.named_rank
        if rank in found:
            raise UnreadableError(f"not an answer of {PATH}: rank {rank} is there twice")
        found[rank] = source
    return found


def _read(data: bytes) -> Any:
    return decode(PATH, data, Any)


EVENT_SOURCES: Question[Any] = Question(PATH, _read)
"""Its answer is any JSON, to be read by `by_rank`: an engine without an answer can so be told from one whose
answer is not understood."""
