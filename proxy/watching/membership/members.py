"""Who was added, drained or removed while kvproxy ran is so after a restart, unless a flag says otherwise.

Pure: what is written, what is read, and what becomes of it beside the flags. Only what differs from the flags
is kept: an instance that a flag names stays one of the flags', and goes with its flag.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

from proxy.config import InstanceSpec, as_text, parse_instance
from proxy.errors import ConfigError
from proxy.phases import Role

FORMAT = "kvproxy instances 1"


class MembersError(ValueError):
    """What was read are no instances that this kvproxy wrote."""


class Present(NamedTuple):
    """An instance that is there now, or is to be there."""

    spec: InstanceSpec
    drained: bool


class _Added(msgspec.Struct, frozen=True):
    instance: str
    """As flags name it."""
    type: Role
    drained: bool = False


class Members(msgspec.Struct, frozen=True):
    """How the instances differ from those that the flags name."""

    format: str
    model: str
    added: Sequence[_Added] = ()
    drained: Sequence[str] = ()
    """Addresses of instances that flags name."""
    removed: Sequence[str] = ()
    """Likewise."""


class Restored(NamedTuple):
    """What becomes of what was kept."""

    added: Sequence[Present] = ()
    """Instances besides those that the flags name."""
    drained: frozenset[str] = frozenset()
    """Addresses of those that the flags name and that get no legs."""
    told: Sequence[str] = ()
    """What is as it was, in words for the log."""
    overruled: Sequence[str] = ()
    """What is not, and why."""


NOTHING = Restored()


def differing(model: str, flags: Sequence[InstanceSpec], present: Iterable[Present]) -> Members:
    """What to keep of the instances that are there now."""
    named = {spec.address: spec for spec in flags}
    there = {each.spec.address: each for each in present}
    return Members(
        FORMAT,
        model,
        added=[
            _Added(as_text(spec), spec.role, drained)
            for spec, drained in there.values()
            if named.get(spec.address) != spec
        ],
        drained=[a for a, spec in named.items() if a in there and there[a] == Present(spec, drained=True)],
        removed=[address for address in named if address not in there],
    )


def encode(members: Members) -> bytes:
    """For the file, and for people who look at it."""
    return msgspec.json.format(msgspec.json.encode(members), indent=2) + b"\n"


def decode(data: bytes, model: str) -> Members:
    """What `encode` made of instances that serve `model`. Raises MembersError."""
    try:
        members = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MembersError(f"it cannot be read ({error})") from None
    if members.format != FORMAT:
        raise MembersError("it is of another version")
    if members.model != model:
        raise MembersError(f"its instances serve {members.model!r}, not {model!r} (--model)")
    addresses = [_spec(added).address for added in members.added]
    if len(set(addresses)) < len(addresses):
        raise MembersError("it names an instance twice")
    return members


_decode = msgspec.json.Decoder(Members).decode


def _spec(added: _Added) -> InstanceSpec:
    try:
        return parse_instance(added.instance, added.type, origin="instance")
    except ConfigError as error:
        raise MembersError(str(error)) from None


def beside(
    members: Members, flags: Sequence[InstanceSpec], why_not: Callable[[InstanceSpec], str | None]
) -> Restored:
    """What becomes of what was kept beside the flags; `why_not` says what is not allowed of an instance."""
    named = {spec.address: spec for spec in flags}
    added: list[Present] = []
    drained = set(members.drained) & named.keys()
    told, overruled = [], []
    for kept in members.added:
        spec = _spec(kept)
        flag = named.get(spec.address)
        if flag is None:
            if (why := why_not(spec)) is not None:
                overruled.append(f"{spec.role} {spec.address} is left out, though it was added before: {why}")
                continue
            added.append(Present(spec, kept.drained))
            state = ", and draining, as it was" if kept.drained else ""
            told.append(
                f"{spec.role} {spec.address} is there{state}: it was added before kvproxy was restarted"
            )
            continue
        if kept.drained:
            drained.add(spec.address)
        if flag.role is not spec.role:
            overruled.append(
                f"{spec.address} is a {flag.role} instance, as --{flag.role} says, though it was added as "
                f"{spec.role}"
            )
        elif flag != spec:
            overruled.append(
                f"{flag.role} {spec.address} is reached as --{flag.role} says, not as it was added"
            )
    told += [
        f"{spec.role} {address} is draining, as it was before kvproxy was restarted"
        for address, spec in named.items()
        if address in drained
    ]
    overruled += [
        f"{named[address].role} {address} is there, as --{named[address].role} says, though it was removed"
        for address in members.removed
        if address in named
    ]
    return Restored(added, frozenset(drained), told, overruled)
