"""Instances that were added, drained or removed at run time are so after a restart, unless a flag says
otherwise.

Pure: what is written, what is read, and what follows from it together with the flags. Only differences from
the flags are stored: an instance that a flag names belongs to the flag, and is gone when the flag is.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

from proxy.config import InstanceSpec, as_text, parse_instance
from proxy.errors import ConfigError
from proxy.phases import Role

FORMAT = "kvproxy instances 1"


class MembersError(ValueError):
    """The bytes are no instances that this kvproxy wrote."""


class Present(NamedTuple):
    """An instance that is there, or is to be there after a restart."""

    spec: InstanceSpec
    drained: bool


class _Added(msgspec.Struct, frozen=True):
    instance: str
    """Written as a flag writes it."""
    type: Role
    drained: bool = False


class Members(msgspec.Struct, frozen=True):
    """The differences of the instances from those that the flags name."""

    format: str
    model: str
    added: Sequence[_Added] = ()
    drained: Sequence[str] = ()
    """Addresses of instances that flags name and that get no legs."""
    removed: Sequence[str] = ()
    """Addresses of instances that flags name and that are removed."""


class Restored(NamedTuple):
    """What follows after a restart from what was stored."""

    added: Sequence[Present] = ()
    """Instances besides those that the flags name."""
    drained: frozenset[str] = frozenset()
    """Addresses of instances that flags name and that get no legs."""
    unchanged: Sequence[str] = ()
    """What is as it was before the restart, in words for the log."""
    overruled: Sequence[str] = ()
    """What is not as it was, and why, in words for the log."""


NOTHING = Restored()


def differing(model: str, flags: Sequence[InstanceSpec], present: Iterable[Present]) -> Members:
    """What to store of the instances that are there now."""
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
    """The content of the file, which people can read too."""
    return msgspec.json.format(msgspec.json.encode(members), indent=2) + b"\n"


def decode(data: bytes, model: str) -> Members:
    """The members that `encode` wrote for instances that serve `model`. Raises MembersError."""
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
    """What follows from `members` and the flags; `why_not`: why an instance is not allowed, None if it is."""
    named = {spec.address: spec for spec in flags}
    added: list[Present] = []
    drained = set(members.drained) & named.keys()
    unchanged, overruled = [], []
    for kept in members.added:
        spec = _spec(kept)
        flag = named.get(spec.address)
        if flag is None:
            if (why := why_not(spec)) is not None:
                overruled.append(f"{spec.role} {spec.address} is left out, though it was added before: {why}")
                continue
            added.append(Present(spec, kept.drained))
            state = ", and draining, as it was" if kept.drained else ""
            unchanged.append(
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
    unchanged += [
        f"{spec.role} {address} is draining, as it was before kvproxy was restarted"
        for address, spec in named.items()
        if address in drained
    ]
    overruled += [
        f"{named[address].role} {address} is there, as --{named[address].role} says, though it was removed"
        for address in members.removed
        if address in named
    ]
    return Restored(added, frozenset(drained), unchanged, overruled)
