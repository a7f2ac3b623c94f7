"""The series of legs, of retries, and of the blocks that legs hand over."""

from collections.abc import Mapping

from proxy.happenings import (
    BlocksLearnt,
    Bypassed,
    CountsDiffered,
    EngineFull,
    HoldEnded,
    LegEnded,
    LegsDecided,
    PromptUnknown,
    ReportAsked,
    Retried,
    RetryRefused,
)
from proxy.observability.family import Group
from proxy.observability.series import counter, histogram
from proxy.phases import Phase
from proxy.scheduling.bypass import Bypass
from proxy.serving.custody import HoldState
from proxy.serving.legs.leg import Reason

HOLD_ENDS: Mapping[str, str] = {
    HoldState.PULLED: "the decode engine has them",
    HoldState.RELEASED: "given back unread",
    HoldState.STRANDED: "could not be given back: held until their lease ends",
    HoldState.UNKNOWN: (
        "a prefill leg ended without an answer, so its engine freed the blocks at once unless it had just"
        " finished"
    ),
}
"""How holds end, by `HoldState`; a `failed` one held nothing and is not counted."""

OVERHEAD_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


def _answered(leg: LegEnded) -> bool:
    return leg.phase is Phase.PREFILL and leg.answered


def _prefilled(leg: LegEnded) -> bool:
    return leg.phase is Phase.PREFILL and leg.outcome == "served"


LEGS = (
    histogram(
        "overhead_seconds",
        "kvproxy's own time before the first leg, tokenizing included.",
        LegsDecided,
        buckets=OVERHEAD_SECONDS,
    ),
    histogram(
        "prefill_leg_duration_seconds",
        "From sending a prefill leg to its answer.",
        LegEnded,
        per_instance=True,
        only=_answered,
    ),
    counter(
        "prompt_tokens",
        "Prompt tokens of finished prefill legs.",
        LegEnded,
        amount="prompt_tokens",
        per_instance=True,
        only=_prefilled,
    ),
    counter(
        "predicted_cached_tokens",
        "Cached tokens the index promised for finished prefill legs.",
        LegEnded,
        amount="predicted",
        per_instance=True,
        only=_prefilled,
    ),
    counter(
        "reported_cached_tokens",
        "Cached tokens the engine reported for finished prefill legs.",
        LegEnded,
        amount="reported",
        per_instance=True,
        only=_prefilled,
    ),
    counter(
        "unknown_prompts",
        "Prompts whose tokens were looked for and not known.",
        PromptUnknown,
        "reason",
        more="Such a prompt is placed by load. `reason` is `why_unknown` of `/explain`: [Tokens](tokens.md).",
    ),
    counter(
        "token_count_differences",
        "Prompts the engine counted otherwise than we did.",
        CountsDiffered,
        per_instance=True,
        more="Prompts of [that kind](failures.md#when-predictions-are-wrong) are unknown for a while.",
    ),
    counter(
        "retries",
        "Legs that failed and were followed by another attempt.",
        Retried,
        "phase",
        "reason",
        per_instance=True,
        words={
            "reason": {
                Reason.CONNECT: "no connection came about",
                Reason.BROKEN: "the connection ended early, or the engine was given up",
                Reason.DEADLINE: "a phase took too long",
                Reason.STATUS: "5xx",
                Reason.FULL: "503 or 429",
                Reason.NOT_HERE: "404 for a model that others list",
                Reason.OTHER: "",
            }
        },
    ),
    counter(
        "retries_refused",
        "Legs that failed and were not tried again for want of retry budget.",
        RetryRefused,
        "phase",
        starts_with=Phase,
    ),
    counter(
        "bypassed_requests",
        "Requests that a decode instance was given whole, though they could have had two legs.",
        Bypassed,
        "reason",
        per_instance=True,
        words={
            "reason": {
                Bypass.SHORT: "the prompt has no more tokens than `--bypass` says",
                Bypass.CACHED: "no more than that are not cached there",
                Bypass.POLICY: "the policy found it cheaper",
                Bypass.NO_PREFILL: "no prefill instance was usable, with `--when-no-prefill decode`",
            }
        },
        more="[How that is decided](policies.md#one-leg-instead-of-two). Each prompt of a list counts, and"
        " each attempt.",
    ),
    counter(
        "engine_full",
        "Legs that engines had no room for.",
        EngineFull,
        "phase",
        per_instance=True,
        more="[They answered 503 or 429](overload.md#engines-that-are-full).",
    ),
    counter(
        "holds",
        "Prefilled blocks held for a decode leg, by how that ended.",
        HoldEnded,
        "end",
        starts_with=HOLD_ENDS,
        words={"end": HOLD_ENDS},
    ),
    counter(
        "cache_reports",
        "Prefill legs that asked for a full report of the cache.",
        ReportAsked,
        per_instance=True,
        more="They ask ranks with a [partial index](failures.md#a-partial-index).",
    ),
    counter(
        "learnt_blocks",
        "Blocks that full reports made known.",
        BlocksLearnt,
        amount="blocks",
        per_instance=True,
    ),
)

ON_THE_PAGE = Group("Legs and handed-over blocks", tuple(series.family for series in LEGS))
