"""What kvproxy shows of itself is a struct each of whose fields says what it is; `/openapi.json` is made of
them.

A room defines what it shows beside what it shows it of (`QueueShown` in `admission`); `edge.shown` puts the
parts together. The schema of `QueueShown` is called `Queue`. Members are served in the order of the fields,
and each is there always unless its type says otherwise (`msgspec.UnsetType`).
"""

from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

SUFFIX = "Shown"
"""What the names of such structs end with."""


class Shown(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An object in an answer to operators."""


def says(text: str) -> Meta:
    """What a field is, and in which unit where its name does not say that; Markdown."""
    return Meta(description=text)


Count: TypeAlias = Annotated[int, Meta(ge=0)]
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0)]
Address: TypeAlias = Annotated[str, says("`host:port`, the instance's name everywhere.")]


def as_builtins(shown: Shown) -> dict[str, Any]:
    """What `json` writes: dicts, lists, texts and numbers."""
    built: dict[str, Any] = msgspec.to_builtins(shown)
    return built
