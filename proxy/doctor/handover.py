"""A prompt goes over a pair as a request would, and no block that is prefilled for it stays behind.

The decode leg fetches the blocks; if it fails they are given back in the way of every other hold.
"""

import asyncio
import time
from collections.abc import Callable

import msgspec

from proxy.connectors import Connector, Handoff
from proxy.connectors.plans import AtOnce, InTurn, Pair, Whole
from proxy.connectors.seen import Moved
from proxy.doctor import asking, prompts
from proxy.doctor.asking import ask
from proxy.doctor.facts import Answer, PairFacts, Trouble
from proxy.doctor.patience import Patience
from proxy.headers import REQUEST_ID
from proxy.request.body import Encoded
from proxy.request.dialects import COMPLETIONS, Usage
from proxy.request.generation import GenerationRequest, read_request
from proxy.serving.custody import Hold
from proxy.serving.custody_at_once import Crossing
from proxy.serving.exchange import Call
from proxy.serving.handover.at_once import AtOnceHandover
from proxy.serving.handover.in_turn import InTurnHandover
from proxy.serving.handover.releases import Releases
from proxy.serving.waits import ABANDONED_PREFILL_GRACE_S
from proxy.tasks import TaskOwner
from proxy.upstream.engine_api.asking import Asker
from proxy.upstream.engine_api.metrics import METRICS, Counted

TRIES = 3
"""Tries with a pair: the decode engine's counters include other requests, and then the pair is tried
again."""

COUNTED_S = 3.0
"""Seconds until the decode engine's counters include a leg that was answered."""

_LOOK_EVERY_S = 0.1


