"""What `/status` shows of how long engines take."""

from collections.abc import Sequence
from typing import Annotated

from proxy.latency.model import Fitted
from proxy.shown import Count, Shown, says

DIGITS = 6
"""Figures have so many; no coefficient is known better."""


class FittedShown(Shown, frozen=True, kw_only=True):
    """How one kind of work is predicted, of instances of one role or of the pairs that end on them."""

    kind: Annotated[str, says("`prefill`, `step` (of decode) or `transfer`.")]
    role: str
    coefficients: Annotated[
        dict[str, float], says("In ms, and in ms a token; [what they mean](latency.md). Of most instances.")
    ]
    observations: Annotated[Count, says("How many it was learned from, earlier processes' included.")]
    error_p50: Annotated[
        float | None,
        says(
            "|predicted - observed| / observed that half of the last 512 predictions did not exceed; null if"
            " none was observed since the start."
        ),
    ]
    error_p90: Annotated[float | None, says("The same of nine tenths of them.")]
    factors: Annotated[
        dict[str, float],
        says(
            "How many times as long as most each instance takes; of transfers only the pairs that differ,"
            " named `prefill -> decode`."
        ),
    ]


class LatencyShown(Shown, frozen=True, kw_only=True):
    """What is believed of the engines' speed."""

    profile: Annotated[str, says("--latency-profile: what was believed before anything was learned.")]
    restored: Annotated[
        bool, says("What an earlier process had learned was read from --state-dir as this one began.")
    ]
    fitted: Annotated[list[FittedShown], says("All that was learned; empty at first.")]


def latency_shown(fitted: Sequence[Fitted], profile: str, *, restored: bool) -> LatencyShown:
    """`fitted`: as `LatencyModel.fitted` has it."""
    return LatencyShown(
        profile=profile,
        restored=restored,
        fitted=[
            FittedShown(
                kind=each.kind,
                role=each.role,
                coefficients={name: _rounded(value) for name, value in each.coefficients.items()},
                observations=each.observations,
                error_p50=None if each.error_p50 is None else _rounded(each.error_p50),
                error_p90=None if each.error_p90 is None else _rounded(each.error_p90),
                factors={
                    name: _rounded(factor)
                    for name, factor in each.factors.items()
                    if each.kind != "transfer" or factor != 1
                },
            )
            for each in fitted
        ],
    )


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
