"""The life of a request, by two-way transcripts: what goes out to engines, what comes in, what its client
gets.

    > p0 prefill        a leg goes out: prefill, decode (with blocks), whole (all in one) or release
    < p0 blocks         an engine answers: with blocks, `text`, `stream`, a status, or not at all
    x d0                the leg there is ended by kvproxy
    - leaves            its client leaves
    +25                 seconds pass
    = 200 text          what its client gets
    ends pulled         how its holds ended, in order

At the end of each, and wherever it is cut off, everything that was taken is given back.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import pytest

from kvevents import PrefixIndex, Prompt
from proxy.admission import Gate, Ticket
from proxy.caches.accuracy import Accuracy
from proxy.config import Config, Rules, parse_instance
from proxy.connectors import Connector
from proxy.connectors.nixl import REFUSED_MODEL, NixlConnector
from proxy.errors import ConnectFailedError, ConnectTimeoutError, LegBrokenError, LegError, RequestError
from proxy.fleet import Fleet, Instance, ModelCard
from proxy.happenings import Happening, HoldEnded
from proxy.headers import Headers
from proxy.phases import Phase, Role
from proxy.request import dialects
from proxy.request.body import Encoded
from proxy.request.generation import read_request
from proxy.request.uploads import Upload
from proxy.scheduling.placement import Placement
from proxy.serving.director import Director
from proxy.serving.exchange import Call, Reply
from proxy.serving.healing import Healing
from proxy.serving.waits import Waits
from proxy.tasks import TaskOwner
from proxy.tokenizing import Tokenized
from tests.additions.test_a_connector import Rendezvous
from tests.helpers.service import InOrder

DEADLINE_S = 20.0
LEASE_S = 30.0
PROMPT_TOKENS = 64
EVENT = b'data: {"choices":[{"index":0,"text":"text","finish_reason":null}]}\n\n'
DONE = b"data: [DONE]\n\n"
TEXT = {"choices": [{"index": 0, "text": "text"}], "usage": {"prompt_tokens": PROMPT_TOKENS}}
BLOCKS = TEXT | {"kv_transfer_params": {"remote_engine_id": "engine", "remote_block_ids": [1, 2]}}
FAULTS: dict[str, Callable[[str], LegError]] = {
    "refused": lambda instance: ConnectFailedError(instance, "connection refused"),
    "unreachable": lambda instance: ConnectTimeoutError(instance, "no connection in time"),
    "breaks": lambda instance: LegBrokenError(instance, "the connection ended early"),
}


class Answer:
    """An engine's answer that is there at once; a stream may break after its first event."""

    def __init__(self, instance: str, words: str) -> None:
        self.instance = instance
        self.is_event_stream = words in {"stream", "broken-stream"}
        self.status = int(words) if words.isdigit() else 200
        self.headers: Headers = []
        self.closed = False
        body = {"blocks": BLOCKS, "text": TEXT, "nothing": {}}.get(words, {"error": {"message": words}})
        self._body = json.dumps(body).encode()
        self._chunks = [EVENT, *([] if words == "broken-stream" else [DONE])]

    async def read(self, max_bytes: int | None = None) -> bytes:
        await asyncio.sleep(0)
        return self._body

    async def next_chunk(self, limit_s: float | None = None) -> bytes:
        await asyncio.sleep(0)
        assert not self.closed
        return self._chunks.pop(0) if self._chunks else b""

    async def pour(self, take: Callable[[bytes], bool], limit_s: float) -> None:  # never late
        while self._chunks and take(await self.next_chunk()):
            pass

    def close(self) -> None:
        self.closed = True


