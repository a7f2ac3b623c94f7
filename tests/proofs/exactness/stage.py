"""What is there while a run lasts: engines, the kvproxys that join, a crowd and a pair of eyes for each, the
witness."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from scripts.workshop.engines.engine import EngineSpec
from scripts.workshop.engines.fleet import Fleet
from scripts.workshop.live.quiet import wait_quiet
from scripts.workshop.live.waiting import wait_until
from tests.proofs.exactness.course import FIRST, Phase, Run
from tests.proofs.exactness.history import Asked
from tests.proofs.exactness.legs import Crowd, Leg
from tests.proofs.exactness.looking import Looks, Meter, grown
from tests.proofs.exactness.prompts import MIXED, Plan
from tests.proofs.exactness.setting import LEASE_S, START_S, Routers
from tests.proofs.exactness.witness import Witness

_SETTLE_S = 90.0
"""For engines and kvproxy to come to rest, beyond the lease of what was stranded by a kill."""
_KNOWN_S = 120.0
"""For kvproxy to know an engine that came back, or all of them when it did."""


class Stage:
    """Engines, kvproxys, their clients and the witness of one run."""

    def __init__(
        self,
        fleet: Fleet,
        routers: Routers,
        witness: Witness,
        session: aiohttp.ClientSession,
        made: Run,
    ) -> None:
        self.fleet = fleet
        self.routers = routers
        self.witness = witness
        self.session = session
        self.made = made
        self.options = made.options
        self.prefill: list[EngineSpec] = fleet.of_role("prefill")
        self.looks: dict[str, Looks] = {}
        self.crowds: dict[str, Crowd] = {}
        self.over = asyncio.Event()

    @property
    def addresses(self) -> list[str]:
        """Of the prefill engines."""
        return [spec.address for spec in self.prefill]

    async def join(self, group: asyncio.TaskGroup, name: str) -> None:
        """Start a kvproxy and wait until it knows something of every engine."""
        proxy = self.routers.start(name)
        await asyncio.to_thread(proxy.wait_status, "/ready", 200, START_S)
        self.looks[name] = Looks(proxy, self.session)
        self.crowds[name] = Crowd(
            name,
            proxy.url,
            self.session,
            self.options.seed,
            self.options.pause_s,
            mix=MIXED,
            legs=self.made.legs,
        )
        group.create_task(self.looks[name].run(self.over), name=f"looks at {name}")
        self.made.note(f"kvproxy {name} started")
        self.made.wrong += await self.known(name, {"exact"} if name == FIRST else {"exact", "partial"})

    async def known(self, name: str, worth: set[str]) -> list[str]:
        """Wait until a kvproxy's index of every prefill engine is worth that; what is wrong if it does not
        get there."""
        seen: list[str] = []

        async def known() -> bool:
            look = await self.looks[name].look()
            seen[:] = [look.worth(spec.address) for spec in self.prefill] if look else ["no answer"]
            return set(seen) <= worth

        try:
            await wait_until(known, _KNOWN_S, f"kvproxy {name} knows the engines")
        except TimeoutError:
            return [f"kvproxy {name} had {seen} for {_KNOWN_S:.0f} s, not {sorted(worth)}"]
        return []

    @asynccontextmanager
    async def phase(self, phase: Phase) -> AsyncIterator[None]:
        self.made.phase = phase
        self.made.note(f"phase {phase}")
        for crowd in self.crowds.values():
            crowd.phase = phase
        before = await self._meters()
        yield
        after = await self._meters()
        self.made.meters[phase] = {name: grown(before.get(name, {}), after[name]) for name in after}

    async def _meters(self) -> dict[str, Meter]:
        for looks in self.looks.values():
            await looks.look()
        return {name: looks.meter for name, looks in self.looks.items()}

    async def rests(self, name: str) -> bool:
        """Wait until engines and a kvproxy are at rest; False if they do not get there."""
        urls = [spec.url for spec in self.fleet.specs.values()]
        try:
            await wait_quiet(self.session, urls, self.routers[name].url, LEASE_S + _SETTLE_S)
        except TimeoutError as error:
            self.made.wrong.append(f"no rest: {error}")
            return False
        return True

    @asynccontextmanager
    async def at_rest(self) -> AsyncIterator[bool]:
        """Nobody asks meanwhile, and nothing is held; False if that could not be had."""
        crowd = self.crowds[FIRST]
        crowd.go.clear()
        try:
            yield await self.rests(FIRST)
        finally:
            crowd.go.set()

    def of(self, router: str) -> list[Leg]:
        return [leg for leg in self.made.legs if leg.router == router]

    async def asked(self, plan: Plan, address: str) -> Asked | None:
        """The prompt as an engine reads it; None if it does not tell."""
        body = plan.body
        if isinstance(body.get("prompt"), list):
            return Asked(body["prompt"], plan.adapter, plan.salt)
        question = {key: body[key] for key in ("model", "prompt", "messages", "tools") if key in body}
        async with self.session.post(f"http://{address}/tokenize", json=question) as answer:
            if answer.status != 200:
                return None
            return Asked((await answer.json())["tokens"], plan.adapter, plan.salt)
