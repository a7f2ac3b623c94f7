"""A prompt goes over a pair as a request would, and what is prefilled for it never stays behind.

The decode leg fetches the blocks; where that fails they are given back the way of every other hold.
"""

import asyncio
import time

import msgspec

from proxy.connectors import Connector
from proxy.connectors.seen import Moved
from proxy.doctor import asking, prompts
from proxy.doctor.asking import ask
from proxy.doctor.facts import Answer, PairFacts, Trouble
from proxy.doctor.patience import Patience
from proxy.headers import REQUEST_ID
from proxy.request.dialects import COMPLETIONS
from proxy.request.generation import GenerationRequest, read_request
from proxy.serving.custody import Due, Hold, HoldState
from proxy.serving.exchange import Call
from proxy.serving.handover.releases import Releases
from proxy.serving.waits import ABANDONED_PREFILL_GRACE_S
from proxy.tasks import TaskOwner
from proxy.upstream.engine_api.asking import Engines
from proxy.upstream.engine_api.metrics import METRICS, Counted

TRIES = 3
"""Where other requests run on the decode engine its counters tell of them, too: then it is tried again."""

COUNTED_S = 3.0
"""For the decode engine's counters to include a leg that was answered."""

_LOOK_EVERY_S = 0.1


class HandOver:
    """Sends legs over pairs."""

    def __init__(
        self,
        engines: Engines,
        connector: Connector,
        releases: Releases,
        model: str,
        tasks: TaskOwner,
        *,
        lease_s: float,
        patience: Patience,
    ) -> None:
        self._engines = engines
        self._connector = connector
        self._releases = releases
        self._model = model
        self._tasks = tasks
        self._lease_s = lease_s
        self._patience = patience

    async def run(self, facts: PairFacts, token_ids: list[int]) -> None:
        """Try a pair with the prefill engine's own probe, which the decode engine does not know; fills
        `facts`.
        """
        for number in range(TRIES):
            tokens = token_ids if not number else prompts.shuffled(token_ids)
            await self._once(facts, tokens)
            if not number and facts.handoff is not None:
                facts.reported = facts.handoff.cached_tokens
            if facts.moved is None or facts.moved.prompt <= facts.prompt_tokens:
                return

    async def _once(self, facts: PairFacts, token_ids: list[int]) -> None:
        request = self._request(token_ids)
        call = Call(request, [], prompts.request_id(), time.monotonic())
        hold = Hold(facts.prefill, lease_s=self._lease_s) if self._connector.holds else None
        facts.prompt_tokens = len(token_ids)
        facts.prefill_answer = facts.decode_answer = facts.moved = facts.handoff = None
        begun_at = time.monotonic()
        leg = self._tasks.create(self._prefill(facts, call, hold), name=f"prefill {call.leg_id}")
        try:
            await asyncio.shield(leg)
            if facts.handoff is not None:
                await self._decode(facts, call, hold)
                facts.took_s = time.monotonic() - begun_at
        finally:
            if hold is not None:
                end = self._tasks.create(self._end(call, facts, hold, leg), name=f"end {call.leg_id}")
        if hold is not None:
            await asyncio.shield(end)

    def _request(self, token_ids: list[int]) -> GenerationRequest:
        body = prompts.one_token(prompts.completion(self._model, token_ids))
        return read_request(COMPLETIONS, msgspec.json.encode(body), self._model)

    async def _prefill(self, facts: PairFacts, call: Call, hold: Hold | None) -> None:
        body = bytes(self._connector.prefill_body(COMPLETIONS.first_token_only(call.request.body)))
        answer = await self._leg(facts.prefill, body, call.leg_id)
        facts.prefill_answer, facts.handoff = answer, None
        try:
            if answer.ok:
                facts.handoff = self._connector.read_handoff(answer.value, COMPLETIONS.usage(answer.value))
        except ValueError:
            facts.handoff = None
        if hold is None:
            return
        if facts.handoff is not None:
            hold.answered(facts.handoff, time.monotonic())
            self._releases.begun(hold)
        elif answer.ok or answer.trouble in {Trouble.STATUS, Trouble.REFUSED}:
            hold.failed()
        else:
            hold.lost(finished=False)

    async def _decode(self, facts: PairFacts, call: Call, hold: Hold | None) -> None:
        if facts.handoff is None:
            return
        before = await self._metrics(facts.decode)
        if hold is not None:
            hold.spend()
        body = bytes(self._connector.decode_body(call.request.body, facts.handoff))
        facts.decode_answer = await self._leg(facts.decode, body, call.leg_id)
        if facts.decode_answer.ok and before is not None:
            facts.moved = await self._moved(facts, before)

    async def _leg(self, address: str, body: bytes, leg_id: str) -> Answer:
        headers = [(REQUEST_ID, leg_id)]
        return await ask(self._engines, address, COMPLETIONS.path, self._patience.probe_s, body, headers)

    async def _metrics(self, address: str) -> Counted | None:
        answer = asking.read_counted(await ask(self._engines, address, METRICS.path, self._patience.ask_s))
        found: Counted | None = answer.value
        if not answer.ok or found is None or found.prompt_tokens is None or found.by_source is None:
            return None
        return found

    async def _moved(self, facts: PairFacts, before: Counted) -> Moved | None:
        """What the decode engine counted meanwhile; None if it does not tell."""
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
            return None  # it was restarted, or counts otherwise
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

    async def _end(self, call: Call, facts: PairFacts, hold: Hold, leg: "asyncio.Task[None]") -> None:
        """Nothing stays held: what was not seen to be fetched is given back. Cancelled legs end here, too."""
        hold.give_up()
        try:
            await asyncio.wait({leg}, timeout=ABANDONED_PREFILL_GRACE_S)
            if not leg.done():
                leg.cancel()
                await asyncio.wait({leg})
        finally:
            answer, moved = facts.decode_answer, facts.moved
            fetched = moved is None or moved.fetched > 0
            if hold.state is HoldState.SPENT and answer is not None and answer.ok and fetched:
                hold.pulled()
                self._releases.ended(hold)
            elif hold.due(time.monotonic()) is Due.RELEASE:
                await self._releases.release(call, hold, [] if answer is None else [facts.decode])
            facts.hold_end = hold.state.value
