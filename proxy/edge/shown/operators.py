"""The requests and answers of /instances/*, and the answer to /v1/load_lora_adapter and its opposite."""

from typing import Annotated

import msgspec

from proxy.phases import Role
from proxy.shown import Address, Count, Shown
from proxy.watching.adapters import EngineAnswer


class Change(msgspec.Struct, forbid_unknown_fields=True):
    """A request about one instance."""

    instance: Address
    type: Role | None = None


class Add(Change, kw_only=True, forbid_unknown_fields=True):
    """`POST /instances/add`."""

    type: Role


class Drain(Change, forbid_unknown_fields=True):
    """`POST /instances/drain`."""

    undo: bool = False


class Remove(Change, forbid_unknown_fields=True):
    """`POST /instances/remove`."""

    force: bool = False


class Changed(Shown, frozen=True, kw_only=True):
    """What became of an instance."""

    message: str
    instance: Address
    type: Role
    running_legs: Count


class AdaptersTold(Shown, frozen=True, kw_only=True):
    """What every engine answered."""

    message: str
    engines: Annotated[list[EngineAnswer], msgspec.Meta(description="All there are, in no order.")]
