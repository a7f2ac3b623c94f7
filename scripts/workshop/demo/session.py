"""Run the chats through kvproxy and show every decision, event and answer; say whether each was as
predicted.
"""

import asyncio
from typing import Any

import aiohttp

from scripts.workshop.demo.chats import CHATS, Message, arrivals, opening
from scripts.workshop.demo.events import follow
from scripts.workshop.demo.round_robin import RoundRobin
from scripts.workshop.demo.screen import Screen, Turn
from scripts.workshop.engines.engine import BLOCK_TOKENS
from scripts.workshop.engines.fleet import Fleet
from scripts.workshop.live.asking import CHAT, Answer, ask
from scripts.workshop.live.explaining import Explanation, explain
from scripts.workshop.live.proxy import ProxyProcess
from scripts.workshop.live.waiting import wait_until

_ANSWER_TOKENS = 40
_INDEX_S = 20
_SETTLE_S = 0.3  # for the eye only: the last answer's events are shown before the next question


class TurnFailedError(RuntimeError):
    """A turn got no answer."""


class Session:
    """All chats, in the order in which their turns arrive."""

    def __init__(
        self, http: aiohttp.ClientSession, fleet: Fleet, proxy: ProxyProcess, screen: Screen
    ) -> None:
        self._http = http
        self._fleet = fleet
        self._proxy = proxy
        self._screen = screen
        self._round_robin = RoundRobin(len(fleet.of_role("prefill")), BLOCK_TOKENS)
        self.turns: list[Turn] = []

    async def run(self) -> None:
        """Fill `turns`; TurnFailedError if one gets no answer."""
        history: dict[str, list[Message]] = {chat.name: opening(chat) for chat in CHATS}
        for count, (chat, number) in enumerate(arrivals()):
            messages = history[chat.name]
            messages.append({"role": "user", "content": chat.says[number]})
            text = await self._turn(chat.name, number + 1, messages, stream=count % 2 == 1)
            messages.append({"role": "assistant", "content": text})

    async def _turn(self, who: str, number: int, messages: list[Message], *, stream: bool) -> str:
        body: dict[str, Any] = {"model": "tiny", "messages": messages}
        body |= {"temperature": 0, "max_tokens": _ANSWER_TOKENS}
        self._screen.asked(who, number, messages[-1]["content"], stream=stream)
        told = await explain(self._http, self._proxy, body)
        self._show(told)
        prompt = await self._token_ids(body)
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        answer = await ask(self._http, self._proxy.url, CHAT, body)
        if answer.status != 200 or not answer.complete:
            raise TurnFailedError(f"{who}'s turn {number} got status {answer.status}: {answer.body[:500]!r}")
        turn = self._record(who, number, answer, self._round_robin.serve(prompt))
        await asyncio.sleep(_SETTLE_S)
        self._screen.answer(turn, answer.text, answer.body.count(b"data: ") if stream else 0)
        return answer.text

    def _show(self, told: Explanation) -> None:
        if told.bypass is not None:
            self._screen.whole(self._fleet.named(told.decode or ""))
        for role in ("prefill", "decode") if told.bypass is None else ("decode",):
            candidates = told.decision[role]["candidates"]
            named = {self._fleet.named(c["instance"]): c for c in candidates if c["usable"]}
            self._screen.decision(
                role,
                {name: c["cost"] for name, c in named.items()},
                {name: c["cached_tokens"] for name, c in named.items()},
            )

    async def wait_exact(self) -> None:
        """Wait until kvproxy knows what every engine holds; TimeoutError if it does not learn it."""
        body = {"model": "tiny", "messages": opening(CHATS[0])}

        async def exact() -> bool:
            told = await explain(self._http, self._proxy, body)
            roles = (told.decision["prefill"], told.decision["decode"])
            return all(c["index"] == "exact" for role in roles for c in role["candidates"])

        await wait_until(exact, _INDEX_S, "kvproxy knows every engine's cache")

    def _record(self, who: str, number: int, answer: Answer, round_robin: int) -> Turn:
        turn = Turn(
            who=who,
            number=number,
            prompt_tokens=answer.prompt_tokens,
            prefill=self._fleet.named(answer.prefill),
            decode=self._fleet.named(answer.decode),
            predicted=answer.predicted,
            reported=answer.reported,
            round_robin=round_robin,
        )
        self.turns.append(turn)
        return turn

    async def _token_ids(self, body: dict[str, Any]) -> list[int]:
        asked = {key: body[key] for key in ("model", "messages")}
        url = self._fleet.of_role("prefill")[0].url
        async with self._http.post(f"{url}/tokenize", json=asked) as answer:
            answer.raise_for_status()
            tokens: list[int] = (await answer.json())["tokens"]
            return tokens


async def run_session(fleet: Fleet, proxy: ProxyProcess, screen: Screen) -> list[Turn]:
    """Return the turns; TurnFailedError or aiohttp.ClientError if one gets no answer."""
    timeout = aiohttp.ClientTimeout(total=60)
    connector = aiohttp.TCPConnector(force_close=True)  # engines close idle connections after 5 s
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as http:
        session = Session(http, fleet, proxy, screen)
        try:
            async with asyncio.TaskGroup() as group:
                following = group.create_task(follow(list(fleet.specs.values()), screen.event))
                await session.wait_exact()
                await session.run()
                following.cancel()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
    return session.turns
