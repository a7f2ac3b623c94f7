"""Invariant: a stand-in owns all that it opens (ports, tasks, sockets), and closing it closes all of them.

The live stand-in: engine models behind real sockets on the loopback address.

    async with StandIn(StandInConfig(block_size=16)) as engine:
        ...  # engine.url, engine.model.holds, engine.faults, await engine.restart()
"""

import asyncio
import uuid
from collections import Counter, deque
from collections.abc import Sequence
from functools import cache
from itertools import count
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from aiohttp.typedefs import Middleware

from proxy.simulation.api.adapters import Adapters
from proxy.simulation.api.errors import EngineFullError
from proxy.simulation.api.routes import ROUTES, GeneratingRoute
from proxy.simulation.api.validation import Checker
from proxy.simulation.engine.engine import EngineModel
from proxy.simulation.engine.text import Voice
from proxy.simulation.engine.tokenizer import END, Tokenizer, load_tokenizer
from proxy.simulation.live.admin import Seen, admin_app, watch
from proxy.simulation.live.config import StandInConfig
from proxy.simulation.live.faults import Faults
from proxy.simulation.live.handlers import Handlers
from proxy.simulation.live.http_edge import InFlight, echo_request_id, guard, let_any_origin_read, refusals
from proxy.simulation.live.metrics import EngineMetrics
from proxy.simulation.live.publisher import Publisher
from proxy.simulation.live.rank import Rank
from proxy.simulation.live.responses import ResponseStore
from proxy.simulation.live.side_channel import SideChannelClient
from proxy.tasks import TaskOwner

_BODY_LIMIT = 256 * 1024 * 1024
MAX_HEADER_BYTES = 4 << 20
"""The largest head of a request: vLLM's --h11-max-incomplete-event-size."""
BACKLOG = 2048
"""Connections that may wait to be accepted: uvicorn's default, which vLLM keeps."""
_REMEMBERED = 1000
_LAST_ANSWERS_S = 1.0


@cache
def _tokenizer() -> Tokenizer:
    return load_tokenizer()


