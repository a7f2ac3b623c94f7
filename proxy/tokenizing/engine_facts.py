"""What an engine says about how it reads requests counts while it is up, and is asked for only once a request
needs it.

Until an engine has said it, kvproxy assumes what most engines do, and compares the result with what engines
count.
"""

from collections.abc import Collection, Mapping

from proxy.request.dialects import TOKENIZED, Dialect
from proxy.tokenizing.members import MemberNames
from proxy.tokenizing.schemas import Schema
from proxy.tokenizing.tool_choices import Choice, Tools, together

_VERSIONS_KEPT = 8
"""Schemas that are kept of vLLM releases that no engine runs now: one may come back."""


class EngineFacts:
    """What each engine has said. Pure."""

    def __init__(self) -> None:
        self.names = MemberNames()
        self.schemas_wanted = self.choices_wanted = False
        """Whether a request has come for which schemas, or choices of tools, matter."""
        self._versions: dict[str, str] = {}
        self._schemas: dict[str, Schema] = {}
        self._choices: dict[str, Mapping[Choice, Tools]] = {}
        self._read: dict[Dialect, frozenset[str]] = dict.fromkeys(TOKENIZED, frozenset())

    # -- what requests need -------------------------------------------------------------------------------

    def knows(self, dialect: Dialect, name: str) -> bool:
        """Whether any engine's schema has the member."""
        self.schemas_wanted = True
        return name in self._read[dialect]

    def tools(self, choice: Choice) -> Tools:
        """What becomes of a chat's tools with that choice."""
        self.choices_wanted = True
        return together(found[choice] for found in self._choices.values() if choice in found)

    # -- what engines say ---------------------------------------------------------------------------------

    def keep(self, instances: Collection[str]) -> None:
        """Forget what all other engines said: another engine may come up at their address."""
        for said in (self._versions, self._choices):
            for gone in said.keys() - instances:
                del said[gone]
        self._together()

    def lacks_schema(self, instance: str) -> bool:
        """Whether an engine's schema is wanted and not known."""
        return self.schemas_wanted and instance not in self._versions

    def lacks_choices(self, instance: str) -> bool:
        """Whether it is wanted and not known what an engine does with choices of tools."""
        return self.choices_wanted and instance not in self._choices

    def runs(self, instance: str, version: str) -> bool:
        """An engine's version is known now. Returns whether its schema is known, too."""
        if version in self._schemas:
            self._versions[instance] = version
            self._together()
            return True
        return False

    def learn_schema(self, instance: str, version: str, schema: Schema | None) -> None:
        """An engine has given its schema, or (None) has none to give."""
        self._versions[instance] = version
        if schema is not None:
            self._schemas[version] = schema
            unused = [v for v in self._schemas if v not in self._versions.values()]
            for old in unused[: max(0, len(unused) - _VERSIONS_KEPT)]:
                del self._schemas[old]
        self._together()

    def learn_choices(self, instance: str, found: Mapping[Choice, Tools]) -> None:
        """Take what an engine's counts have shown; it is empty if the engine does not count."""
        self._choices[instance] = found

    def _together(self) -> None:
        """Put together what running engines read, so that requests with many members are looked up fast."""
        running = [self._schemas[version] for version in self.schema_versions]
        self._read = {
            dialect: frozenset[str]().union(*(schema[dialect] for schema in running)) for dialect in TOKENIZED
        }

    @property
    def schema_versions(self) -> list[str]:
        """The versions of running engines whose schema is known."""
        return sorted(set(self._versions.values()) & self._schemas.keys())
