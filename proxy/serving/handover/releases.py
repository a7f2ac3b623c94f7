"""A hold that no decode leg will fetch is released, or counted as stranded.

A prefill engine frees its blocks when a decode engine has fetched them, or when a decode engine refuses a
request that carries their transfer params. Such a request computes and fetches nothing, and does no harm if
the blocks are free already, so it is sent whenever there is no proof that they are.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from proxy.connectors.plans import InTurn
from proxy.errors import LegError
from proxy.fleet import Fleet, Instance, Status
from proxy.fleet.fullness import FULL
from proxy.happenings import HoldEnded, Tell
from proxy.headers import REQUEST_ID
from proxy.logs import Occasionally
from proxy.phases import Phase
from proxy.request.deadlines import within
from proxy.request.dialects import COMPLETIONS
from proxy.serving.custody import Hold, HoldState
from proxy.serving.custody_at_once import Crossing
from proxy.serving.exchange import Call
from proxy.serving.ports import Client
from proxy.serving.waits import WAITS, Waits

REFUSED = frozenset({400, 404})
"""The statuses with which an engine answers a release that it has carried out."""

MAX_ANSWER_BYTES = 64 << 10
"""The largest answer to a release that is read: it is a refusal, some hundred bytes."""

MAX_ASKED = 3
"""Decode instances that are asked before a hold counts as stranded."""

STRANDED_TOLD_EVERY_S = 60.0
"""How often stranded holds are logged at most: an engine that dies strands all that it held at once."""

log = logging.getLogger(__name__)


class Releases:
    """Gives holds back."""

    def __init__(
        self,
        fleet: Fleet,
        client: Client,
        tell: Tell,
        clock: Callable[[], float],
        waits: Waits = WAITS,
    ) -> None:
        self._fleet = fleet
        self._client = client
        self._tell = tell
        self._clock = clock
        self._waits = waits
        self._stranded = Occasionally(clock, STRANDED_TOLD_EVERY_S)

    def begun(self, hold: Hold | Crossing) -> None:
        """A prefill leg was answered: count its hold on its instance, if blocks wait there."""
        if hold.waited:
            self._fleet.hold_began(hold.instance)

    def ended(self, hold: Hold | Crossing) -> None:
        """A hold has ended: count it on its instance no more, and tell `HoldEnded`. MUST be called exactly
        once for each.
        """
        if hold.waited:
            self._fleet.hold_ended(hold.instance)
        if not hold.counted:
            return
        self._tell(HoldEnded(hold.instance, hold.state))
        if hold.state is HoldState.STRANDED and (count := self._stranded.count()):
            log.warning(
                "prefilled blocks of %d prompts were not given back: held until their lease ends", count
            )

    async def release(self, call: Call, plan: InTurn, hold: Hold, tried: Sequence[str] = ()) -> None:
        """Have a decode engine release a hold. It has ended when this returns: released, or else stranded.

        `tried`: the decode instances that were sent the hold. Takes at most `waits.release_s`.
        """
        try:
            async with asyncio.timeout(min(self._waits.release_s, hold.lease_left_s(self._clock()))):
                if await self._given_back(call, plan, hold, tried):
                    hold.released()
        except TimeoutError:
            pass
        finally:
            if not hold.ended:
                hold.stranded()
            self.ended(hold)

    async def _given_back(self, call: Call, plan: InTurn, hold: Hold, tried: Sequence[str]) -> bool:
        body = plan.legs.release_body(COMPLETIONS.least(), hold.handoff)
        prefill = self._fleet.get(hold.instance)
        if body is None or (prefill is not None and prefill.status is Status.DOWN):
            return False  # of one that was removed they are released: it may still live
        peer = hold.handoff.engine_id
        there = [i for i in self._fleet.of(Phase.DECODE) if i.status is Status.UP]
        there.sort(key=lambda i: (i.draining, not i.has_pulled_from(peer), i.address not in tried))
        while True:
            full = False
            for decode in there[:MAX_ASKED]:
                status = await self._send(call, decode, body, first_contact=not decode.has_pulled_from(peer))
                if status in REFUSED:
                    return True
                full = full or status in FULL
            if not full:
                return False
            await asyncio.sleep(self._waits.full_pause_s)

    async def _send(self, call: Call, decode: Instance, body: bytes, *, first_contact: bool) -> int | None:
        """Send a release, several times if it is a first contact. Returns the status of the last answer, one
        of REFUSED if the release was carried out.
        """
        status = await self._ask(call, decode.address, body)
        for pause_s in self._waits.first_contact_pauses_s if first_contact else ():
            if status not in REFUSED:
                break
            await asyncio.sleep(pause_s)
            status = await self._ask(call, decode.address, body)
        return status

    async def _ask(self, call: Call, address: str, body: bytes) -> int | None:
        """The status of a decode engine's answer to one release; None if there was no answer."""
        headers = [*call.headers, (REQUEST_ID, call.leg_id)]
        try:
            with ExitStack() as stack, within(self._waits.release_ask_s, address, "the answer to a release"):
                answer = await self._client.post(address, COMPLETIONS.path, body, headers)
                stack.callback(answer.close)
                await answer.read(MAX_ANSWER_BYTES)
        except LegError:
            return None
        return answer.status