class Engines:
    """Legs go out here, and are answered when the test says so."""

    def __init__(self) -> None:
        self.out: asyncio.Queue[str] = asyncio.Queue()
        self.waiting: dict[str, asyncio.Future[str]] = {}
        self.answers: list[Answer] = []
        self.by_themselves: Callable[[str], str] | None = None
        """How legs are answered, each after two turns of the loop, where no test does."""

    async def post(self, instance: str, _path: str, body: Encoded, _headers: Headers) -> Answer:
        leg = f"{instance.removesuffix(':1')} {_leg(json.loads(bytes(body)))}"
        if self.by_themselves is not None:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            words = self.by_themselves(leg)
        else:
            answer = self.waiting[leg.split(maxsplit=1)[0]] = asyncio.get_running_loop().create_future()
            self.out.put_nowait(leg)
            words = await answer
        if words in FAULTS:
            raise FAULTS[words](instance)
        self.answers.append(Answer(instance, words))
        return self.answers[-1]

    async def upload(
        self, instance: str, path: str, body: Upload, headers: Headers, limit_s: float
    ) -> NoReturn:
        raise AssertionError("no upload is sent here")

    async def open(self, instance: str, path: str, headers: Headers, protocols: Sequence[str]) -> NoReturn:
        raise AssertionError("no socket is opened here")


def _leg(body: dict[str, Any]) -> str:
    params = body.get("kv_transfer_params")
    if params is None:
        return "whole"
    if body["model"] == REFUSED_MODEL:
        return "release"
    return "prefill" if params.get("do_remote_decode") else "decode"


class Book:
    """Keeps what happened."""

    def __init__(self) -> None:
        self.told: list[Happening] = []

    def ends(self) -> list[str]:
        """How holds ended."""
        return [told.end for told in self.told if isinstance(told, HoldEnded)]


class Watch:
    """Remembers who has served; does nothing about what else it is told."""

    def __init__(self) -> None:
        self.served: Counter[str] = Counter()

    def leg_served(self, address: str) -> None:
        self.served[address] += 1

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_: None


class Counting:
    """A tokenizer that counts as the engines do."""

    async def tokenize(self, *_: Any) -> Tokenized:
        await asyncio.sleep(0)
        return Tokenized(Prompt(range(PROMPT_TOKENS)), "text")

    async def measure(self, *_: Any) -> Tokenized:
        return Tokenized(None, "")

    def distrust(self, kind: str) -> None: ...

    def is_distrusted(self, kind: str) -> bool:
        return False


class Followed:
    state, epoch = "exact", 0


class Scene:
    """A director before two engines of each kind, or before two that do both; and one request."""

    def __init__(
        self,
        engines: str = "p0 p1 d0 d1",
        connector: Connector | None = None,
        *,
        grace_s: float = DEADLINE_S,
        **members: Any,
    ) -> None:
        self.now, self.watch = 100.0, Watch()
        self.fleet, self.engines, self.book, self.tasks = Fleet(), Engines(), Book(), TaskOwner("legs")
        for name in engines.split():
            role = {"p": Role.PREFILL, "d": Role.DECODE, "b": Role.BOTH}[name[0]]
            instance = Instance(parse_instance(f"{name}:1", role))
            instance.listed([ModelCard("tiny")], 0.0)
            instance.came_up()
            instance.is_followed({0: Followed()})
            self.fleet.add(instance)
        index, self.accuracy, rules = PrefixIndex(), Accuracy(lambda *_: True), Rules(Config(model="tiny"))
        clock = self.clock
        self.placement = Placement(
            self.fleet, index, InOrder(), "in_order", clock=clock, accuracy=self.accuracy
        )
        tell = self.book.told.append
        self.director = Director(
            fleet=self.fleet,
            placement=self.placement,
            gate=Gate(fleet=self.fleet, placement=self.placement, rules=rules, tell=tell, clock=clock),
            connector=connector or NixlConnector(),
            tokenizer=Counting(),
            client=self.engines,
            watch=self.watch,
            tell=tell,
            tasks=self.tasks,
            clock=clock,
            lease_s=LEASE_S,
            rules=rules,
            healing=Healing(self.fleet, index, tell, clock),
            waits=Waits(first_contact_pauses_s=(), full_pause_s=0.0, abandoned_prefill_s=grace_s),
        )
        body = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 4} | members).encode()
        request = read_request(dialects.COMPLETIONS, body, "tiny")
        self.call = Call(request, [], "leg", started_at=self.now, ticket=Ticket())
        self.at_once = isinstance(connector, Rendezvous)
        self.got: list[str] = []

    def clock(self) -> float:
        return self.now

    async def client(self) -> None:
        """What a client does: it reads its answer to the end."""
        try:
            reply = await self.director.serve(self.call)
        except RequestError as error:
            self.got.append(str(error.status))
            return
        streams = not isinstance(reply.body, bytes)
        assert self.running(Phase.DECODE) == streams, "a leg counts as long as its stream"
        assert self.at_once or not self.running(Phase.PREFILL)
        try:
            self.got.append(f"{reply.status} {await _read(reply)}")
        except LegError:
            self.got.append(f"{reply.status} cut")
        finally:
            reply.close()

    def running(self, *phases: Phase) -> int:
        """How many legs count now."""
        return sum(each.running_legs(phase) for each in self.fleet for phase in phases or Phase)

    def assert_nothing_is_left(self) -> None:
        """Claims, holds, open answers, comparisons, expected blocks, retries: all were given back."""
        assert self.running() == 0
        assert sum(each.fullness.legs for each in self.fleet) == 0
        assert not +Counter(self.fleet.holds)
        assert all(answer.closed for answer in self.engines.answers)
        assert self.placement._predicted.legs == 0
        assert not any(rank.removals._open for rank in self.accuracy._ranks.values())
        assert (self.director._budget.requests, self.director._budget.retries) == (0, 0)
        assert self.call.ticket.keepers == 0
        assert len(self.tasks) == 0


