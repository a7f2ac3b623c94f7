"""Pure: which engines cannot hand KV to each other, by the releases they tell, and which to upgrade
together.
"""

from collections.abc import Iterable, Sequence
from itertools import product

from proxy.connectors.nixl_versions import METADATA_VERSIONS, release, shake_hands
from proxy.doctor.facts import EngineFacts
from proxy.doctor.findings import Finding, failed, warned
from proxy.phases import Role

_NAMED = 8  # engines named of one release


def nixl_versions(engines: Sequence[EngineFacts], connector: str) -> list[Finding]:
    """Whether every prefill engine can shake hands with every decode engine; nothing to say where that is
    so.
    """
    if connector != "nixl":
        return []
    telling = [facts for facts in engines if _version(facts) is not None]
    prefill = [facts for facts in telling if facts.spec.role is Role.PREFILL]
    decode = [facts for facts in telling if facts.spec.role is not Role.PREFILL]
    pairs = [(p, d, shake_hands(_version(p) or "", _version(d) or "")) for p, d in product(prefill, decode)]
    if strangers := [facts for p, d, meets in pairs if meets is False for facts in (p, d)]:
        return [
            failed(
                "nixl_versions",
                f"{_groups(strangers)} do not shake hands: no KV moves between them",
                _remedy(engines),
            )
        ]
    doubtful = [
        facts
        for p, d, meets in pairs
        if meets is None and release(_version(p) or "") != release(_version(d) or "")
        for facts in (p, d)
    ]
    if doubtful:
        words = f"{_groups(doubtful)} may not shake hands: no KV moves between engines of different NIXL metadata versions"
        return [warned("nixl_versions", words, _remedy(engines))]
    return []


def _version(facts: EngineFacts) -> str | None:
    return str(facts.version.value) if facts.version is not None and facts.version.ok else None


def _remedy(engines: Sequence[EngineFacts]) -> str:
    told = [
        (release(version), version, facts.address)
        for facts in engines
        if (version := _version(facts)) is not None
    ]
    newest = max(told, key=lambda one: (one[0] or (0, 0), one[1]))
    older = [address for which, _, address in told if which != newest[0]]
    return f"upgrade together, so that all are of one release: {_listed(older)} to vLLM {newest[1]} as {newest[2]}"


def _groups(engines: Iterable[EngineFacts]) -> str:
    by_version: dict[str, dict[str, None]] = {}
    for facts in engines:
        by_version.setdefault(_version(facts) or "", {})[facts.address] = None
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