class StandIn:
    """One stand-in engine. Ports that were 0 in the configuration stay the same over a restart."""

    def __init__(
        self,
        config: StandInConfig | None = None,
        routes: Sequence[GeneratingRoute] = ROUTES,
        before: Sequence[Middleware] = (),
    ) -> None:
        """`routes`: the generating routes. `before`: middlewares that get a request before it is read, such
        as those of a KV connector that is not modelled.
        """
        self.config = config or StandInConfig()
        self._routes = routes
        self._before = before
        self.tokenizer = _tokenizer()
        self.adapters = Adapters(self.config.model, self.config.loras)
        self.checker = Checker(
            self.tokenizer,
            self.config.model,
            self.adapters,
            self.config.max_model_len,
            self.config.greeting,
            tool_parser=self.config.tool_parser,
            excludes_tools=self.config.excludes_tools,
            images=self.config.images,
        )
        self.faults = Faults()
        self.seen: deque[Seen] = deque(maxlen=_REMEMBERED)
        self.asked: Counter[str] = Counter()
        """The number of requests, by path."""
        self.responses = ResponseStore(keeps=self.config.responses_store)
        self.in_flight = InFlight()
        self.dead = False
        self.ended = asyncio.Event()
        """Set when the engine has died, as the process of a real one exits."""
        self.ranks: list[Rank] = []
        self.metrics: EngineMetrics
        self.port = self.config.port
        self.admin_port = self.config.admin or 0
        self._side_ports = self._spread(self.config.side_port)
        self._event_ports = self._spread(self.config.events)
        self._replay_ports = self._spread(self.config.replay)
        self._turn = count()
        self._tasks = TaskOwner("stand-in")
        self._client: SideChannelClient | None = None
        self._runner: web.AppRunner | None = None
        self._admin: web.AppRunner | None = None
        self._site: web.TCPSite | None = None

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        await self.stop()

    # What there is.

    @property
    def url(self) -> str:
        """The URL of the API."""
        return f"http://{self.config.host}:{self.port}"

    @property
    def address(self) -> str:
        """`host:port` of the API."""
        return f"{self.config.host}:{self.port}"

    @property
    def model(self) -> EngineModel:
        """The engine model of rank 0."""
        return self.ranks[0].model

    @property
    def publisher(self) -> Publisher:
        """The event publisher of rank 0. Raises ValueError if the stand-in publishes no events."""
        publisher = self.ranks[0].publisher
        if publisher is None:
            raise ValueError("this stand-in publishes no events")
        return publisher

    @property
    def events_endpoint(self) -> str:
        """The endpoint of rank 0's events, with the host filled in."""
        return (self.publisher.endpoint or "").replace("*", self.config.host)

    @property
    def replay_endpoint(self) -> str:
        """The endpoint of rank 0's replays, with the host filled in."""
        return (self.publisher.replay_endpoint or "").replace("*", self.config.host)

    def event_sources(self) -> Any:
        """The answer of /kv_event_sources."""
        config = self.config
        told = {
            str(rank.number): {
                "enable_kv_cache_events": True,
                "publisher": "zmq",
                "endpoint": rank.publisher.endpoint,
                "replay_endpoint": rank.publisher.replay_endpoint,
                "buffer_steps": config.buffer_steps,
                "hwm": config.hwm,
                "max_queue_size": 100_000,
                "topic": config.topic,
            }
            for rank in self.ranks
            if rank.publisher is not None
        }
        if config.sources_form == "array":
            return [{"data_parallel_rank": int(rank), **source} for rank, source in told.items()]
        return told if config.sources_form == "object" else {"publishers": list(told.values())}

    @property
    def refusing(self) -> bool:
        """Whether the API's port is closed."""
        return self._runner is None

    def least_loaded(self) -> Rank:
        """The rank for a request that names none; of equally loaded ranks each in turn."""
        first = next(self._turn) % len(self.ranks)
        return min(self.ranks[first:] + self.ranks[:first], key=lambda rank: rank.load)

    def check_admission(self, sequences: int, taken: Sequence[Sequence[int]] = ()) -> None:
        """Raises EngineFullError, in vLLM's words, if so many sequences of one prompt are too much for this
        engine.

        `taken`: the earlier prompts of the same request, each of as many sequences.
        """
        config = self.config
        if config.max_queued_requests is not None:
            unfinished = sum(rank.load for rank in self.ranks) + sequences * len(taken)
            if unfinished + sequences > config.max_queued_requests:
                self.metrics.rejected("max_num_queued_reqs")
                raise EngineFullError("is currently busy and cannot accept new requests")
        if config.max_queued_tokens is not None:
            queued = sum(rank.model.queued_tokens for rank in self.ranks)
            if queued + sequences * sum(map(len, taken)) >= config.max_queued_tokens:
                self.metrics.rejected("max_num_queued_tokens")
                raise EngineFullError("has reached its prefill token backlog limit")

    # Its life.

    async def start(self) -> None:
        """Open everything; returns when requests are served. Raises OSError, with nothing left open, if a
        port is taken.
        """
        try:
            await self._start_engine()
            await self.accept()
            if self.config.admin is not None:
                await self._start_admin()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Close everything at once, without a message."""
        await self._tasks.close()
        await self.refuse()
        await self._stop_engine()
        if self._admin is not None:
            await self._admin.cleanup()
            self._admin = None

    async def restart(self) -> None:
        """Become a new process on the same ports: an empty cache, no holds, event numbers from 0, another
        engine id.
        """
        await self.refuse()
        await self._stop_engine()
        self.dead = False
        self.adapters.start_anew()
        self.ended.clear()
        await self._start_engine()
        await self.accept()

    async def refuse(self) -> None:
        """Close the API's port and cut its connections; the engine behind it lives on."""
        if self._runner is None:
            return
        runner, self._runner, self._site = self._runner, None, None
        await _accept_no_more(runner)
        if runner.server is not None:
            for connection in runner.server.connections:
                if connection.transport is not None:
                    connection.transport.abort()
        await runner.cleanup()

    async def accept(self) -> None:
        """Open the API's port."""
        if self._runner is not None:
            return
        app = web.Application(
            middlewares=[watch(self), refusals, guard(self.config.api_key), *self._before],
            client_max_size=_BODY_LIMIT,
        )
        app.add_routes(Handlers(self, self._routes).routes)
        if self.config.any_origin:
            app.on_response_prepare.append(let_any_origin_read)
        if self.config.request_id_headers:
            app.on_response_prepare.append(echo_request_id)
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=self.config.keep_alive_s,
            shutdown_timeout=0.0,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, self.config.host, self.port, backlog=BACKLOG)
        await self._site.start()
        self.port = self._runner.addresses[0][1]

    def die(self) -> None:
        """Let the engine die: waiting requests get an error, then the port closes."""
        if self.dead:
            return
        self.dead = True
        for rank in self.ranks:
            rank.fail()
        self._tasks.create(self._end(), name="end")

    async def _end(self) -> None:
        await self.in_flight.drained(_LAST_ANSWERS_S)
        await self.refuse()
        await self._stop_engine()
        self.ended.set()

    # Inside.

    async def _start_engine(self) -> None:
        config = self.config
        shape = config.shape()
        voice = Voice(self.tokenizer.words(), END, config.eos_every)
        models = [EngineModel(shape, voice, str(uuid.uuid4())) for _ in range(config.ranks)]
        self.metrics = EngineMetrics(models, loras=bool(config.loras) or config.lora_updates)
        self._client = SideChannelClient(config.side_timeout_s)
        self.ranks = []
        for number, model in enumerate(models):
            publisher = self._publisher(number)
            rank = Rank(number, model, publisher, self.metrics, self._client, self.die)
            self.ranks.append(rank)  # from now on it is closed with the others
            if publisher is not None:
                self._open(publisher, number)
            self._side_ports[number] = await rank.start(config.host, self._side_ports[number] or 0)

    async def _stop_engine(self) -> None:
        await self.responses.close()
        for rank in self.ranks:
            await rank.stop()
        if self._client is not None:
            self._client.close()

    def _publisher(self, number: int) -> Publisher | None:
        config = self.config
        if config.events is None and config.events_connect is None:
            return None
        return Publisher(
            rank=number,
            topic=config.topic,
            buffer_steps=config.buffer_steps,
            hwm=config.hwm,
            form=config.event_form,
            clock_offset_s=config.clock_offset_s,
        )

    def _open(self, publisher: Publisher, number: int) -> None:
        port, replay, connect = (
            self._event_ports[number],
            self._replay_ports[number],
            self.config.events_connect,
        )
        endpoint = f"tcp://*:{port}"
        if connect is not None:
            host, _, first = connect.rpartition(":")
            endpoint = f"{host}:{int(first) + number}"
        publisher.open(endpoint, None if replay is None else f"tcp://*:{replay}")
        if connect is None:
            self._event_ports[number] = _port(publisher.endpoint)
        if replay is not None:
            self._replay_ports[number] = _port(publisher.replay_endpoint)

    def _spread(self, port: int | None) -> list[int | None]:
        return [port + number if port else port for number in range(self.config.ranks)]

    async def _start_admin(self) -> None:
        self._admin = web.AppRunner(admin_app(self), access_log=None, shutdown_timeout=0.0)
        await self._admin.setup()
        await web.TCPSite(self._admin, self.config.host, self.config.admin or 0).start()
        self.admin_port = self._admin.addresses[0][1]


def _port(endpoint: str | None) -> int | None:
    return int(endpoint.rsplit(":", 1)[1]) if endpoint else None


async def _accept_no_more(runner: web.AppRunner) -> None:
    """Leave new connections to the kernel, and let those under way arrive.

    When a server closes, asyncio drops, without closing it, a socket that was accepted and whose connection
    is not set up yet.
    """
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.SelectorEventLoop):
        return
    for site in runner.sites:
        server = getattr(site, "_server", None)
        for sock in server.sockets if server is not None else ():
            loop.remove_reader(sock.fileno())
    await asyncio.sleep(0.01)
