"""Invariant: engines are probed one after the other, each while nothing else runs there, and every prompt
that was prefilled for another engine is fetched or given back in the end.

The first engine that prefills and the first that decodes are probed wholly, the others enough to tell how
much slower or faster they are. An engine that is busy with others' requests is not probed, unless it shall
be.
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from proxy.config import Config, InstanceSpec
from proxy.connectors import Connector
from proxy.connectors.plans import InTurn
from proxy.doctor import pair_steps
from proxy.doctor.facts import PairFacts
from proxy.doctor.handover import HandOver
from proxy.doctor.patience import Patience
from proxy.errors import KvproxyError
from proxy.fitting import sizes
from proxy.fitting.asking import PROBE_S, Asking, Told
from proxy.fitting.seen import HandedOver, Seen
from proxy.fleet import Fleet, Instance
from proxy.happenings import Happening
from proxy.phases import Role
from proxy.request.dialects import COMPLETIONS
from proxy.request.generation import read_request
from proxy.serving.handover.releases import Releases
from proxy.serving.ports import Client
from proxy.serving.waits import ABANDONED_PREFILL_GRACE_S, RELEASE_TIMEOUT_S
from proxy.tasks import TaskOwner
from proxy.upstream.engine_api.asking import Asker

SLOW_S = 8.0
"""No longer prompts are sent to an engine that took so long for one."""
DISTURBED = 3
"""So often an engine may be found busy before the fit is given up."""
PAIR_FEWER = 2
"""Of pairs that are like one that was probed wholly so many prompts are sent, the first for the handshake."""


CLEANUP_S = ABANDONED_PREFILL_GRACE_S + RELEASE_TIMEOUT_S
"""Seconds that giving back prefilled blocks may take in the end."""


class BusyError(KvproxyError):
    """Others use an engine."""


class FitClient(Asker, Client, Protocol):
    """The part of the engine client that the fit needs."""


class Prober:
    """Probes the engines of a configuration. MUST be closed in the end."""

    def __init__(
        self,
        config: Config,
        engines: FitClient,
        connector: Connector,
        *,
        limit_s: float,
        longest: int = sizes.LONGEST,
        anyway: bool = False,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`limit_s`: seconds after which no probe is sent any more; `longest`: tokens of a prompt; `anyway`:
        whether engines are probed that others use; `progress`: hears what is done next.
        """
        self._config = config
        self._engines = engines
        self._connector = connector
        self._limit_s = limit_s
        self._longest = longest
        self._anyway = anyway
        self._progress = progress
        self._tasks = TaskOwner("fit")
        self._ends_at = 0.0
        self._disturbed = 0
        self.seen = Seen()
        self.told: dict[str, Told] = {}
        """What each engine told of itself, by its address."""
        self._asking = Asking(engines, engines, config.model, self.seen.spent)

    async def close(self) -> None:
        """Give back what is held, and end."""
        await self._tasks.drained(CLEANUP_S)
        await self._tasks.close()

    async def run(self) -> None:
        """Send all probes. Raises LegError if an engine does not answer, BusyError if others use one."""
        begun_at = time.monotonic()
        self._ends_at = begun_at + self._limit_s
        specs = self._config.instances
        try:
            for spec in specs:
                self._progress(f"{spec.address}: what can it take?")
                self.told[spec.address] = await self._asking.look(spec.address, self._longest)
                if not self._anyway and (busy := await self._asking.busy(spec.address)):
                    raise BusyError(
                        f"{spec.address} has {busy} requests of others: they would wait for the probes, and"
                        " what these take would be wrong. Come back when it is idle, or give --anyway"
                    )
            await self._prompts([spec for spec in specs if spec.role is not Role.DECODE])
            await self._streams([spec for spec in specs if spec.role is not Role.PREFILL])
            await self._pairs(specs)
        finally:
            self.seen.spent.seconds = time.monotonic() - begun_at

    async def _free(self, *addresses: str) -> bool:
        """Whether there is time, and these engines are idle."""
        if time.monotonic() >= self._ends_at:
            words = f"the rest, after {self._limit_s:g} s (--timeout)"
            if words not in self.seen.left_out:
                self.seen.left_out.append(words)
            return False
        for address in addresses:
            if not self._anyway and not await self._asking.quiet(address):
                self._disturbed += 1
                if self._disturbed >= DISTURBED:
                    raise BusyError(f"others use {address}: come back when it is idle, or give --anyway")
                self.seen.left_out.append(f"a probe of {address}, which others used")
                return False
        return True

    # -- engines ------------------------------------------------------------------------------------------

    async def _prompts(self, specs: Sequence[InstanceSpec]) -> None:
        for number, spec in enumerate(specs):
            address, told = spec.address, self.told[spec.address]
            probes = sizes.alone(told.room)
            if not await self._free(address):
                continue
            await self._asking.alone(address, told, sizes.Alone(sizes.SHORTEST))  # the first one is slower
            for probe in sizes.fewer(probes) if number else probes:
                self._progress(f"{address}: a prompt of {probe.prompt} tokens")
                if not await self._free(address):
                    continue
                found = await self._asking.alone(address, told, probe)
                self.seen.prompted += found
                if found[-1].ended_at - found[-1].began_at > SLOW_S:
                    self.seen.left_out.append(
                        f"prompts of more than {probe.prompt} tokens on {address}, since one took"
                        f" {found[-1].ended_at - found[-1].began_at:.1f} s"
                    )
                    break

    async def _streams(self, specs: Sequence[InstanceSpec]) -> None:
        for number, spec in enumerate(specs):
            address, told = spec.address, self.told[spec.address]
            probes = sizes.together(told.room)
            for probe in probes[1 :: sizes.FEWER] if number else probes:
                self._progress(f"{address}: {probe.sequences} streams of {probe.context} tokens")
                if not await self._free(address):
                    continue
                began_at = time.monotonic()
                stepped = await self._asking.together(address, told, probe)
                if stepped is not None:
                    self.seen.stepped.append(stepped)
                else:
                    self.seen.left_out.append(
                        f"{probe.sequences} streams of {probe.context} tokens on {address}, which did not run"
                        " together"
                    )
                if time.monotonic() - began_at > 2 * SLOW_S:
                    self.seen.left_out.append(f"more streams on {address}, since these took long")
                    break

    # -- pairs --------------------------------------------------------------------------------------------

    async def _pairs(self, specs: Sequence[InstanceSpec]) -> None:
        chosen = [(p, d) for p, d in pair_steps.pairs(specs)[0] if d != p]
        if not chosen:
            return
        body = {"model": self._config.model, "prompt": [1, 2, 3], "max_tokens": 1}
        request = read_request(COMPLETIONS, msgspec.json.encode(body), self._config.model)
        if not isinstance(self._connector.plan(request), InTurn):
            self.seen.left_out.append(f"transfers: legs of {self._connector.name} are not sent in turn")
            return
        hand_over = self._hand_over(specs)
        for number, (prefill, decode) in enumerate([pair for pair in chosen if self._alike(*pair)]):
            room = min(self.told[prefill].room, self.told[decode].room, key=lambda room: room.longest)
            probes = sizes.handed(room)
            for probe in probes[:PAIR_FEWER] if number else probes:
                self._progress(f"{prefill} -> {decode}: a prompt of {probe.prompt} tokens")
                if await self._free(prefill, decode):
                    await self._handed(hand_over, prefill, decode, probe)

    def _alike(self, prefill: str, decode: str) -> bool:
        """Whether a pair has blocks of one size: a decode engine with another one may die of a hand-over."""
        size, other = self.told[prefill].block_size, self.told[decode].block_size
        if size is None or other is None:
            self.seen.left_out.append(f"{prefill} -> {decode}, whose block sizes are not known")
        elif size != other:
            self.seen.left_out.append(f"{prefill} -> {decode}, whose block sizes differ")
        return size is not None and size == other

    async def _handed(self, hand_over: HandOver, prefill: str, decode: str, probe: sizes.Handed) -> None:
        facts, told = PairFacts(prefill, decode), self.told[prefill]
        spent = self.seen.spent
        spent.requests, spent.prompt_tokens = spent.requests + 2, spent.prompt_tokens + 2 * probe.prompt
        spent.generated_tokens += 2
        await hand_over.run(facts, self._asking.tokens(told, probe.prompt))
        if facts.decode_answer is None or not facts.decode_answer.ok or facts.decode_s is None:
            failed = facts.prefill_answer if facts.decode_answer is None else facts.decode_answer
            words = "no answer" if failed is None else failed.words or "nothing was handed over"
            self.seen.left_out.append(
                f"a prompt of {probe.prompt} tokens over {prefill} -> {decode}: {words}"
            )
            return
        self.seen.handed.append(
            HandedOver(prefill, decode, probe.prompt, 1000 * facts.decode_s, probe.held_out)
        )

    def _hand_over(self, specs: Sequence[InstanceSpec]) -> HandOver:
        fleet = Fleet()
        for spec in specs:
            instance = Instance(spec)
            instance.came_up()
            fleet.add(instance)
        return HandOver(
            self._engines,
            self._connector,
            Releases(fleet, self._engines, _untold, time.monotonic),
            self._config.model,
            self._tasks,
            lease_s=self._config.kv_lease_s,
            patience=Patience(probe_s=PROBE_S),
            counts=False,
        )


def _untold(_happening: Happening) -> None:
    """Drops happenings: these holds are not the service's."""