class HandOver:
    """Sends legs over pairs."""

    def __init__(
        self,
        engines: Asker,
        connector: Connector,
        releases: Releases,
        model: str,
        tasks: TaskOwner,
        *,
        lease_s: float,
        patience: Patience,
        counts: bool = True,
    ) -> None:
        """`counts`: whether the decode engine's counters are read before and after its leg."""
        self._engines = engines
        self._connector = connector
        self._model = model
        self._tasks = tasks
        self._lease_s = lease_s
        self._patience = patience
        self._counts = counts
        self._releases = releases
        grace_s = ABANDONED_PREFILL_GRACE_S
        self._in_turn = InTurnHandover(
            releases, tasks, time.monotonic, grace_s=grace_s, waits_for_releases=True
        )
        self._at_once = AtOnceHandover(releases, tasks, grace_s=grace_s)

    async def run(self, facts: PairFacts, token_ids: list[int]) -> None:
        """Try a pair with the prefill engine's own probe, which the decode engine does not know. Fills
        `facts`.
        """
        for number in range(TRIES):
            tokens = token_ids if not number else prompts.shuffled(token_ids)
            await self._once(facts, tokens)
            if not number and facts.handoff is not None:
                facts.reported = facts.handoff.cached_tokens
            if (
                facts.not_tried is not None
                or facts.moved is None
                or facts.moved.prompt <= facts.prompt_tokens
            ):
                return

    async def _once(self, facts: PairFacts, token_ids: list[int]) -> None:
        request = self._request(token_ids)
        call = Call(request, [], prompts.request_id(), time.monotonic())
        facts.prompt_tokens = len(token_ids)
        facts.prefill_answer = facts.decode_answer = facts.moved = facts.handoff = facts.decode_s = None
        begun_at = time.monotonic()
        match self._connector.plan(request):
            case InTurn() as plan:
                await self._in_turns(facts, call, plan)
            case AtOnce() as plan:
                await self._both(facts, call, plan)
            case Whole():
                facts.not_tried = "nothing is handed over: one instance serves the whole prompt"
        facts.took_s = time.monotonic() - begun_at

    async def _in_turns(self, facts: PairFacts, call: Call, plan: InTurn) -> None:
        hold = Hold(facts.prefill, lease_s=self._lease_s if plan.leased else None)
        tried: list[str] = []

        async def decode() -> bool:
            tried.append(facts.decode)
            hold.spend()
            await self._decode(facts, call, plan.legs.decode_body(call.request.body, hold.handoff))
            answer, moved = facts.decode_answer, facts.moved
            if answer is not None and answer.ok and (moved is None or moved.fetched > 0):
                hold.pulled()
            return True

        body = plan.legs.prefill_body(COMPLETIONS.first_token_only(call.request.body))
        prefill = self._prefill(facts, call, body, plan.legs.read_handoff, hold)
        leg = self._tasks.create(prefill, name=f"prefill {call.leg_id}")
        await self._in_turn.run(call, plan, hold, leg, decode, tried)
        facts.hold_end = hold.state.value if hold.counted else None

    async def _both(self, facts: PairFacts, call: Call, plan: AtOnce) -> None:
        pair = Pair(facts.prefill, facts.decode, 0, 0, call.leg_id)
        call = msgspec.structs.replace(call, leg_id=plan.legs.request_id(pair))
        crossing = Crossing(facts.prefill)

        async def decode(body: Encoded) -> bool:
            await self._decode(facts, call, body, crossing.pulled)
            return True

        first = plan.legs.prefill_body(COMPLETIONS.first_token_only(call.request.body), pair)
        second = plan.legs.decode_body(call.request.body, pair)
        prefill = self._prefill(facts, call, first, plan.legs.read_handoff, crossing)
        one = self._tasks.create(prefill, name=f"prefill {call.leg_id}")
        other = self._tasks.create(decode(second), name=f"decode {call.leg_id}")
        await self._at_once.run(crossing, one, other, drop=lambda _: None)
        self._at_once.leave(one)
        await asyncio.wait({one})  # whatever its answer is, it is a fact
        facts.hold_end = crossing.state.value

    def _request(self, token_ids: list[int]) -> GenerationRequest:
        body = prompts.one_token(prompts.completion(self._model, token_ids))
        return read_request(COMPLETIONS, msgspec.json.encode(body), self._model)

    async def _prefill(
        self,
        facts: PairFacts,
        call: Call,
        body: Encoded,
        read_handoff: Callable[[bytes, Usage], Handoff],
        custody: Hold | Crossing,
    ) -> bool | None:
        """Returns None if the custody was given an answer, False if there is nothing to hand over."""
        answer = await self._leg(facts.prefill, body, call.leg_id)
        facts.prefill_answer = answer
        try:
            if answer.ok:
                facts.handoff = read_handoff(answer.value, COMPLETIONS.usage(answer.value))
        except ValueError:
            facts.handoff = None
        if facts.handoff is not None:
            custody.answered(facts.handoff, time.monotonic())
            self._releases.begun(custody)
            return None
        if answer.ok or answer.trouble in {Trouble.STATUS, Trouble.REFUSED}:
            custody.failed()
        else:
            custody.lost(finished=False)
        return False

    async def _decode(
        self, facts: PairFacts, call: Call, body: Encoded, answered: Callable[[], None] = lambda: None
    ) -> None:
        """`answered` is called as soon as the leg is answered, before the engine's counters are read."""
        before = await self._metrics(facts.decode) if self._counts else None
        begun_at = time.monotonic()
        facts.decode_answer = await self._leg(facts.decode, body, call.leg_id)
        facts.decode_s = time.monotonic() - begun_at
        if facts.decode_answer.ok:
            answered()
            if before is not None:
                facts.moved = await self._moved(facts, before)

    async def _leg(self, address: str, body: Encoded, leg_id: str) -> Answer:
        headers = [(REQUEST_ID, leg_id)]
        return await ask(
            self._engines, address, COMPLETIONS.path, self._patience.probe_s, bytes(body), headers
        )

    async def _metrics(self, address: str) -> Counted | None:
        answer = asking.read_counted(await ask(self._engines, address, METRICS.path, self._patience.ask_s))
        found: Counted | None = answer.value
        if not answer.ok or found is None or found.prompt_tokens is None or found.by_source is None:
            return None
        return found

    async def _moved(self, facts: PairFacts, before: Counted) -> Moved | None:
        """What the decode engine counted since `before`; None if its metrics do not show it."""
        ends_at = time.monotonic() + COUNTED_S
        while True:
            after = await self._metrics(facts.decode)
            if after is None:
                return None
            prompt = (after.prompt_tokens or 0.0) - (before.prompt_tokens or 0.0)
            if prompt >= facts.prompt_tokens or time.monotonic() >= ends_at:
                break
            await asyncio.sleep(_LOOK_EVERY_S)
        if prompt < facts.prompt_tokens:
            return None  # the engine was restarted, or counts differently
        was, now = before.by_source or {}, after.by_source or {}
        asked = None
        if after.asked_connector is not None:
            asked = after.asked_connector - (before.asked_connector or 0.0)
        return Moved(
            prompt=prompt,
            by_source={source: value - was.get(source, 0.0) for source, value in now.items()},
            asked_connector=asked,
            failed_transfers=after.failed_transfers - before.failed_transfers,
        )
