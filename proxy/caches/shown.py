"""What `/status` shows of how often the index was right."""

from typing import Annotated

from msgspec import Meta

from proxy.shown import Count, Share, Shown, says


class LegsShown(Shown, frozen=True, kw_only=True):
    """Legs by what the engine reported beside what the index had said."""

    legs: Count
    exact: Count
    over: Annotated[Count, says("The index promised more than the engine found.")]
    under: Annotated[Count, says("The engine found more than the index promised.")]
    unreported: Annotated[Count, says("The engine does not tell, or tells in a stream.")]
    exact_share: Annotated[
        Share | None, says("Of the legs that were compared; null if there were none: not sampled.")
    ]
    mean_error_blocks: Annotated[Annotated[float, Meta(ge=0)] | None, says("Null if no leg was compared.")]


class MissesShown(Shown, frozen=True, kw_only=True):
    """Why predictions missed; a miss is judged some seconds after its leg."""

    tokens: Annotated[Count, says("The engine's prompt was not the one kvproxy had tokenized.")]
    race: Annotated[Count, says("The cache changed meanwhile, or its events were on their way.")]
    upper_bound: Annotated[Count, says("The engine does not reuse all it has cached.")]
    index: Annotated[Count, says("Nothing else explains it: the index was wrong.")]


class AccuracyShown(LegsShown, frozen=True, kw_only=True):
    """Prefill legs since the instance was added: cached blocks as the index said, beside those the engine
    reported. Legs decided on an exact index, unless said otherwise.
    """

    misses: MissesShown
    not_exact: Annotated[LegsShown, says("Legs decided on a partial or unknown index.")]
    trusted: Annotated[
        bool,
        says(
            "False while the index has been found wrong: until it is built anew the rank is chosen by load "
            "alone."
        ),
    ]
