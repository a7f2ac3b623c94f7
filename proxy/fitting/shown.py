"""What was fitted, in words."""

from collections.abc import Mapping, Sequence

from proxy.fitting.outcome import Outcome
from proxy.fitting.seen import Seen

KINDS = {
    "prefill": ("prompts", ("a", "b", "c", "overhead")),
    "step": ("decode steps", ("s0", "s1", "s2")),
    "transfer": ("transfers", ("transfer", "transfer_per_token", "handshake")),
}


def source_of(day: str, model: str, versions: Mapping[str, str], unknown: Sequence[str] = ()) -> str:
    """The sentence for a profile. `versions`: of each engine; `unknown`: as `Outcome.unknown`."""
    which = ", ".join(sorted(set(versions.values())))
    engines = "1 engine" if len(versions) == 1 else f"{len(versions)} engines"
    source = f"kvproxy fit on {day}, by probing {engines} (vLLM {which}) that serve {model}"
    if unknown:
        called = ", ".join(f"{KINDS[kind][0]} ({', '.join(KINDS[kind][1])})" for kind in unknown)
        source += f"; not measured, as of any engine: {called}"
    return source


def words_of(outcome: Outcome, seen: Seen) -> str:
    """What was fitted, how good it is, and what it cost."""
    profile = outcome.profile
    errors = {error.kind: error for error in outcome.errors}
    lines = []
    for kind, (called, names) in KINDS.items():
        figures = ", ".join(f"{name} {getattr(profile, name):.4g}" for name in names)
        if kind in outcome.unknown:
            lines.append(f"{called}: not measured, as of any engine ({figures})")
            continue
        lines.append(f"{called}: {figures} ms")
        if (error := errors.get(kind)) is not None:
            lines.append(
                f"  off by {error.p50:.1%} (median), {error.p90:.1%} (p90) of {error.probes} probes that were"
                " held out"
            )
    for address, factor in outcome.factors.items():
        lines.append(f"{address} takes {factor:.2f} times as long as most")
    lines += [f"left out: {words}" for words in _counted(seen.left_out)]
    spent = seen.spent
    lines.append(
        f"it took {spent.seconds:.0f} s, {spent.requests} requests, {spent.prompt_tokens} tokens of prompts"
        f" and {spent.generated_tokens} generated"
    )
    return "\n".join(lines)


def _counted(words: Sequence[str]) -> list[str]:
    return [
        f"{each} ({count} times)" if (count := words.count(each)) > 1 else each
        for each in dict.fromkeys(words)
    ]
