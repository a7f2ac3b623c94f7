"""The schemas of `/openapi.json` are made of the structs that are served, so both have the same fields."""

import enum
import functools
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from kvevents import State
from proxy.doctor.shown import DoctorShown
from proxy.edge.shown.explanation import ExplanationShown
from proxy.edge.shown.operators import AdaptersTold, Add, Changed, Drain, Remove
from proxy.edge.shown.status import StatusShown
from proxy.errors import ErrorShown
from proxy.findings import Status
from proxy.shown import SUFFIX

STRUCTS: tuple[type[msgspec.Struct], ...] = (
    ErrorShown, Add, Drain, Remove, Changed, AdaptersTold, StatusShown, ExplanationShown, DoctorShown,
)  # fmt: skip
"""The structs that are asked and served; the types of their fields come with them."""

_NAMES: Mapping[type[Any], str] = {DoctorShown: "DoctorReport", State: "IndexState", Status: "FindingStatus"}
"""The names of schemas that differ from the names of their classes."""

_TEMPLATE = "#/components/schemas/{name}"


@functools.cache
def schemas(structs: tuple[type[msgspec.Struct], ...] = STRUCTS) -> Mapping[str, Any]:
    """The schemas of `structs` and of their parts by name: `components.schemas` of the document."""
    kinds = list(_parts(structs))
    names = {kind.__name__: _name(kind) for kind in kinds}
    _, made = msgspec.json.schema_components(structs, ref_template=_TEMPLATE)
    for kind in kinds:
        if issubclass(kind, enum.Enum):  # msgspec sorts members; some go from harmless to grave instead
            made[kind.__name__] |= {"type": "string", "enum": [member.value for member in kind]}
    return {names[name]: _worded(schema, names) for name, schema in made.items()}


def _name(kind: type[Any]) -> str:
    return _NAMES.get(kind, kind.__name__.removesuffix(SUFFIX))


def _worded(schema: Any, names: Mapping[str, str]) -> Any:
    """A schema with references by the schemas' names, and with descriptions on one line."""
    if isinstance(schema, list):
        return [_worded(each, names) for each in schema]
    if not isinstance(schema, dict):
        return schema
    worded = {key: _worded(value, names) for key, value in schema.items() if not _is_title(key, value)}
    if isinstance(reference := schema.get("$ref"), str):
        worded["$ref"] = _TEMPLATE.format(name=names[reference.rpartition("/")[2]])
    if isinstance(description := schema.get("description"), str):
        worded["description"] = re.sub(r"\s*\n\s*", " ", description)
    return worded


def _is_title(key: str, value: Any) -> bool:
    """Whether a member is the title that msgspec adds, which only repeats the schema's name."""
    return key == "title" and isinstance(value, str)


def _parts(kinds: Any, seen: set[Any] | None = None) -> Iterator[type[Any]]:
    """The structs and enums among these types, and in their fields; each once."""
    seen = set() if seen is None else seen
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct | enum.Enum):
            if kind in seen:
                continue
            seen.add(kind)
            yield kind
            if issubclass(kind, msgspec.Struct):
                yield from _parts(typing.get_type_hints(kind).values(), seen)
        else:
            yield from _parts(typing.get_args(kind), seen)
