"""All instances are examined within one deadline, and what was not done by then is said.

Engines come first, side by side; then what they have to do with each other. The doctor takes no claims and
changes no health: its probes are a small load, no more.
"""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

import msgspec

from kvevents.subscriber import Context
from proxy.caches.address_rules import AddressRules
from proxy.config import Config, InstanceSpec, WhenNoPrefill
from proxy.connectors import Connector
from proxy.doctor import engine_steps, event_steps, pair_steps
from proxy.doctor.facts import EngineFacts, PairFacts
from proxy.doctor.findings import InstanceReport, PairReport, Report
from proxy.doctor.handover import HandOver
from proxy.doctor.patience import PATIENCE, Patience
from proxy.doctor.probing import MAX_RANKS, Probing, Service
from proxy.findings import Finding, skipped
from proxy.fleet import Fleet, Instance
from proxy.happenings import Happening
from proxy.serving.handover.releases import Releases
from proxy.serving.ports import Client
from proxy.serving.waits import ABANDONED_PREFILL_GRACE_S, RELEASE_TIMEOUT_S
from proxy.tasks import TaskOwner
from proxy.tokenizing import LocalTokenizer
from proxy.tokenizing.comparison import tokenizer_at
from proxy.upstream.engine_api.asking import Asker

AT_ONCE = 8
"""Engines that are probed at the same time: each has an index of its own meanwhile."""

DEFAULT_LIMIT_S = 120.0

CLEANUP_S = ABANDONED_PREFILL_GRACE_S + RELEASE_TIMEOUT_S
"""Seconds that giving back prefilled blocks may take once time is up."""


class DoctorClient(Asker, Client, Protocol):
    """The part of the engine client that the doctor needs."""