async def _read(reply: Reply) -> str:
    if isinstance(reply.body, bytes):
        return "text" if b"text" in reply.body else "error"
    assert isinstance(reply.body, AsyncIterator)
    run = b"".join([part async for part in reply.body])
    assert run == EVENT + DONE
    return "stream"


TRANSCRIPTS = """
two legs
    > p0 prefill
    < p0 blocks
    > d0 decode
    < d0 text
    = 200 text
    ends pulled

two legs, a stream
    > p0 prefill
    < p0 blocks
    > d0 decode
    < d0 stream
    = 200 stream
    ends pulled

a stream that is cut after it began
    > p0 prefill
    < p0 blocks
    > d0 decode
    < d0 broken-stream
    = 200 cut
    ends pulled

prefill cannot be connected to: another is, at once
    > p0 prefill
    < p0 refused
    > p1 prefill
    < p1 blocks
    > d0 decode
    < d0 text
    = 200 text
    ends pulled

prefill breaks: another is tried
    > p0 prefill
    < p0 breaks
    > p1 prefill
    < p1 blocks
    > d0 decode
    < d0 text
    = 200 text
    ends unknown pulled

prefill fails everywhere: its last words
    > p0 prefill
    < p0 500
    > p1 prefill
    < p1 500
    > p0 prefill
    < p0 500
    = 500 error
    ends

what a client did wrong is told by the prefill engine, once
    > p0 prefill
    < p0 400
    = 400 error
    ends

a prefill engine that names no blocks has failed
    > p0 prefill
    < p0 text
    > p1 prefill
    < p1 blocks
    > d0 decode
    < d0 text
    = 200 text
    ends pulled

decode cannot be connected to: another fetches the same blocks
    > p0 prefill
    < p0 blocks
    > d0 decode
    < d0 refused
    > d1 decode
    < d1 text
    = 200 text
    ends pulled

no decode can be connected to: the blocks are given back
    > p0 prefill
    < p0 blocks
    > d0 decode
    < d0 refused
    > d1 decode
    < d1 refused
    > d0 release
    < d0 404
    > p0 prefill
    < p0 blocks
    > d0 decode
    < d0 text
    = 200 text
    ends released pulled

decode fails: the blocks are given back where they were offered, and prefilled again
    > p0 prefill
    < p0 blocks
    > d0 decode
    < d0 500
    > d0 release
    < d0 404
    > p0 prefill
    < p0 blocks
    > d1 decode
    < d1 text
    = 200 text
    ends released pulled

nobody gives them back
    > p0 prefill
    < p0 blocks
    > d0 decode
    < d0 400
    > d0 release
    < d0 breaks
    > d1 release
    < d1 breaks
    = 400 error
    ends stranded

the lease is nearly over: prefilled again
    > p0 prefill
    < p0 blocks
    > d0 decode
    +25
    < d0 refused
    > d0 release
    < d0 404
    > p0 prefill
    < p0 blocks
    > d1 decode
    < d1 text
    = 200 text
    ends released pulled

its client leaves during prefill, which still answers
    > p0 prefill
    - leaves
    < p0 blocks
    > d0 release
    < d0 404
    ends released

its client leaves during prefill, which fails
    > p0 prefill
    - leaves
    < p0 500
    ends

its client leaves during prefill, which breaks
    > p0 prefill
    - leaves
    < p0 breaks
    ends unknown

its client leaves during decode
    > p0 prefill
    < p0 blocks
    > d0 decode
    - leaves
    > d0 release
    < d0 404
    ends released
"""


