"""A kvproxy in this process, in front of stand-in engines, for tests on real sockets."""

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import aiohttp
import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry

from proxy.admission import Gate
from proxy.config import Config, Rules, parse_instance
from proxy.connectors import Connector
from proxy.doctor.shown import DoctorShown
from proxy.edge.access.authentication import LOAD_ADAPTER, UNLOAD_ADAPTER
from proxy.edge.app import create_runner
from proxy.edge.app_keys import SERVICE
from proxy.edge.patience import PATIENCE, Patience
from proxy.edge.shown.explanation import ExplanationShown
from proxy.edge.shown.operators import AdaptersTold, Changed
from proxy.edge.shown.status import StatusShown
from proxy.fleet import Fleet
from proxy.happenings import Consumer
from proxy.observability.series import Series
from proxy.phases import Role
from proxy.request.dialects import DIALECTS, Dialect
from proxy.scheduling.policies import LeastLoad
from proxy.scheduling.types import AnyPolicy, Candidate, Leg
from proxy.serving.waits import Waits
from proxy.shown import Shown
from proxy.simulation import ROUTES, GeneratingRoute, StandIn, StandInConfig
from proxy.simulation.engine.latency import PROFILES
from proxy.snapshots.keeper import StateKeeper
from proxy.tuning import TUNING, Tuning
from proxy.watching.membership.base import MembershipSource

ADMIN_KEY = "admin-key"
DEADLINE_S = 20.0
QUICK = Waits(first_contact_pauses_s=(0.1, 0.4))
"""Stand-ins shake hands at once, so that nobody need wait for it as long as for an engine."""

UNHURRIED = {"profile": PROFILES["tiny-cpu"]}
"""Settings of stand-ins that decode as slowly as a real engine: an answer then comes after its prefill's
events."""

SHOWN: Mapping[str, type[Shown]] = {
    "/status": StatusShown,
    "/explain": ExplanationShown,
    "/doctor": DoctorShown,
    "/instances/add": Changed,
    "/instances/drain": Changed,
    "/instances/remove": Changed,
    LOAD_ADAPTER: AdaptersTold,
    UNLOAD_ADAPTER: AdaptersTold,
}
"""What operators are answered with 200: every such answer of every test is held to it."""

WORDS = ("a", "module", "and", "every", "function", "returns", "some", "value", "by", "key", "or", "path")