class Doctor:
    """Examines fleets. MUST be closed in the end."""

    def __init__(
        self,
        config: Config,
        engines: DoctorClient,
        connector: Connector,
        *,
        service: Service | None = None,
        limit_s: float = DEFAULT_LIMIT_S,
        patience: Patience = PATIENCE,
    ) -> None:
        """`service`: what a running service knows; None without one. `limit_s`: seconds that an examination
        may take. `patience`: how long each answer is waited for.
        """
        self._config = config
        self._engines = engines
        self._connector = connector
        self._service = service
        self._limit_s = limit_s
        self._patience = patience
        self._decode_alone = config.admission.when_no_prefill is WhenNoPrefill.DECODE
        self._examining = False
        self._tasks = TaskOwner("doctor")

    @property
    def examining(self) -> bool:
        """Whether an examination is under way."""
        return self._examining

    async def close(self, limit_s: float = CLEANUP_S) -> None:
        """Give back what is held, for at most `limit_s` seconds, and end."""
        await self._tasks.drained(limit_s)
        await self._tasks.close()

    async def examine(self, specs: Sequence[InstanceSpec], local: LocalTokenizer | None) -> Report:
        """Examine these instances. `local`: the tokenizer in this process; None: one is looked for."""
        self._examining = True
        try:
            return await self._examine(specs, local)
        finally:
            self._examining = False

    async def _examine(self, specs: Sequence[InstanceSpec], local: LocalTokenizer | None) -> Report:
        begun_at = time.monotonic()
        context = Context()
        listening = TaskOwner("doctor listens")
        found: LocalTokenizer | None = None
        try:
            ends_at = begun_at + self._limit_s
            engines = [EngineFacts(spec) for spec in specs]
            probings = [self._probing(facts, context, listening) for facts in engines]
            unfinished = await self._all(
                {p.facts.address: p.look() for p in probings}, ends_at, at_once=len(probings) or 1
            )
            if local is None and self._config.tokenizer == "auto":
                local = found = await _tokenizer_of(engines, self._config.model)
            unfinished |= await self._all(
                {p.facts.address: p.probe(local) for p in probings}, ends_at, at_once=AT_ONCE
            )
            for facts in engines:
                facts.unfinished = facts.address in unfinished
            pairs, every = await self._pairs(engines, ends_at)
            _take_over_reports(engines, pairs)
        finally:
            await listening.close()
            context.term()
            if found is not None:
                found.close()
        directory = str(local.directory) if local is not None else None
        by_address = {facts.address: facts for facts in engines}
        return Report(
            model=self._config.model,
            connector=self._connector.name,
            took_s=round(time.monotonic() - begun_at, 3),
            instances=[self._instance(facts, directory) for facts in engines],
            pairs=[
                PairReport(
                    name=f"{facts.prefill} -> {facts.decode}",
                    prefill=facts.prefill,
                    decode=facts.decode,
                    findings=pair_steps.of_pair(
                        facts, by_address[facts.prefill], by_address[facts.decode], self._connector
                    ),
                )
                for facts in pairs
            ],
            fleet=[
                *pair_steps.roles(specs, decode_alone=self._decode_alone),
                *pair_steps.engines_agree(engines),
                *pair_steps.of_fleet(engines, self._connector),
                *pair_steps.context_lengths(engines, self._config.model),
                *pair_steps.pairs_tried([(p.prefill, p.decode) for p in pairs], every=every),
            ],
        )

    def _probing(self, facts: EngineFacts, context: Context, listening: TaskOwner) -> Probing:
        return Probing(
            facts,
            self._engines,
            self._config.model,
            kv_events=self._config.kv_events,
            rules=AddressRules.of(self._config),
            context=context,
            tasks=listening,
            service=self._service,
            patience=self._patience,
        )

    async def _all(
        self, work: dict[str, Coroutine[Any, Any, None]], ends_at: float, *, at_once: int
    ) -> set[str]:
        """Do all of `work`, `at_once` pieces at a time. Returns the names of those that were not done in
        time.
        """
        room = asyncio.Semaphore(at_once)

        async def one(todo: Coroutine[Any, Any, None]) -> None:
            async with room:
                await todo

        tasks = {self._tasks.create(one(todo), name=name): name for name, todo in work.items()}
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=max(0.0, ends_at - time.monotonic()))
        finally:
            late = {task for task in tasks if not task.done()}
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
            for todo in work.values():
                todo.close()  # a coroutine that never began
        return {name for task, name in tasks.items() if task in late or _went_wrong(task)}

    # -- pairs --------------------------------------------------------------------------------------------

    async def _pairs(self, engines: Sequence[EngineFacts], ends_at: float) -> tuple[list[PairFacts], bool]:
        chosen, every = pair_steps.pairs([facts.spec for facts in engines])
        by_address = {facts.address: facts for facts in engines}
        fleet = Fleet()
        for facts in engines:
            instance = Instance(facts.spec)
            if facts.health is not None and facts.health.ok:
                instance.came_up()
            fleet.add(instance)
        releases = Releases(fleet, self._engines, _untold, time.monotonic)
        hand_over = HandOver(
            self._engines,
            self._connector,
            releases,
            self._config.model,
            self._tasks,
            lease_s=self._config.kv_lease_s,
            patience=self._patience,
        )
        quiet: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

        async def one(facts: PairFacts, token_ids: list[int]) -> None:
            async with quiet[facts.decode]:  # its counters must show one leg at a time
                await hand_over.run(facts, token_ids)

        tried: dict[str, Coroutine[Any, Any, None]] = {}
        pairs = []
        for prefill, decode in chosen:
            pair = PairFacts(prefill, decode)
            pairs.append(pair)
            first, second = by_address[prefill], by_address[decode]
            pair.not_tried = pair_steps.why_not(first, second, self._config.model)
            if pair.not_tried is None:
                known = next(rank.token_ids for rank in first.ranks if rank.served)
                tried[f"{prefill} {decode}"] = one(pair, known)
        unfinished = await self._all(tried, ends_at, at_once=AT_ONCE)
        for pair in pairs:
            pair.unfinished = f"{pair.prefill} {pair.decode}" in unfinished
        return pairs, every

    # -- words --------------------------------------------------------------------------------------------

    def _instance(self, facts: EngineFacts, directory: str | None) -> InstanceReport:
        return InstanceReport(
            name=f"{facts.spec.role} {facts.address}",
            instance=facts.address,
            role=facts.spec.role.value,
            findings=self._findings(facts, directory),
        )

    def _findings(self, facts: EngineFacts, directory: str | None) -> list[Finding]:
        model = self._config.model
        late = engine_steps.unfinished(facts, self._limit_s)
        found = [engine_steps.reachable(facts)]
        if facts.health is None or not facts.health.ok:
            return [*found, *late]
        found += [engine_steps.version(facts), engine_steps.model(facts, model)]
        found.append(engine_steps.event_sources(facts, wanted=self._config.kv_events))
        found.append(engine_steps.prefix_caching(facts))
        found += engine_steps.awake(facts)
        if facts.asleep or not facts.serves(model):
            return [*found, *late]
        found.append(engine_steps.block_size(facts, model))
        found.append(engine_steps.tokenizer(facts, directory))
        for rank in facts.ranks:
            found += event_steps.of_rank(facts, rank, several=len(facts.ranks) > 1)
        if facts.ranks_left_out:
            found.append(skipped("ranks", f"{facts.ranks_left_out} ranks beyond the first {MAX_RANKS}"))
        return [*found, *late]


def _take_over_reports(engines: Sequence[EngineFacts], pairs: Sequence[PairFacts]) -> None:
    """Cached tokens that the answer of a prefill leg reports count where plain answers report none, as they
    do for requests.
    """
    by_prefill = {pair.prefill: pair.reported for pair in pairs if pair.reported is not None}
    for facts in engines:
        if (
            facts.address not in by_prefill or len(facts.ranks) != 1
        ):  # it is not known which rank served a prefill leg
            continue
        for rank in facts.ranks:
            if len(rank.sends) > 1 and rank.sends[-1].reported is None:
                rank.sends[-1] = msgspec.structs.replace(rank.sends[-1], reported=by_prefill[facts.address])


def _went_wrong(task: "asyncio.Task[None]") -> bool:
    return not task.cancelled() and task.exception() is not None


async def _tokenizer_of(engines: Sequence[EngineFacts], model: str) -> LocalTokenizer | None:
    """The tokenizer in the directory that an engine names for its model, if it can be read here, as
    `--tokenizer auto` has it.
    """
    roots = {card.root for facts in engines for card in facts.models if card.id == model and card.root}
    for root in sorted(roots):
        with contextlib.suppress(OSError, ValueError):
            if (found := await tokenizer_at(root)) is not None:
                return found
    return None


def _untold(_happening: Happening) -> None:
    """Drops happenings: the doctor's holds are not the service's."""
