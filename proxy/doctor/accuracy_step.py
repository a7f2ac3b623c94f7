"""What the running service learned of its own predictions becomes a finding. Pure."""

import msgspec

from proxy.caches.shown import AccuracyShown
from proxy.findings import Finding, failed, passed, warned

FEW_LEGS = 20
"""With fewer legs than this nothing is said of predictions."""

EXACT_ENOUGH = 0.95
"""The smallest share of exact predictions that passes: a busy engine evicts some blocks between a decision
and the leg's arrival."""

_CAUSES = {
    "tokens": "see tokenizer and engines_agree: it counts prompts otherwise than they were tokenized",
    "race": "its cache is too small for its load, blocks are evicted before their prompts come: give it "
    "more KV cache (--gpu-memory-utilization), or less at once (--max-prefill-tokens)",
    "upper_bound": "nothing: caches of hybrid models are known as an upper bound only",
    "index": "see replay, wire_format and cached_tokens; a smaller share soon after a start heals by itself",
}


def accuracy(shown: AccuracyShown) -> Finding:
    """The finding about the running service's own predictions."""
    step, legs, share = "accuracy", shown.legs, shown.exact_share
    causes = {cause: count for cause, count in msgspec.structs.asdict(shown.misses).items() if count}
    worst = max(causes, key=lambda cause: causes[cause], default="index")
    listed = ", ".join(f"{count} {cause.replace('_', ' ')}" for cause, count in causes.items())
    if not shown.trusted:
        return failed(
            step,
            (
                f"predictions for requests were wrong ({listed}): it is placed by load alone until they are "
                "right again"
            ),
            _CAUSES[worst],
        )
    if share is None:
        return passed(
            step, "not sampled: no request has been compared" if not legs else f"{legs} legs, none reported"
        )
    words = f"{share:.1%} of {legs} predictions for requests were exact"
    if legs < FEW_LEGS or share >= EXACT_ENOUGH:
        return passed(step, words)
    return warned(step, f"{words} ({listed})", _CAUSES[worst])
