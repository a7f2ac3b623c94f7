"""Which pairs are tried, and the findings about each. Pure."""

from collections.abc import Sequence

from proxy.config import InstanceSpec
from proxy.connectors import Connector
from proxy.connectors.seen import LegEnd, SeenEngine, TriedPair
from proxy.doctor.engine_steps import differences, refused_words
from proxy.doctor.facts import Answer, EngineFacts, PairFacts
from proxy.findings import Finding, failed, passed, skipped, warned
from proxy.phases import Role
from proxy.serving.custody import HoldState

MAX_PAIRS = 16
"""The most pairs that are tried: all of four prefill and four decode instances. With more, each instance is
tried with one other."""


def pairs(specs: Sequence[InstanceSpec]) -> tuple[list[tuple[str, str]], bool]:
    """The pairs of (prefill, decode) to try, and whether these are all pairs.

    An instance that does both serves alone what it prefills, so it is only the second half of a pair.
    """
    first = [s.address for s in specs if s.role is Role.PREFILL]
    second = [s.address for s in specs if s.role is not Role.PREFILL]
    every = [(p, d) for p in first for d in second]
    if len(every) <= MAX_PAIRS:
        return every, True
    longest = max(len(first), len(second))
    return [(first[n % len(first)], second[n % len(second)]) for n in range(longest)], False


def pairs_tried(tried: Sequence[tuple[str, str]], *, every: bool) -> list[Finding]:
    """The finding about pairs that were left out."""
    if every:
        return []
    return [
        passed("pairs", f"{len(tried)} pairs were tried: each instance with one other, not each with each")
    ]


def roles(specs: Sequence[InstanceSpec], *, decode_alone: bool) -> list[Finding]:
    """The finding about roles that are missing; `decode_alone`: decode instances may serve whole requests."""
    there = {spec.role for spec in specs}
    missing = [role for role in (Role.PREFILL, Role.DECODE) if not there & {role, Role.BOTH}]
    if not missing:
        return []
    report = warned if decode_alone and missing == [Role.PREFILL] else failed
    words = f"there is no {' and no '.join(missing)} instance"
    return [report("roles", words, "add one: POST /instances/add, or the flags of kvproxy serve")]


def why_not(prefill: EngineFacts, decode: EngineFacts, model: str) -> str | None:
    """Why a pair must not be tried; None if it may.

    A decode engine that gets fewer blocks than it wants dies of it (an assertion in vLLM), so a pair with
    different block sizes is not tried.
    """
    for facts in (prefill, decode):
        if facts.health is None or not facts.health.ok or not facts.serves(model):
            return f"{facts.address} does not serve"
        if facts.asleep:
            return f"{facts.address} sleeps"
    for facts in (prefill, decode):
        if not any(rank.served for rank in facts.ranks):
            return f"{facts.address} did not serve its probe"
    if prefill.block_size is None or decode.block_size is None:
        return "their block sizes are not known, and a decode engine with another one may die of it"
    if prefill.block_size != decode.block_size:
        return SIZES
    return None


SIZES = "their block sizes differ"


def of_pair(
    facts: PairFacts, prefill: EngineFacts, decode: EngineFacts, connector: Connector
) -> list[Finding]:
    """All findings about one pair; those about the hand-over are the connector's."""
    if facts.unfinished:
        return [failed("hand_over", "time was up before it was done", "give the doctor more time: --timeout")]
    if facts.not_tried == SIZES:
        words = (
            f"block sizes differ: {prefill.block_size} in prefill, {decode.block_size} in decode; not "
            "tried, for a decode engine may die of it"
        )
        return [failed("hand_over", words, "start both with the same --block-size")]
    if facts.not_tried is not None:
        return [skipped("hand_over", f"not tried: {facts.not_tried}")]
    tried = TriedPair(
        facts.prefill,
        facts.decode,
        facts.prompt_tokens,
        prefill_leg=_end(facts.prefill_answer),
        decode_leg=_end(facts.decode_answer),
        handoff=facts.handoff,
        moved=facts.moved,
        took_s=facts.took_s,
        block_size=decode.block_size,
        stranded=facts.hold_end == HoldState.STRANDED.value,
    )
    return connector.judge_pair(tried)


def _end(answer: Answer | None) -> LegEnd | None:
    if answer is None:
        return None
    return LegEnd() if answer.ok else LegEnd(refused_words(answer), answer.status)


def of_fleet(engines: Sequence[EngineFacts], connector: Connector) -> list[Finding]:
    """The connector's findings about all engines together."""
    return connector.judge_fleet(
        [SeenEngine(facts.address, facts.spec.role, _version(facts)) for facts in engines]
    )


def _version(facts: EngineFacts) -> str | None:
    return str(facts.version.value) if facts.version is not None and facts.version.ok else None


def engines_agree(engines: Sequence[EngineFacts]) -> list[Finding]:
    """Whether all engines render prompts in the same way: a prompt is tokenized once for all of them."""
    step = "engines_agree"
    telling = [facts for facts in engines if facts.tokenized is not None]
    if len(telling) < 2:
        return []
    reference = telling[0]
    findings = []
    for facts in telling[1:]:
        off = differences(reference.tokenized or {}, facts.tokenized or {})
        if off:
            kind, found = next(iter(off.items()))
            findings.append(
                failed(
                    step,
                    f"{facts.address} renders {', '.join(off)} prompts otherwise than {reference.address} "
                    f"({kind}, token {found.at}: {found.theirs} there, {found.ours} at the other)",
                    "start all engines with the same model files, --tokenizer, --chat-template and"
                    " --default-chat-template-kwargs",
                )
            )
    versions = {facts.version.value for facts in engines if facts.version is not None and facts.version.ok}
    if len(versions) > 1:
        findings.append(
            warned(
                step,
                f"they are of different versions: {', '.join(sorted(versions))}",
                "run one version of vLLM on all: KV transfer between versions is not promised",
            )
        )
    return findings or [passed(step, f"{len(telling)} engines tokenize alike")]


def context_lengths(engines: Sequence[EngineFacts], model: str) -> list[Finding]:
    """Whether all engines take requests of the same length: long ones can go to fewer of them otherwise."""
    step = "context_lengths"
    lengths = {
        facts.address: length for facts in engines if (length := facts.max_model_len(model)) is not None
    }
    if len(lengths) < 2:
        return []
    if len(set(lengths.values())) == 1:
        return [passed(step, f"{next(iter(lengths.values()))} tokens on all {len(lengths)} engines")]
    by_length: dict[int, list[str]] = {}
    for address, length in lengths.items():
        by_length.setdefault(length, []).append(address)
    words = "; ".join(f"{length} tokens: {', '.join(by_length[length])}" for length in sorted(by_length))
    return [
        warned(
            step,
            f"they differ, so long requests have fewer engines to go to ({words})",
            (
                "start all engines of a model with the same --max-model-len, unless some are meant for "
                "short requests only"
            ),
        )
    ]
