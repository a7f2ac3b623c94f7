"""What engines say of how they read requests holds while they are up, and is asked for only once somebody
needs it.

Until an engine has said it, what most engines do is assumed; what comes of it is compared with what engines
count.
"""

from collections.abc import Collection, Mapping

from proxy.request.dialects import TOKENIZED, Dialect
from proxy.tokenizing.members import MemberNames
from proxy.tokenizing.schemas import Schema
from proxy.tokenizing.tool_choices import Choice, Tools, together

_VERSIONS_KEPT = 8
"""Schemas of vLLM releases that no engine runs now: one may come back."""


class EngineFacts:
    """What each engine has said; pure."""

    def __init__(self) -> None:
        self.names = MemberNames()
        self.schemas_wanted = self.choices_wanted = False
        """Whether a request has come that they matter for."""
        self._versions: dict[str, str] = {}
        self._schemas: dict[str, Schema] = {}
        self._choices: dict[str, Mapping[Choice, Tools]] = {}
        self._read: dict[Dialect, frozenset[str]] = dict.fromkeys(TOKENIZED, frozenset())

    # -- what requests need -------------------------------------------------------------------------------

    def knows(self, dialect: Dialect, name: str) -> bool:
        """Whether any engine's schema has a member."""
        self.schemas_wanted = True
        return name in self._read[dialect]

    def tools(self, choice: Choice) -> Tools:
        """What becomes of a chat's tools."""
        self.choices_wanted = True
        return together(found[choice] for found in self._choices.values() if choice in found)

    # -- what engines say ---------------------------------------------------------------------------------

    def keep(self, instances: Collection[str]) -> None:
        """Forget what others said: another engine may come up at their address."""
        for said in (self._versions, self._choices):
            for gone in said.keys() - instances:
                del said[gone]
        self._together()

    def lacks_schema(self, instance: str) -> bool:
        """Whether its schema is wanted and not known."""
        return self.schemas_wanted and instance not in self._versions

    def lacks_choices(self, instance: str) -> bool:
        """Whether what it does with choices of tools is wanted and not known."""
        return self.choices_wanted and instance not in self._choices

    def runs(self, instance: str, version: str) -> bool:
        """An engine's version is known now; whether its schema is, too."""
        if version in self._schemas:
            self._versions[instance] = version
            self._together()
            return True
        return False

    def learn_schema(self, instance: str, version: str, schema: Schema | None) -> None:
        """An engine has told its schema, or that it tells none."""
        self._versions[instance] = version
        if schema is not None:
            self._schemas[version] = schema
            unused = [v for v in self._schemas if v not in self._versions.values()]
            for old in unused[: max(0, len(unused) - _VERSIONS_KEPT)]:
                del self._schemas[old]
        self._together()

    def learn_choices(self, instance: str, found: Mapping[Choice, Tools]) -> None:
        """What an engine's counts have shown; nothing if it does not count."""
        self._choices[instance] = found

    def _together(self) -> None:
        """What running engines read, for requests with many members."""
        running = [self._schemas[version] for version in self.schema_versions]
        self._read = {
            dialect: frozenset[str]().union(*(schema[dialect] for schema in running)) for dialect in TOKENIZED
        }

    @property
    def schema_versions(self) -> list[str]:
        """The versions of running engines whose schema is known."""
        return sorted(set(self._versions.values()) & self._schemas.keys())