def transcripts(text: str) -> list[Any]:
    """Of each, its title and its lines."""
    found = []
    for block in text.strip().split("\n\n"):
        title, *lines = block.splitlines()
        found.append(pytest.param([line.strip() for line in lines], id=title))
    return found


async def play(scene: Scene, lines: Sequence[str]) -> "asyncio.Task[None]":
    """Have it all happen; the task of the client."""
    client = asyncio.get_running_loop().create_task(scene.client())
    for line in lines:
        match line.split(maxsplit=1):
            case [">", leg]:
                async with asyncio.timeout(DEADLINE_S):
                    assert await scene.engines.out.get() == leg
            case ["<", words]:
                name, answer = words.split()
                scene.engines.waiting.pop(name).set_result(answer)
            case ["x", name]:
                ended = scene.engines.waiting.pop(name)
                async with asyncio.timeout(DEADLINE_S):
                    await asyncio.wait({ended})
                assert ended.cancelled()
            case ["-", "leaves"]:
                client.cancel()
                with suppress(asyncio.CancelledError):
                    await client
            case ["=", words]:
                async with asyncio.timeout(DEADLINE_S):
                    await asyncio.wait({client})
                assert scene.got == [words]
            case ["ends", *ends]:
                assert await scene.tasks.drained(DEADLINE_S)
                assert scene.book.ends() == (ends[0].split() if ends else [])
            case [seconds]:
                scene.now += float(seconds)
    return client


@pytest.mark.parametrize("lines", transcripts(TRANSCRIPTS))
async def test_two_legs(lines: list[str]) -> None:
    stream = any("stream" in line for line in lines)
    scene = Scene(stream=stream)
    await play(scene, lines)
    assert scene.engines.out.empty()
    scene.assert_nothing_is_left()


ONE_LEG = """
one engine does both
    > b0 whole
    < b0 text
    = 200 text
    ends

it streams
    > b0 whole
    < b0 stream
    = 200 stream
    ends

it fails: another is tried
    > b0 whole
    < b0 breaks
    > b1 whole
    < b1 text
    = 200 text
    ends

its client leaves
    > b0 whole
    - leaves
    ends
"""


@pytest.mark.parametrize("lines", transcripts(ONE_LEG))
async def test_requests_that_one_leg_serves(lines: list[str]) -> None:
    scene = Scene("b0 b1", stream=any("stream" in line for line in lines))
    await play(scene, lines)
    assert scene.engines.out.empty()
    scene.assert_nothing_is_left()


