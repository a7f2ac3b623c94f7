"""The doctor called to stand-ins, and what it found by instance and step."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from proxy.cli.doctor import examine
from proxy.config import Config, parse_instance
from proxy.doctor import Report
from proxy.doctor.patience import PATIENCE, Patience
from proxy.findings import Finding, Status
from proxy.phases import Role
from proxy.simulation import ROUTES, GeneratingRoute, StandIn, StandInConfig

LIMIT_S = 60.0


class Case:
    """Stand-ins, and the words they are given to the doctor with."""

    def __init__(
        self, prefill: Sequence[StandIn], decode: Sequence[StandIn], both: Sequence[StandIn]
    ) -> None:
        self.prefill, self.decode, self.both = prefill, decode, both
        self.named: dict[str, str] = {}
        """What stands behind the address of an instance on the command line."""

    @property
    def all(self) -> list[StandIn]:
        return [*self.prefill, *self.decode, *self.both]

    async def examine(
        self, limit_s: float = LIMIT_S, patience: Patience = PATIENCE, **settings: Any
    ) -> "Found":
        roles = ((Role.PREFILL, self.prefill), (Role.DECODE, self.decode), (Role.BOTH, self.both))
        specs = tuple(
            parse_instance(e.address + self.named.get(e.address, ""), role) for role, es in roles for e in es
        )
        config = Config(**({"model": "tiny", "instances": specs} | settings))
        return Found(await examine(config, limit_s, patience))


class Found:
    """A report, by subject and step."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def of(self, engine: StandIn, step: str) -> Finding:
        [one] = [i for i in self.report.instances if i.instance == engine.address]
        [finding] = [f for f in one.findings if f.step == step]
        return finding

    def pair(self, prefill: StandIn, decode: StandIn, step: str) -> Finding:
        [one] = [p for p in self.report.pairs if (p.prefill, p.decode) == (prefill.address, decode.address)]
        [finding] = [f for f in one.findings if f.step == step]
        return finding

    @property
    def wrong(self) -> dict[str, list[Status]]:
        """The steps that did not pass."""
        found: dict[str, list[Status]] = {}
        for finding in self.report.findings:
            if finding.status in {Status.WARN, Status.FAIL}:
                found.setdefault(finding.step, []).append(finding.status)
        return found


def _stand_in(*, routes: Sequence[GeneratingRoute] = ROUTES, **settings: Any) -> StandIn:
    return StandIn(StandInConfig(**settings), routes)


@contextlib.asynccontextmanager
async def case(
    prefill: Sequence[dict[str, Any]] = ({},),
    decode: Sequence[dict[str, Any]] = ({},),
    both: Sequence[dict[str, Any]] = (),
) -> AsyncIterator[Case]:
    """Stand-ins with these settings of StandInConfig; `routes`: their generating routes."""
    async with contextlib.AsyncExitStack() as stack:
        made = [
            [await stack.enter_async_context(_stand_in(**settings)) for settings in each]
            for each in (prefill, decode, both)
        ]
        yield Case(*made)
