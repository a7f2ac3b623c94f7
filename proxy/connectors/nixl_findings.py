"""The doctor's findings where KV moves over NIXL: about a pair, and about the releases of a fleet. Pure."""

from collections.abc import Iterable, Sequence
from itertools import product

from proxy.connectors import hand_over
from proxy.connectors.nixl_versions import METADATA_VERSIONS, release, shake_hands
from proxy.connectors.seen import SeenEngine, TriedPair
from proxy.findings import Finding, failed, passed, skipped, warned
from proxy.phases import Role

_NAMED = 8  # engines of one release that a finding names

_NIXL = '--kv-transfer-config \'{"kv_connector": "NixlConnector", "kv_role": "%s"}\''

_REACH = (
    "let the decode engine reach the prefill engine's side channel: VLLM_NIXL_SIDE_CHANNEL_HOST must be an "
    "address that it can reach, VLLM_NIXL_SIDE_CHANNEL_PORT open; same vLLM version, model, --dtype, "
    "--kv-cache-dtype and --block-size on both"
)


def of_pair(tried: TriedPair) -> list[Finding]:
    """Whether both engines have the connector, as far as that can be seen, and whether KV went over."""
    return [*_agreement(tried), _hand_over(tried)]


def _agreement(tried: TriedPair) -> list[Finding]:
    step, prefill, moved = "connector", tried.prefill_leg, tried.moved
    if prefill is None or not prefill.ok:
        return []
    if tried.handoff is None:
        return [
            failed(
                step,
                "the prefill engine answers without kv_transfer_params: it has no NIXL connector",
                f"start it with {_NIXL % 'kv_producer'}; if engines share a store instead, give kvproxy"
                " --connector shared",
            )
        ]
    if moved is not None and moved.asked_connector is not None and moved.asked_connector <= 0:
        return [
            failed(
                step,
                (
                    "the decode engine asks no connector: it ignores the prefilled blocks and computes the "
                    "prompt itself"
                ),
                f"start it with {_NIXL % 'kv_consumer'}",
            )
        ]
    return [passed(step, "both speak NIXL")]


def _hand_over(tried: TriedPair) -> Finding:
    prefill, moved = tried.prefill_leg, tried.moved
    if prefill is not None and prefill.ok and tried.handoff is None and tried.decode_leg is None:
        return skipped(hand_over.STEP, "there is nothing to hand over")
    failed_one = moved is not None and moved.failed_transfers > 0
    why = " after a failed transfer (kv_load_failure_policy is recompute)" if failed_one else ""
    return hand_over.judged(tried, unreachable=_REACH, itself=(why, _REACH), partial_block_too=True)


def of_releases(engines: Sequence[SeenEngine]) -> list[Finding]:
    """Whether every prefill engine can shake hands with every decode engine; no finding if so."""
    telling = [engine for engine in engines if engine.version is not None]
    prefill = [engine for engine in telling if engine.role is Role.PREFILL]
    decode = [engine for engine in telling if engine.role is not Role.PREFILL]
    pairs = [(p, d, shake_hands(p.version or "", d.version or "")) for p, d in product(prefill, decode)]
    if strangers := [engine for p, d, meets in pairs if meets is False for engine in (p, d)]:
        return [
            failed(
                "nixl_versions",
                f"{_groups(strangers)} do not shake hands: no KV moves between them",
                _remedy(telling),
            )
        ]
    doubtful = [
        engine
        for p, d, meets in pairs
        if meets is None and release(p.version or "") != release(d.version or "")
        for engine in (p, d)
    ]
    if doubtful:
        words = (
            f"{_groups(doubtful)} may not shake hands: no KV moves between engines of different NIXL "
            "metadata versions"
        )
        return [warned("nixl_versions", words, _remedy(telling))]
    return []


def _remedy(telling: Sequence[SeenEngine]) -> str:
    releases = [(release(engine.version or ""), engine.version or "", engine.address) for engine in telling]
    newest = max(releases, key=lambda one: (one[0] or (0, 0), one[1]))
    older = [address for which, _, address in releases if which != newest[0]]
    return (
        f"upgrade together, so that all are of one release: {_listed(older)} to vLLM {newest[1]} as "
        f"{newest[2]}"
    )


def _groups(engines: Iterable[SeenEngine]) -> str:
    by_version: dict[str, dict[str, None]] = {}
    for engine in engines:
        by_version.setdefault(engine.version or "", {})[engine.address] = None
    return " and ".join(
        f"{_listed(list(addresses))} (vLLM {version}{_metadata(version)})"
        for version, addresses in sorted(by_version.items())
    )


def _metadata(version: str) -> str:
    number = METADATA_VERSIONS.get(release(version) or (0, 0))
    return f", NIXL metadata version {number}" if number is not None else ""


def _listed(addresses: Sequence[str]) -> str:
    more = f" and {len(addresses) - _NAMED} more" if len(addresses) > _NAMED else ""
    return ", ".join(addresses[:_NAMED]) + more
