"""Pure: which pairs are tried, and what was seen of each becomes findings."""

from collections.abc import Sequence

from proxy.config import InstanceSpec
from proxy.doctor.engine_steps import differences, refused_words
from proxy.doctor.facts import Answer, EngineFacts, PairFacts, Trouble
from proxy.doctor.findings import Finding, failed, passed, skipped, warned
from proxy.phases import Role

MAX_PAIRS = 16
"""All pairs of four prefill and four decode instances; beyond that each instance is tried with one other."""

_NIXL = '--kv-transfer-config \'{"kv_connector": "NixlConnector", "kv_role": "%s"}\''


def pairs(specs: Sequence[InstanceSpec]) -> tuple[list[tuple[str, str]], bool]:
    """The pairs of (prefill, decode) to try, and whether they are all there are.

    An instance that does both serves what it prefills itself, so it is a pair's second half only.
    """
    first = [s.address for s in specs if s.role is Role.PREFILL]
    second = [s.address for s in specs if s.role is not Role.PREFILL]
    every = [(p, d) for p in first for d in second]
    if len(every) <= MAX_PAIRS:
        return every, True
    longest = max(len(first), len(second))
    return [(first[n % len(first)], second[n % len(second)]) for n in range(longest)], False


def pairs_tried(tried: Sequence[tuple[str, str]], *, every: bool) -> list[Finding]:
    """What is said of pairs that were left out."""
    if every:
        return []
    return [
        passed("pairs", f"{len(tried)} pairs were tried: each instance with one other, not each with each")
    ]


def roles(specs: Sequence[InstanceSpec], *, decode_alone: bool) -> list[Finding]:
    """What no request can be served without; `decode_alone`: decode instances may serve whole requests."""
    there = {spec.role for spec in specs}
    missing = [role for role in (Role.PREFILL, Role.DECODE) if not there & {role, Role.BOTH}]
    if not missing:
        return []
    report = warned if decode_alone and missing == [Role.PREFILL] else failed
    words = f"there is no {' and no '.join(missing)} instance"
    return [report("roles", words, "add one: POST /instances/add, or the flags of kvproxy serve")]