async def wait_until(condition: Callable[[], bool], what: str = "the condition") -> None:
    """Wait for something to become true, at most DEADLINE_S."""
    for _ in range(int(DEADLINE_S / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{what} did not come about within {DEADLINE_S:g} s")


def prose(words: int, seed: int = 0) -> str:
    """Some text of about that many tokens, another for every seed."""
    return " ".join([f"text {seed}", *(WORDS[(seed + i * i) % len(WORDS)] for i in range(words))])


class Answer:
    """A response, read whole."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of a stream's events; the last is the text that ends a complete one."""
        datas = [event.removeprefix("data: ") for event in self.body.decode().split("\n\n") if event]
        return [data if data == "[DONE]" else json.loads(data) for data in datas]

    @property
    def text(self) -> str:
        """What was generated, streamed or not."""
        answers = [event for event in self.events if event != "[DONE]"] if self.streamed else [self.json]
        parts = []
        for choice in (choice for answer in answers for choice in answer["choices"]):
            message = choice.get("delta") or choice.get("message") or {}
            parts.append(choice.get("text") or message.get("content") or "")
        return "".join(parts)

    @property
    def by_choice(self) -> dict[int, str]:
        """The text of each choice of a completion, by its index."""
        texts: dict[int, str] = {}
        for answer in [event for event in self.events if event != "[DONE]"] if self.streamed else [self.json]:
            for choice in answer["choices"]:
                texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
        return texts

    @property
    def streamed(self) -> bool:
        return bool(self.headers["Content-Type"].startswith("text/event-stream"))


async def ask(
    session: aiohttp.ClientSession, base: str, path: str, body: Any = None, **headers: str
) -> Answer:
    """POST `body` as JSON (bytes as they are), or GET without one; header names with _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = None if body is None else io.BytesIO(data)
    method = "GET" if body is None else "POST"
    head = {"Content-Type": "application/json"} | named if body is not None else named
    async with session.request(method, base + path, data=sent, headers=head) as response:
        answer = Answer(response.status, response.headers, await response.read())
    if answer.status == 200 and (shown := SHOWN.get(path)) is not None:
        msgspec.json.decode(answer.body, type=shown)  # which raises if it is not what the schema says
    return answer


class InOrder:
    """A policy: the lowest address that is usable."""

    def costs(self, _leg: Leg, candidates: Sequence[Candidate]) -> list[float]:
        order = sorted(c.instance for c in candidates)
        return [float(order.index(c.instance)) for c in candidates]


class Rather(LeastLoad):
    """A policy: these instances before all others. Where there are none of them, those with the least
    load.
    """

    def __init__(self, *instances: str) -> None:
        self._first = instances

    def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> list[float]:
        loads = super().costs(leg, candidates)
        return [
            -1.0 if c.instance in self._first else load for c, load in zip(candidates, loads, strict=True)
        ]


class Service:
    """A running kvproxy."""

    def __init__(self, runner: web.AppRunner, urls: Sequence[str], session: aiohttp.ClientSession) -> None:
        self.app = runner.app
        self.runner = runner
        self.session = session
        host, port = runner.addresses[0][:2]
        self.host, self.port = str(host), int(port)
        self.url, *others = urls
        self.admin_url = others[0] if others else self.url

    @property
    def fleet(self) -> Fleet:
        return self.app[SERVICE].fleet

    @property
    def rules(self) -> Rules:
        return self.app[SERVICE].rules

    @property
    def registry(self) -> CollectorRegistry:
        return self.app[SERVICE].registry

    @property
    def gate(self) -> Gate:
        return self.app[SERVICE].gate

    @property
    def keeper(self) -> StateKeeper:
        """Of a kvproxy with a state directory."""
        keeper = self.app[SERVICE].snapshots
        assert keeper is not None
        return keeper

    @property
    def running_tasks(self) -> int:
        """Legs and releases that have not ended."""
        return len(self.app[SERVICE].director._tasks)

    @property
    def claims(self) -> int:
        return sum(instance.running_legs() for instance in self.fleet)

    async def ask(self, path: str, body: Any = None, **headers: str) -> Answer:
        return await ask(self.session, self.url, path, body, **headers)

    async def chat(self, content: str | list[dict[str, Any]], **members: Any) -> Answer:
        messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
        body = {"model": "tiny", "messages": messages, "max_tokens": 8, "temperature": 0} | members
        return await self.ask("/v1/chat/completions", body)

    async def complete(self, prompt: Any, **members: Any) -> Answer:
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 8, "temperature": 0} | members
        return await self.ask("/v1/completions", body)

    async def explain(self, body: dict[str, Any]) -> Any:
        return (await self.ask("/explain", body, X_API_Key=ADMIN_KEY)).json

    async def admin(self, path: str, body: Any) -> Answer:
        return await self.ask(path, body, X_API_Key=ADMIN_KEY)

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""
        text = (await self.ask("/metrics")).body.decode()
        total = 0.0
        for line in text.splitlines():
            series, _, value = line.rpartition(" ")
            series_name, _, series_labels = series.partition("{")
            if series_name == name and all(f'{k}="{v}"' in series_labels for k, v in labels.items()):
                total += float(value)
        return total

    async def counts(self, count: float, name: str, **labels: str) -> None:
        """Wait until a metric has come to this, at most DEADLINE_S, and no further."""
        last = -1.0
        for _ in range(int(DEADLINE_S / 0.02)):
            last = await self.metric(name, **labels)
            if last >= count:
                break
            await asyncio.sleep(0.02)
        assert last == count, f"{name} of {labels}"

    async def settled(self) -> None:
        """Wait until nothing is in flight any more."""
        await wait_until(
            lambda: not self.claims and not self.running_tasks, "the end of all legs and releases"
        )


class Engines:
    """Stand-ins by role."""

    def __init__(
        self, prefill: Sequence[StandIn], decode: Sequence[StandIn], both: Sequence[StandIn]
    ) -> None:
        self.prefill, self.decode, self.both = prefill, decode, both

    @property
    def all(self) -> list[StandIn]:
        return [*self.prefill, *self.decode, *self.both]

    @property
    def holds(self) -> int:
        return sum(len(engine.model.holds) for engine in self.all)

    def config(self, **settings: Any) -> Config:
        """Every request has two legs, as most tests count them, unless `settings` say otherwise."""
        roles = ((Role.PREFILL, self.prefill), (Role.DECODE, self.decode), (Role.BOTH, self.both))
        instances = tuple(parse_instance(e.address, role) for role, engines in roles for e in engines)
        defaults: dict[str, Any] = {
            "model": "tiny",
            "instances": instances,
            "admin_api_key": ADMIN_KEY,
            "policy": "cache_affinity",
        }
        return Config(**(defaults | settings))


@contextlib.asynccontextmanager
async def engines(
    prefill: int = 2,
    decode: int = 2,
    both: int = 0,
    *,
    routes: Sequence[GeneratingRoute] = ROUTES,
    **settings: Any,
) -> AsyncIterator[Engines]:
    """So many stand-ins with these generating routes; `settings` are those of StandInConfig."""
    async with contextlib.AsyncExitStack() as stack:
        made = [
            await stack.enter_async_context(StandIn(StandInConfig(**settings), routes))
            for _ in range(prefill + decode + both)
        ]
        yield Engines(made[:prefill], made[prefill : prefill + decode], made[prefill + decode :])


@contextlib.asynccontextmanager
async def kvproxy(
    config: Config,
    policy: AnyPolicy | None = None,
    *,
    ready: bool = True,
    sources: Sequence[MembershipSource] = (),
    dialects: Sequence[Dialect] = DIALECTS,
    patience: Patience = PATIENCE,
    waits: Waits = QUICK,
    tuning: Tuning = TUNING,
    consumers: Sequence[Consumer] = (),
    series: Sequence[Series] = (),
    connector: Connector | None = None,
) -> AsyncIterator[Service]:
    """A running kvproxy; `ready`: wait until it can serve and follows its engines' events."""
    runner = create_runner(
        msgspec.structs.replace(config, port=0),
        policy,
        dialects,
        sources=sources,
        patience=patience,
        waits=waits,
        tuning=tuning,
        consumers=consumers,
        series=series,
        connector=connector,
    )
    async with contextlib.AsyncExitStack() as stack:
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        urls = await runner.listen()
        session = await stack.enter_async_context(aiohttp.ClientSession(auto_decompress=False))
        service = Service(runner, urls, session)
        if ready:
            await wait_until(
                lambda: all(
                    i.why_unusable() is None
                    and (not config.kv_events or all(s.state == "exact" for s in i.sources.values()))
                    for i in service.fleet
                ),
                "readiness",
            )
        yield service


class Pair:
    """Engines and the kvproxy in front of them."""

    def __init__(self, engines_: Engines, service: Service) -> None:
        self.engines = engines_
        self.service = service


@contextlib.asynccontextmanager
async def fleet(
    prefill: int = 2,
    decode: int = 2,
    both: int = 0,
    *,
    policy: AnyPolicy | None = None,
    stand_in: Any = None,
    dialects: Sequence[Dialect] = DIALECTS,
    patience: Patience = PATIENCE,
    waits: Waits = QUICK,
    tuning: Tuning = TUNING,
    consumers: Sequence[Consumer] = (),
    series: Sequence[Series] = (),
    **settings: Any,
) -> AsyncIterator[Pair]:
    """Stand-ins and a ready kvproxy in front of them; `settings` are those of Config."""
    async with (
        engines(prefill, decode, both, **(stand_in or {})) as made,
        kvproxy(
            made.config(**settings),
            policy,
            dialects=dialects,
            patience=patience,
            waits=waits,
            tuning=tuning,
            consumers=consumers,
            series=series,
        ) as service,
    ):
        yield Pair(made, service)


__all__ = [
    "ADMIN_KEY",
    "QUICK",
    "UNHURRIED",
    "Answer",
    "Engines",
    "InOrder",
    "Pair",
    "Rather",
    "Service",
    "ask",
    "engines",
    "fleet",
    "kvproxy",
    "prose",
    "wait_until",
]
