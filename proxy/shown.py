"""Each answer that shows the state of kvproxy is a struct whose fields say what they are; `/openapi.json` is
made of these structs.

A room defines what it shows beside the code that it shows (`QueueShown` in `admission`); `edge/shown` puts
the parts together. The schema of `QueueShown` is called `Queue`. Members are served in the order of the
fields, and each is always there unless its type says otherwise (`msgspec.UnsetType`).
"""

from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

SUFFIX = "Shown"
"""The ending of the names of such structs."""


class Shown(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An object in an answer to operators."""


def says(text: str) -> Meta:
    """The description of a field, with its unit if the name does not have it; Markdown."""
    return Meta(description=text)


Count: TypeAlias = Annotated[int, Meta(ge=0)]
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0)]
Address: TypeAlias = Annotated[str, says("`host:port`, the instance's name everywhere.")]


def as_builtins(shown: Shown) -> dict[str, Any]:
    """A struct as the dicts, lists, strings and numbers that JSON is made of."""
    built: dict[str, Any] = msgspec.to_builtins(shown)
    return built
