"""What an engine's own schema says of requests is taken as it stands; a document that is no such schema says
nothing.
"""

from collections.abc import Mapping

import msgspec

from proxy.request.dialects import TOKENIZED, Dialect

MAX_SCHEMA_BYTES = 2 << 20
"""The largest schema; that of vLLM 0.32 has 286 kB."""

_MAX_MEMBERS = 4096
_REFERENCE = "#/components/schemas/"

Schema = Mapping[Dialect, frozenset[str]]
"""The names of the members of requests, for each dialect in TOKENIZED."""


class _Object(msgspec.Struct):
    properties: dict[str, msgspec.Raw] = {}
    ref: str | None = msgspec.field(default=None, name="$ref")
    all_of: list["_Object"] = msgspec.field(default_factory=list, name="allOf")
    any_of: list["_Object"] = msgspec.field(default_factory=list, name="anyOf")


class _Content(msgspec.Struct):
    schema: _Object = msgspec.field(default_factory=_Object)


class _Body(msgspec.Struct):
    content: dict[str, _Content] = {}


class _Operation(msgspec.Struct):
    body: _Body = msgspec.field(default_factory=_Body, name="requestBody")


class _Path(msgspec.Struct):
    post: _Operation | None = None


class _Components(msgspec.Struct):
    schemas: dict[str, msgspec.Raw] = {}


class _Document(msgspec.Struct):
    paths: dict[str, msgspec.Raw]
    components: _Components = msgspec.field(default_factory=_Components)


_decode_document = msgspec.json.Decoder(_Document).decode
_decode_path = msgspec.json.Decoder(_Path).decode
_decode_object = msgspec.json.Decoder(_Object).decode


def read_schema(data: bytes) -> Schema:
    """The members of requests in an engine's `/openapi.json`. Raises ValueError if it does not have them."""
    try:
        document = _decode_document(data)
        found = {dialect: _members(document, dialect) for dialect in TOKENIZED}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"no OpenAPI document: {error}") from None
    if not all(found.values()):
        raise ValueError("an OpenAPI document that says nothing of generating requests")
    return found


def _members(document: _Document, dialect: Dialect) -> frozenset[str]:
    path = _decode_path(document.paths.get(dialect.path, b"{}"))
    content = path.post.body.content.get("application/json") if path.post is not None else None
    names: set[str] = set()
    left = [content.schema] if content is not None else []
    for _ in range(_MAX_MEMBERS):  # references may form a circle
        if not left:
            break
        part = left.pop()
        names |= part.properties.keys()
        left += part.all_of + part.any_of
        if part.ref is not None and part.ref.startswith(_REFERENCE):
            left.append(_decode_object(document.components.schemas.get(part.ref[len(_REFERENCE) :], b"{}")))
        if len(names) > _MAX_MEMBERS:
            raise ValueError("more members than any request has")
    return frozenset(names)