async def test_a_prompt_that_was_not_read_is_read_once_contexts_differ() -> None:
    """Its engine fails, and by then another has come that cannot hold the prompt."""
    scene = Scene("b0 b1 b2")
    scene.placement._prompt_counts = False  # as of a policy that reads no prompt
    for instance in scene.fleet:
        instance.listed([ModelCard("tiny", max_model_len=PROMPT_TOKENS * 2)], 0.0)
    client = asyncio.get_running_loop().create_task(scene.client())
    assert await scene.engines.out.get() == "b0 whole"
    short = scene.fleet.get("b1:1")
    assert short is not None
    short.listed([ModelCard("tiny", max_model_len=PROMPT_TOKENS // 2)], 0.0)
    scene.engines.waiting["b0"].set_result("breaks")
    assert await scene.engines.out.get() == "b2 whole"
    scene.engines.waiting["b2"].set_result("text")
    await client
    assert scene.got == ["200 text"]
    scene.assert_nothing_is_left()


AT_ONCE = """
both legs go out before either is answered
    > p0 prefill
    > d0 decode
    < p0 text
    < d0 text
    = 200 text
    ends pulled

a stream begins before its prefill leg is answered
    > p0 prefill
    > d0 decode
    < d0 stream
    = 200 stream
    < p0 text
    ends pulled

prefill fails: decode is ended, and another pair is tried
    > p0 prefill
    > d0 decode
    < p0 500
    x d0
    > p1 prefill
    > d0 decode
    < p1 text
    < d0 text
    = 200 text
    ends pulled

prefill breaks: decode is ended, and another pair is tried
    > p0 prefill
    > d0 decode
    < p0 breaks
    x d0
    > p1 prefill
    > d0 decode
    < p1 text
    < d0 text
    = 200 text
    ends unknown pulled

decode fails: prefill is ended, and another pair is tried
    > p0 prefill
    > d0 decode
    < d0 500
    x p0
    > p0 prefill
    > d1 decode
    < p0 text
    < d1 text
    = 200 text
    ends unknown pulled

decode fails after prefill: what was prefilled is left to the engines
    > p0 prefill
    > d0 decode
    < p0 text
    < d0 breaks
    > p0 prefill
    > d1 decode
    < p0 text
    < d1 text
    = 200 text
    ends stranded pulled

what a client did wrong is told by whoever says it first
    > p0 prefill
    > d0 decode
    < d0 400
    x p0
    = 400 error
    ends unknown

it fails everywhere: the last words
    > p0 prefill
    > d0 decode
    < p0 500
    x d0
    > p1 prefill
    > d0 decode
    < p1 500
    x d0
    > p0 prefill
    > d0 decode
    < p0 500
    x d0
    = 500 error
    ends

its client leaves while both run
    > p0 prefill
    > d0 decode
    - leaves
    x p0
    x d0
    ends unknown

its client leaves after the prefill leg was answered
    > p0 prefill
    > d0 decode
    < p0 text
    - leaves
    x d0
    ends stranded
"""


@pytest.mark.parametrize("lines", transcripts(AT_ONCE))
async def test_two_legs_at_once(lines: list[str]) -> None:
    scene = Scene(connector=Rendezvous(), stream=any("stream" in line for line in lines))
    await play(scene, lines)
    assert scene.engines.out.empty()
    scene.assert_nothing_is_left()


@pytest.mark.parametrize(
    ("grace_s", "prefill", "served"),
    [(DEADLINE_S, "< p0 text", {"p0:1": 1, "d0:1": 1}), (0.0, "x p0", {"d0:1": 1})],
)
async def test_a_prefill_leg_whose_stream_is_over_is_answered_soon_or_ended(
    grace_s: float, prefill: str, served: dict[str, int]
) -> None:
    scene = Scene(connector=Rendezvous(), grace_s=grace_s, stream=True)
    lines = ["> p0 prefill", "> d0 decode", "< d0 stream", "= 200 stream", prefill, "ends pulled"]
    await play(scene, lines)
    assert scene.watch.served == served
    scene.assert_nothing_is_left()


def served(leg: str) -> str:
    return {"prefill": "blocks", "decode": "stream", "whole": "stream", "release": "404"}[leg.split()[1]]


def unlucky(leg: str) -> str:
    """Each first engine fails, in its own way."""
    return {"p0 prefill": "breaks", "d0 decode": "refused"}.get(leg, served(leg))


@pytest.mark.parametrize("answers", [served, unlucky])
@pytest.mark.parametrize(
    ("engines", "connector"),
    [("p0 p1 d0 d1", NixlConnector()), ("p0 p1 d0 d1", Rendezvous()), ("b0 b1", NixlConnector())],
    ids=["two legs", "at once", "one leg"],
)
async def test_whenever_its_client_leaves_all_is_given_back(
    engines: str, connector: Connector, answers: Callable[[str], str]
) -> None:
    """After each number of turns of the loop that a request takes until it is served."""
    turns, done = 0, False
    while not done:
        scene = Scene(engines, connector, stream=True)
        scene.engines.by_themselves = answers
        client = asyncio.get_running_loop().create_task(scene.client())
        for _ in range(turns):
            await asyncio.sleep(0)
        done = client.done()
        client.cancel()
        with suppress(asyncio.CancelledError):
            await client
        assert await scene.tasks.drained(DEADLINE_S)
        scene.assert_nothing_is_left()
        ends = scene.book.ends()
        assert set(ends) <= {"pulled", "unknown"} | ({"stranded"} if scene.at_once else {"released"})
        turns += 1
    assert scene.got == ["200 stream"]
    assert turns > 5