def why_not(prefill: EngineFacts, decode: EngineFacts, model: str) -> str | None:
    """Why a pair had better not be tried; None if it may.

    A decode engine that is handed fewer blocks than it wants dies of it (vLLM asserts that), so block sizes
    that differ are not tried out.
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


def of_pair(facts: PairFacts, prefill: EngineFacts, decode: EngineFacts, connector: str) -> list[Finding]:
    """All findings of one pair."""
    if facts.unfinished:
        return [failed("hand_over", "time was up before it was done", "give the doctor more time: --timeout")]
    if facts.not_tried == SIZES:
        words = f"block sizes differ: {prefill.block_size} in prefill, {decode.block_size} in decode; not tried, for a decode engine may die of it"
        return [failed("hand_over", words, "start both with the same --block-size")]
    if facts.not_tried is not None:
        return [skipped("hand_over", f"not tried: {facts.not_tried}")]
    return [*_agreement(facts, connector), _hand_over(facts, connector, decode.block_size)]


def _agreement(facts: PairFacts, connector: str) -> list[Finding]:
    """Whether both have the connector that kvproxy was told of, as far as that can be seen."""
    step, answer = "connector", facts.prefill_answer
    if connector != "nixl" or answer is None or not answer.ok:
        return []
    if facts.handoff is None:
        return [
            failed(
                step,
                "the prefill engine answers without kv_transfer_params: it has no NIXL connector",
                f"start it with {_NIXL % 'kv_producer'}; if engines share a store instead, give kvproxy"
                " --connector shared",
            )
        ]
    moved = facts.moved
    if moved is not None and _serves_alone(moved.asked_connector):
        return [
            failed(
                step,
                "the decode engine asks no connector: it ignores the prefilled blocks and computes the prompt itself",
                f"start it with {_NIXL % 'kv_consumer'}",
            )
        ]
    return [passed(step, "both speak NIXL")]


def _serves_alone(asked: float | None) -> bool:
    return asked is not None and asked <= 0


def _hand_over(facts: PairFacts, connector: str, block_size: int | None) -> Finding:
    step = "hand_over"
    for which, answer in (("prefill", facts.prefill_answer), ("decode", facts.decode_answer)):
        if which == "decode" and answer is None and connector == "nixl" and facts.handoff is None:
            return skipped(step, "there is nothing to hand over")
        if answer is None:
            return failed(step, f"the {which} leg was not sent", "look at the engines' logs")
        if not answer.ok:
            return _leg_failed(facts, which, answer)
    took = f"{facts.took_s:.1f} s"
    moved = facts.moved
    if moved is None:
        return warned(
            step,
            "both legs were answered; the decode engine's metrics do not tell whether it computed the prompt",
            "update it to a vLLM with vllm:prompt_tokens_by_source_total (0.32), or look at its log",
        )
    computed = moved.by_source.get("local_compute", 0.0)
    fetched = moved.by_source.get("external_kv_transfer", 0.0)
    others = moved.prompt - facts.prompt_tokens
    if others <= 0:
        # NIXL brings the last, partial block as well; a store has whole ones.
        if fetched > 0 and (connector != "nixl" or computed < (block_size or 1)):
            return passed(
                step,
                f"decode fetched {fetched:.0f} of {facts.prompt_tokens} tokens and computed {computed:.0f}, {took}",
            )
        return _computed_itself(facts, connector, computed, moved.failed_transfers)
    if fetched > 0 and computed < facts.prompt_tokens:
        return passed(step, f"decode did not compute the prompt itself, {took} (others ran there meanwhile)")
    return warned(
        step,
        "both legs were answered; other requests ran on the decode engine, so it cannot be told what it computed",
        "ask again when it is quieter",
    )


def _computed_itself(facts: PairFacts, connector: str, computed: float, failed_transfers: float) -> Finding:
    words = f"the decode engine computed {computed:.0f} of {facts.prompt_tokens} prompt tokens itself"
    if connector != "nixl":
        return failed(
            "hand_over",
            f"{words}: it finds nothing in a store they share",
            "give both engines the same shared store in --kv-transfer-config (one path, one server, both reach it);"
            " for engines with NixlConnector give kvproxy --connector nixl",
        )
    if failed_transfers > 0:
        words = f"{words} after a failed transfer (kv_load_failure_policy is recompute)"
    return failed("hand_over", words, _REACH)


_REACH = (
    "let the decode engine reach the prefill engine's side channel: VLLM_NIXL_SIDE_CHANNEL_HOST must be an address that it can"
    " reach, VLLM_NIXL_SIDE_CHANNEL_PORT open; same vLLM version, model, --dtype, --kv-cache-dtype and --block-size on both"
)


def _leg_failed(facts: PairFacts, which: str, answer: Answer) -> Finding:
    at = facts.prefill if which == "prefill" else facts.decode
    stays = "; its blocks stay held until their lease ends" if facts.hold_end == "stranded" else ""
    words = f"the {which} leg failed: {refused_words(answer)}{stays}"
    if answer.trouble is Trouble.STATUS and which == "prefill":
        return failed("hand_over", words, f"look at the log of {at}")
    if which == "decode" and answer.status is not None and 400 <= answer.status < 500:
        return failed("hand_over", words, "start both with the same model files and the same --max-model-len")
    if which == "decode":
        return failed("hand_over", words, _REACH)
    return failed("hand_over", words, f"look at the log of {at}; restart it if it hangs")


def engines_agree(engines: Sequence[EngineFacts]) -> list[Finding]:
    """Whether all engines render prompts alike: a prompt is tokenized once for all of them."""
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
                    f"{facts.address} renders {', '.join(off)} prompts otherwise than {reference.address} ({kind}, token"
                    f" {found.at}: {found.theirs} there, {found.ours} at the other)",
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
    """Whether all engines take requests of the same length: a longer one has fewer that it can go to."""
    step = "context_lengths"
    told = {facts.address: length for facts in engines if (length := facts.max_model_len(model)) is not None}
    if len(told) < 2:
        return []
    if len(set(told.values())) == 1:
        return [passed(step, f"{next(iter(told.values()))} tokens on all {len(told)} engines")]
    by_length: dict[int, list[str]] = {}
    for address, length in told.items():
        by_length.setdefault(length, []).append(address)
    words = "; ".join(f"{length} tokens: {', '.join(by_length[length])}" for length in sorted(by_length))
    return [
        warned(
            step,
            f"they differ, so long requests have fewer engines to go to ({words})",
            "start all engines of a model with the same --max-model-len, unless some are meant for short requests only",
        )
    ]
