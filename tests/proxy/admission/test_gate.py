"""Requests are let in as claims end and instances change; nobody polls, nobody is woken for nothing."""

import asyncio
import contextlib
import gc
import random
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from kvevents import PrefixIndex, Prompt
from proxy.admission import Admitted, Gate, Ticket
from proxy.config import Admission, Config, Rules, WhenNoPrefill, parse_instance
from proxy.errors import NotFoundError, RateLimitError, RequestError, UnavailableError
from proxy.fleet import Fleet, Instance, ModelCard
from proxy.fleet.circuit import Breaker, Circuit
from proxy.fleet.fullness import Fullness
from proxy.happenings import Happening, NoPrefill, QueueLeft, Refused
from proxy.phases import Phase, Role
from proxy.scheduling.placement import Expectation, Placement
from proxy.scheduling.policies import CacheAffinity, LeastLoad
from proxy.scheduling.question import Question
from proxy.scheduling.types import Candidate, Leg
from proxy.tasks import TaskOwner
from proxy.watching.checks import Check, Finding
from proxy.watching.health import HealthBook


class Counted(LeastLoad):
    """A policy that counts how often it is asked, and fails for one model."""

    def __init__(self) -> None:
        self.asked = 0

    def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> list[float]:
        self.asked += 1
        if leg.model == "broken":
            raise ValueError("a policy that fails")
        return super().costs(leg, candidates)


class Book:
    """Keeps what the gate tells."""

    def __init__(self) -> None:
        self.refusals: Counter[str] = Counter()
        self.actions: Counter[str] = Counter()
        self.waits = 0

    def __call__(self, happening: Happening) -> None:
        match happening:
            case QueueLeft(seconds):
                assert seconds >= 0
                self.waits += 1
            case Refused(reason):
                self.refusals[reason] += 1
            case NoPrefill(action):
                self.actions[action] += 1


class Unheard:
    """Engines that are not looked at."""

    def give_up(self, instance: str) -> None: ...

    def heard_at(self, instance: str) -> float | None: ...


class Scene:
    """A gate before instances without engines; requests hold their claims until they are told to end."""

    def __init__(
        self, prefill: int = 1, decode: int = 1, both: int = 0, *, timed: bool = False, **limits: Any
    ) -> None:
        """`timed`: placement goes by the loop's clock, as the gate does, and not by `now`."""
        self.now = 0.0
        loop = asyncio.get_running_loop()
        self.fleet = Fleet()
        self.policy = Counted()
        self.book = Book()
        config = Admission(**({"queue_timeout_s": 20.0} | limits))
        self.placement = Placement(
            self.fleet,
            PrefixIndex(),
            self.policy,
            "counted",
            clock=loop.time if timed else lambda: self.now,
            limits=config,
        )
        self.gate = Gate(
            fleet=self.fleet,
            placement=self.placement,
            rules=Rules(Config(model="tiny", admission=config)),
            tell=self.book,
            clock=loop.time,
        )
        self.tasks = TaskOwner("requests")
        self.running: dict[str, Admitted] = {}
        self.order: list[str] = []
        for role, count in ((Role.PREFILL, prefill), (Role.DECODE, decode), (Role.BOTH, both)):
            for n in range(count):
                self.add(f"{role}{n}:1", role)

    def add(self, address: str, role: Role, *models: str) -> Instance:
        instance = Instance(parse_instance(address, role))
        self.fleet.add(instance)
        instance.listed([ModelCard(model) for model in ("tiny", *models)], 0.0)
        instance.came_up()
        return instance

    def instance(self, address: str) -> Instance:
        found = self.fleet.get(address)
        assert found is not None
        return found

    async def serve(
        self,
        name: str,
        tokens: int,
        client: str,
        model: str,
        ticket: Ticket | None,
        whole: bool,
        generated: int,
    ) -> Admitted:
        question = Question(model, None, tokens, whole, generated_tokens=generated)
        ticket = ticket or Ticket(client)
        admitted = await self.gate.admit(ticket, question)
        self.running[name] = admitted
        self.order.append(name)
        return admitted

    async def ask(
        self,
        name: str,
        tokens: int = 10,
        *,
        client: str = "",
        model: str = "tiny",
        ticket: Ticket | None = None,
        whole: bool = False,
        generated: int = 0,
    ) -> "asyncio.Task[Admitted]":
        """Ask for a place; comes back when the request is in, refused or in the queue."""
        task = self.tasks.create(self.serve(name, tokens, client, model, ticket, whole, generated), name=name)
        await self.rest()
        return task

    async def end(self, name: str) -> None:
        """The request is over. Comes back when all that follows from it has happened."""
        self.running.pop(name).close()
        await self.rest()

    def health(self) -> HealthBook:
        """What the watch would tell of the instances' health."""
        return HealthBook(Unheard(), lambda _: None, lambda: self.now, went_down=lambda _: None)

    async def rest(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


async def test_requests_that_fit_go_at_once_and_the_rest_in_turns_as_room_comes() -> None:
    scene = Scene(max_decode_tokens=100)
    for n in range(5):
        await scene.ask(f"a{n}", 50, client="a")
    await scene.ask("b0", 50, client="b")
    assert scene.order == ["a0", "a1"]
    assert len(scene.gate) == 4
    await scene.end("a0")
    assert scene.order[2:] in (["a2"], ["b0"])
    await scene.end("a1")
    assert set(scene.order[2:]) == {"a2", "b0"}
    for name in scene.order[2:]:
        await scene.end(name)
    assert scene.order[4:] == ["a3", "a4"]
    for name in scene.order[4:]:
        await scene.end(name)
    assert len(scene.gate) == 0
    assert not any(i.running_legs() for i in scene.fleet)
    assert scene.book.waits == 4


async def test_requests_let_in_together_see_each_others_claims() -> None:
    scene = Scene(prefill=2, decode=2, max_decode_tokens=100)
    blockers = [scene.fleet.claim(f"decode{n}:1", 0, Phase.DECODE, 100) for n in range(2)]
    for n in range(8):
        await scene.ask(f"r{n}", 50)
    assert scene.order == []
    for claim in blockers:
        claim.end()
    await scene.rest()
    assert len(scene.order) == 4
    assert [scene.instance(f"decode{n}:1").running_tokens() for n in range(2)] == [100, 100]
    assert [scene.instance(f"prefill{n}:1").running_legs() for n in range(2)] == [2, 2]


class Exact:
    state = "exact"
    epoch = 0


async def test_requests_with_one_prefix_let_in_together_meet_on_one_instance() -> None:
    scene = Scene(prefill=4)
    placement = Placement(scene.fleet, PrefixIndex(), CacheAffinity(), "affinity", clock=lambda: 0.0)
    gate = Gate(
        fleet=scene.fleet,
        placement=placement,
        rules=Rules(Config(model="tiny")),
        tell=scene.book,
        clock=lambda: 0.0,
    )
    for instance in scene.fleet:
        instance.is_followed({0: Exact()})
    for n in range(1, 4):
        scene.fleet.claim(f"prefill{n}:1", 0, Phase.PREFILL, 2000)
    scene.instance("decode0:1").drain()

    expected: list[Expectation] = []

    async def serve(n: int) -> str:
        question = Question("tiny", Prompt([*range(1600), n]), 1)
        admitted = await gate.admit(Ticket(), question)
        chosen = admitted.decision.prefill.chosen
        assert chosen is not None
        expected.append(admitted.expected)
        return chosen.instance

    tasks = [scene.tasks.create(serve(n), name=str(n)) for n in range(8)]
    await scene.rest()
    assert len(gate) == 8
    scene.instance("decode0:1").undrain()
    assert {await task for task in tasks} == {"prefill0:1"}
    for each in expected:
        each.settle(came=False)
    candidates = placement.decide(Question("tiny", Prompt([*range(1600), 9]), 1)).prefill.candidates
    assert {priced.candidate.expected_tokens for priced in candidates} == {0}


async def test_an_idle_instance_takes_any_request_and_a_long_one_is_not_starved_by_short_ones() -> None:
    scene = Scene(max_prefill_tokens=100)
    await scene.ask("short0", 40)
    await scene.ask("short1", 40)
    await scene.ask("long", 5000, client="patient")
    for n in range(2, 6):
        await scene.ask(f"short{n}", 10, client="later")
    assert scene.order == ["short0", "short1"]  # there is room for the later ones, but it is not their turn
    # Their turn it is now: they ask for far less, so fairness puts them first.
    await scene.end("short0")
    assert scene.order[2:] == [f"short{n}" for n in range(2, 6)]
    await scene.ask("short6", 10, client="newcomer")
    for name in ("short1", *(f"short{n}" for n in range(2, 6))):
        await scene.end(name)
    await scene.end("short6")
    assert scene.order[-1] == "long"


async def test_a_lane_that_waits_for_room_keeps_it_from_other_lanes() -> None:
    scene = Scene(max_decode_tokens=100)
    scene.instance("prefill0:1").listed([ModelCard("tiny"), ModelCard("alpha", "tiny")], 0.0)
    scene.instance("decode0:1").listed([ModelCard("tiny"), ModelCard("alpha", "tiny")], 0.0)
    await scene.ask("first", 60)
    await scene.ask("long", 90)
    await scene.ask("adapter", 10, model="alpha")  # it would fit
    assert scene.order == ["first"]
    await scene.end("first")
    assert scene.order[1:] in (["adapter"], ["long", "adapter"], ["adapter", "long"])


async def test_a_request_for_a_model_that_is_down_holds_up_no_other() -> None:
    scene = Scene(max_decode_tokens=100)
    for role in (Role.PREFILL, Role.DECODE):
        scene.add(f"adapter-{role}:1", role, "alpha").went_down("gone")
    waiting = await scene.ask("adapter", model="alpha")
    assert len(scene.gate) == 1
    for n in range(3):
        await scene.ask(f"r{n}", 100)
    assert scene.order == ["r0"]
    await scene.end("r0")
    assert scene.order == ["r0", "r1"]
    assert not waiting.done()
    for role in (Role.PREFILL, Role.DECODE):
        scene.instance(f"adapter-{role}:1").came_up()
    await scene.rest()
    # The other lane's turn comes as well where there is room for both.
    assert "adapter" in scene.order


async def test_a_request_that_waits_for_prefill_keeps_no_decode_instance_from_others() -> None:
    scene = Scene(max_decode_tokens=100)
    scene.add("decode1:1", Role.DECODE, "alpha")
    scene.instance("decode0:1").drain()
    await scene.ask("r0", 60)
    await scene.ask("adapter", 60, model="alpha")  # no prefill instance has the adapter
    await scene.ask("r1", 30, client="other")
    assert scene.order == ["r0", "r1"]


@pytest.mark.parametrize(
    "change",
    [
        lambda scene: scene.instance("decode0:1").undrain(),
        lambda scene: scene.add("new:1", Role.DECODE),
        lambda scene: scene.add("new:1", Role.BOTH),
    ],
)
async def test_an_instance_that_becomes_usable_wakes_who_waits(change: Callable[[Scene], Any]) -> None:
    scene = Scene()
    scene.instance("decode0:1").drain()
    await scene.ask("a")
    await scene.ask("b")
    assert scene.order == []
    change(scene)
    await scene.rest()
    assert scene.order == ["a", "b"]


async def test_what_is_generated_counts_in_the_turns_of_clients() -> None:
    scene = Scene(max_decode_tokens=1000)
    await scene.ask("first", 1000)
    for n in range(3):
        await scene.ask(f"many{n}", 10, client="many", generated=900)
    for n in range(6):
        await scene.ask(f"one{n}", 10, client="one", generated=100)
    await scene.end("first")
    assert set(scene.order[1:]) == {f"one{n}" for n in range(6)}


class Served:
    """Requests of clients that may have two at once; each is over when it is told so."""

    def __init__(self, **limits: Any) -> None:
        self.scene = Scene(**({"max_client_requests": 2} | limits))
        self.tickets: dict[str, Ticket] = {}

    async def ask(
        self, name: str, client: str, tokens: int = 10, *, part_of: str | None = None
    ) -> "asyncio.Task[Admitted]":
        ticket = self.tickets[part_of].part() if part_of else Ticket(client)
        self.tickets[name] = ticket
        ticket.keep()
        return await self.scene.ask(name, tokens, ticket=ticket)

    async def over(self, name: str) -> None:
        self.tickets[name].let_go()
        if name in self.scene.running:
            await self.scene.end(name)
        await self.scene.rest()

    def status(self) -> tuple[int, int]:
        status = self.scene.gate.status()
        return status.running_clients, status.clients_held_back


async def test_a_client_has_no_more_running_than_it_may_and_holds_up_nobody_else() -> None:
    served = Served()
    for n in range(5):
        await served.ask(f"a{n}", "a")
    await served.ask("b0", "b")
    assert served.scene.order == ["a0", "a1", "b0"]
    assert served.status() == (2, 1)
    await served.over("a1")
    assert served.scene.order[3:] == ["a2"]
    await served.over("b0")
    assert served.scene.order[4:] == []
    for name in ("a0", "a2", "a3", "a4"):
        await served.over(name)
    assert served.scene.order[4:] == ["a3", "a4"]
    assert served.status() == (0, 0)
    assert len(served.scene.gate) == 0


async def test_who_waits_for_its_own_client_takes_its_turn_among_those_that_wait_for_room() -> None:
    served = Served(max_client_requests=1, max_decode_tokens=100)
    await served.ask("b0", "b", 100)
    for n in range(2):
        await served.ask(f"a{n}", "a", 50)
    await served.ask("c0", "c", 60)
    assert served.scene.order == ["b0"]
    await served.over("b0")
    assert served.scene.order[1:] == ["a0"]
    await served.over("a0")
    assert served.scene.order[2:] == ["c0"]
    await served.over("c0")
    assert served.scene.order[3:] == ["a1"]


def test_tickets_leave_nothing_to_the_garbage_collector() -> None:
    whole = Ticket("a")
    part = whole.part()
    assert (whole.of, part.of, part.part().of) == (whole, whole, whole)
    freed = [weakref.ref(whole), weakref.ref(part)]
    gc.disable()
    try:
        del whole, part
        assert [ref() for ref in freed] == [None, None]
    finally:
        gc.enable()


async def test_parts_of_a_request_and_its_retries_count_once() -> None:
    served = Served(max_client_requests=1, timed=True)
    whole = Ticket("a")
    served.tickets["list"] = whole
    whole.keep()
    for n in range(3):
        await served.ask(f"part{n}", "a", part_of="list")
    await served.ask("next", "a")
    assert served.scene.order == ["part0", "part1", "part2"]
    says_full(served.scene, "decode0:1", come_back_s=5.0)
    again = await served.scene.ask("again", ticket=served.tickets["part1"])
    assert len(served.scene.gate) == 2
    served.scene.instance("decode0:1").fullness.forget()
    served.scene.instance("decode0:1").announce()
    await again
    assert served.scene.order[3:] == ["again"]
    for n in range(3):
        await served.over(f"part{n}")
    assert served.scene.order[4:] == []
    whole.let_go()
    await served.scene.rest()
    assert served.scene.order[4:] == ["next"]


async def test_a_part_that_waits_behind_its_own_list_is_not_held_back_by_it() -> None:
    served = Served(max_client_requests=1)
    served.tickets["list"] = Ticket("a")
    served.scene.instance("decode0:1").drain()
    await served.ask("part0", "a", part_of="list")
    await served.ask("part1", "a", part_of="list")
    served.scene.instance("decode0:1").undrain()
    await served.scene.rest()
    assert served.scene.order == ["part0", "part1"]


async def test_a_request_that_leaves_the_queue_of_its_client_was_never_running() -> None:
    served = Served(max_client_requests=1)
    await served.ask("a0", "a")
    leaver = await served.ask("a1", "a")
    leaver.cancel()
    await served.over("a1")
    await served.ask("a2", "a")
    assert served.scene.order == ["a0"]
    await served.over("a0")
    assert served.scene.order == ["a0", "a2"]
    await served.over("a2")
    assert served.status() == (0, 0)


async def test_a_request_that_waited_too_long_for_its_own_client_says_so() -> None:
    served = Served(max_client_requests=1, queue_timeout_s=0.05)
    await served.ask("a0", "a")
    late = await served.ask("a1", "a")
    with pytest.raises(RateLimitError, match="--max-client-requests") as refused:
        await late
    assert refused.value.reason == "client_limit"
    assert int(refused.value.headers["Retry-After"]) >= 1
    assert served.scene.book.refusals == {"client_limit": 1}


async def test_only_as_many_are_looked_at_as_fit() -> None:
    scene = Scene(max_decode_tokens=100, max_queue=500)
    await scene.ask("r0", 100)
    for n in range(1, 300):
        await scene.ask(f"r{n}", 100, client=str(n))
    before = scene.policy.asked
    await scene.end("r0")
    assert len(scene.order) == 2
    assert scene.policy.asked - before <= 2 * 2  # one that fits and one that does not, two legs each


async def test_a_request_that_leaves_the_queue_makes_way_at_once() -> None:
    scene = Scene(max_decode_tokens=100)
    await scene.ask("r0", 60)
    long = await scene.ask("long", 90, client="a")
    await scene.ask("short", 30, client="a")
    assert scene.order == ["r0"]
    long.cancel()
    await scene.rest()
    assert scene.order == ["r0", "short"]
    assert len(scene.gate) == 0


async def test_a_client_that_leaves_while_it_is_let_in_gives_its_place_back() -> None:
    scene = Scene(max_decode_tokens=100)
    await scene.ask("r0", 100)
    leaver = await scene.ask("leaver", 100)
    await scene.ask("next", 100)
    scene.running.pop("r0").close()
    while scene.instance("decode0:1").running_tokens() == 0:  # noqa: ASYNC110  # one turn of the loop at a time
        await asyncio.sleep(0)  # its place is reserved, and it has not heard of that yet
    assert "leaver" not in scene.order
    leaver.cancel()
    await scene.rest()
    assert scene.order == ["r0", "next"]
    assert scene.instance("decode0:1").running_tokens() == 100
    await scene.end("next")
    assert not any(i.running_legs() for i in scene.fleet)


async def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    scene = Scene(max_decode_tokens=100, max_queue=2)
    await scene.ask("r0", 100)
    greedy = [await scene.ask(f"g{n}", 100, client="greedy") for n in range(3)]
    with pytest.raises(RateLimitError, match="--max-queue") as refused:
        await greedy[2]
    assert 1 <= int(refused.value.headers["Retry-After"]) <= 30
    await scene.ask("modest", 100, client="modest")
    with pytest.raises(RateLimitError, match="this client"):
        await greedy[1]
    assert scene.book.refusals == {"queue_full": 1, "shed": 1}
    await scene.end("r0")
    await scene.end(scene.order[1])
    assert scene.order[1:] == ["g0", "modest"]


async def test_without_a_queue_what_does_not_fit_is_refused_at_once() -> None:
    scene = Scene(max_decode_tokens=100, max_queue=0)
    await scene.ask("r0", 100)
    with pytest.raises(RateLimitError):
        await (await scene.ask("r1", 100))
    await scene.end("r0")
    await (await scene.ask("r2", 100))


async def test_no_request_waits_longer_than_the_queue_allows() -> None:
    scene = Scene(max_decode_tokens=100, queue_timeout_s=0.05)
    await scene.ask("r0", 100)
    with pytest.raises(UnavailableError, match="--queue-timeout") as refused:
        await (await scene.ask("r1", 100))
    assert int(refused.value.headers["Retry-After"]) >= 1
    assert len(scene.gate) == 0
    assert scene.book.refusals == {"queue_timeout": 1}


@pytest.mark.parametrize("role", list(Phase))
async def test_the_missing_phase_is_named_when_no_instance_became_usable(role: Phase) -> None:
    scene = Scene(queue_timeout_s=0.05)
    scene.instance(f"{role}0:1").went_down("gone")
    with pytest.raises(UnavailableError, match=f"^no {role} instance can take") as refused:
        await (await scene.ask("r0"))
    assert refused.value.headers["Retry-After"] == "1"
    assert scene.book.refusals == {"no_engine": 1}
    assert scene.book.actions == ({"wait": 1} if role is Phase.PREFILL else {})


async def test_no_prefill_instance_can_mean_decode_does_it_all_or_a_refusal() -> None:
    scene = Scene(when_no_prefill=WhenNoPrefill.DECODE)
    scene.instance("prefill0:1").drain()
    admitted = await (await scene.ask("r0"))
    assert admitted.decision.one_leg
    assert admitted.question.whole
    assert scene.book.actions == {"decode": 1}
    scene = Scene(when_no_prefill=WhenNoPrefill.FAIL)
    scene.instance("prefill0:1").drain()
    with pytest.raises(UnavailableError, match="no prefill"):
        await (await scene.ask("r0"))
    assert scene.book.actions == {"fail": 1}
    await (await scene.ask("whole", whole=True))  # a request that needs no prefill instance misses none


async def test_full_prefill_instances_are_not_missing_ones() -> None:
    scene = Scene(max_prefill_tokens=100, when_no_prefill=WhenNoPrefill.FAIL)
    await scene.ask("r0", 100)
    await scene.ask("r1", 100)
    assert len(scene.gate) == 1
    scene.instance("prefill0:1").went_down("gone")
    await scene.rest()
    assert scene.book.actions == {"fail": 1}
    assert len(scene.gate) == 0


async def test_a_retry_does_not_wait_for_room_but_for_something_usable() -> None:
    scene = Scene(max_decode_tokens=100)
    ticket = Ticket()
    await scene.ask("r0", 100, ticket=ticket)
    await scene.ask("queued", 100)
    await scene.ask("again", 100, ticket=ticket)
    assert scene.order == ["r0", "again"]
    scene.instance("decode0:1").went_down("gone")
    await scene.ask("third", 100, ticket=ticket)
    assert scene.order == ["r0", "again"]
    scene.instance("decode0:1").came_up()
    await scene.rest()
    assert scene.order == ["r0", "again", "third"]
    assert len(scene.gate) == 1


async def test_a_retry_that_waits_keeps_its_place_in_a_full_queue() -> None:
    scene = Scene(max_queue=2)
    admitted = [Ticket("greedy") for _ in range(4)]
    for ticket in admitted:
        await (await scene.ask("r", ticket=ticket))
        await scene.end("r")
    scene.instance("prefill0:1").drain()
    new = [await scene.ask(f"new{n}", client="greedy") for n in range(2)]
    retries = [await scene.ask(f"retry{n}", ticket=ticket) for n, ticket in enumerate(admitted)]
    await scene.ask("modest", client="modest")
    assert [task.done() for task in new] == [False, True]
    assert not any(task.done() for task in retries)
    scene.instance("prefill0:1").undrain()
    await asyncio.gather(*retries)
    with pytest.raises(RateLimitError, match="this client"):
        await new[1]


async def test_the_prompts_of_a_list_share_one_place_and_once_one_is_in_the_others_need_none() -> None:
    scene = Scene(max_decode_tokens=100, max_queue=1)
    whole = Ticket("lists")
    parts = [await scene.ask(f"p{n}", 100, ticket=whole.part()) for n in range(5)]
    assert scene.order == ["p0"]
    assert len(scene.gate) == 4
    await scene.ask("other", 100)  # the queue has a place still
    late = [await scene.ask(f"p{n}", 100, ticket=whole.part()) for n in range(5, 7)]
    while scene.running:
        await scene.end(next(iter(scene.running)))
    assert {*scene.order} == {*(f"p{n}" for n in range(7)), "other"}
    assert all(task.done() for task in [*parts, *late])


async def test_a_list_that_finds_the_queue_full_is_refused_and_one_that_is_shed_leaves_whole() -> None:
    scene = Scene(max_decode_tokens=100, max_queue=2)
    await scene.ask("r0", 100)
    whole, shed = Ticket("greedy"), Ticket("greedy")
    first = [await scene.ask(f"a{n}", 50, ticket=whole.part()) for n in range(3)]
    second = [await scene.ask(f"b{n}", 50, ticket=shed.part()) for n in range(3)]
    with pytest.raises(RateLimitError, match="the queue is full"):
        await (await scene.ask("c0", 50, ticket=Ticket("greedy").part()))
    await scene.ask("modest", 50, client="modest")
    assert all(task.done() for task in second)
    assert not any(task.done() for task in first)
    assert scene.book.refusals == {"queue_full": 1, "shed": 1}
    for task in second:
        with pytest.raises(RateLimitError, match="this client"):
            await task


async def test_all_waiting_of_one_request_together_is_bounded() -> None:
    scene = Scene(queue_timeout_s=0.05)
    scene.instance("decode0:1").went_down("gone")
    ticket = Ticket()
    with pytest.raises(UnavailableError):
        await (await scene.ask("r0", ticket=ticket))
    assert ticket.waited_s >= 0.05
    with pytest.raises(UnavailableError):
        await (await scene.ask("r1", ticket=ticket))
    assert scene.book.waits == 1


async def test_a_stop_answers_all_who_wait_and_lets_nobody_in() -> None:
    scene = Scene(max_decode_tokens=100)
    await scene.ask("r0", 100)
    waiting = [await scene.ask(f"w{n}", 100) for n in range(5)]
    scene.gate.close()
    for task in [*waiting, await scene.ask("late", 1)]:
        with pytest.raises(UnavailableError, match="shutting down") as refused:
            await task
        assert refused.value.headers["Connection"] == "close"
    await scene.end("r0")
    assert scene.order == ["r0"]


async def test_a_request_let_in_before_a_stop_may_still_try_again() -> None:
    scene = Scene(prefill=2)
    retry, late = Ticket(), Ticket()
    whole = Ticket()
    for n, ticket in enumerate((retry, late, whole.part())):
        await (await scene.ask(f"r{n}", ticket=ticket))
    for n in range(2):
        scene.instance(f"prefill{n}:1").drain()
    waits = [
        await scene.ask("new"),
        await scene.ask("waits", ticket=retry),
        await scene.ask("rest of the list", ticket=whole.part()),
    ]
    scene.gate.close()
    await scene.rest()
    assert [task.done() for task in waits] == [True, False, False]
    with pytest.raises(UnavailableError, match="shutting down"):
        await waits[0]
    scene.instance("prefill0:1").undrain()
    await asyncio.gather(*waits[1:], await scene.ask("late", ticket=late))


async def test_a_name_no_engine_turns_out_to_serve_is_not_waited_for() -> None:
    scene = Scene(prefill=0, decode=0)
    waiting = await scene.ask("r0", model="other")
    await scene.ask("r1")
    scene.add("p:1", Role.PREFILL)
    scene.add("d:1", Role.DECODE)
    with pytest.raises(NotFoundError):
        await waiting
    await scene.rest()
    assert scene.order == ["r1"]


async def test_a_policy_that_fails_fails_its_request_not_the_queue() -> None:
    scene = Scene()
    for address in ("prefill0:1", "decode0:1"):
        scene.instance(address).listed([ModelCard("tiny"), ModelCard("broken", "tiny")], 0.0)
        scene.instance(address).drain()
    broken = await scene.ask("r0", model="broken")
    await scene.ask("r1")
    for address in ("prefill0:1", "decode0:1"):
        scene.instance(address).undrain()
    with pytest.raises(ValueError, match="a policy that fails"):
        await broken
    await scene.rest()
    assert scene.order == ["r1"]


async def test_engines_that_do_both_are_limited_by_what_they_decode() -> None:
    scene = Scene(prefill=0, decode=0, both=1, max_prefill_tokens=1, max_decode_tokens=100)
    for n in range(3):
        await scene.ask(f"r{n}", 50)
    assert scene.order == ["r0", "r1"]
    await scene.end("r0")
    assert scene.order == ["r0", "r1", "r2"]


# -- health --------------------------------------------------------------------------------------------------


def eject(scene: Scene, instance: Instance) -> None:
    scene.health().answered(instance)
    for _ in range(3):
        scene.health().others_served(instance)
    assert instance.breaker.state is Circuit.OPEN


def try_out(scene: Scene, instance: Instance) -> None:
    eject(scene, instance)
    scene.now += 100
    scene.health().answered(instance)
    scene.fleet.claim(instance.address, 0, Phase.PREFILL, 1)
    assert instance.breaker.on_trial


def miss(scene: Scene, instance: Instance) -> None:
    scene.health().answered(instance)
    scene.health().checked(instance, Check(Finding.MISSED, "no answer"))
    assert instance.breaker.doubtful


def start_slowly(scene: Scene, instance: Instance) -> None:
    instance.breaker = Breaker(slow_start_s=10, joins=True)
    scene.health().answered(instance)
    scene.fleet.claim(instance.address, 0, Phase.PREFILL, 1)


def recover(scene: Scene, instance: Instance) -> None:
    scene.now += 100
    scene.health().answered(instance)


def serve_on_trial(scene: Scene, instance: Instance) -> None:
    scene.health().served(instance)


@pytest.mark.parametrize("worsen", [eject, try_out, miss, start_slowly])
async def test_what_does_not_fit_a_healthy_instance_waits_and_does_not_overflow_to_a_worse_one(
    worsen: Callable[[Scene, Instance], None],
) -> None:
    scene = Scene(prefill=2, max_prefill_tokens=50)
    worse = scene.instance("prefill1:1")
    worsen(scene, worse)
    legs = worse.running_legs()
    for n in range(3):
        await scene.ask(f"r{n}", 50)
    assert scene.order == ["r0"]
    await scene.end("r0")
    await scene.end("r1")
    assert scene.order == ["r0", "r1", "r2"]
    assert worse.running_legs() == legs
    await scene.end("r2")
    scene.instance("prefill0:1").drain()
    await scene.ask("r3", 10)  # with nothing better left it is used
    assert worse.running_legs() == legs + 1


@pytest.mark.parametrize(
    ("worsen", "mend"),
    [(eject, recover), (try_out, serve_on_trial), (miss, recover), (start_slowly, recover)],
)
async def test_an_instance_that_is_well_again_wakes_who_waits(
    worsen: Callable[[Scene, Instance], None], mend: Callable[[Scene, Instance], None]
) -> None:
    scene = Scene(prefill=2, max_prefill_tokens=50)
    worsen(scene, scene.instance("prefill1:1"))
    for n in range(2):
        await scene.ask(f"r{n}", 40)
    assert scene.order == ["r0"]
    mend(scene, scene.instance("prefill1:1"))
    await scene.rest()
    assert scene.order == ["r0", "r1"]


async def test_a_full_instance_that_becomes_the_worst_is_waited_for_no_more() -> None:
    scene = Scene(prefill=2, max_prefill_tokens=50)
    miss(scene, scene.instance("prefill1:1"))
    for n in range(2):
        await scene.ask(f"r{n}", 40)
    assert scene.order == ["r0"]
    eject(scene, scene.instance("prefill0:1"))
    await scene.rest()
    assert scene.order == ["r0", "r1"]


async def test_at_random_nothing_is_lost_stuck_or_over_the_limit() -> None:
    rng = random.Random(3)
    scene = Scene(prefill=2, decode=3, max_prefill_tokens=200, max_decode_tokens=300, max_queue=40)
    tasks: dict[str, asyncio.Task[Admitted]] = {}
    ended: Counter[str] = Counter()
    for n in range(2000):
        match rng.choice(("ask", "ask", "end", "end", "leave", "change")):
            case "ask":
                name = f"r{n}"
                tasks[name] = scene.tasks.create(
                    scene.serve(
                        name,
                        rng.randint(1, 150),
                        str(rng.randint(0, 3)),
                        "tiny",
                        None,
                        False,
                        rng.randint(0, 50),
                    ),
                    name=name,
                )
            case "end" if scene.running:
                scene.running.pop(rng.choice(list(scene.running))).close()
            case "leave" if tasks:
                tasks[rng.choice(list(tasks))].cancel()
            case "change":
                instance = scene.instance(f"decode{rng.randint(0, 2)}:1")
                (instance.undrain if instance.draining else instance.drain)()
        if rng.random() < 0.7:
            await scene.rest()
        for each in scene.fleet:
            assert each.running_weight_tokens() <= (200 if each.takes(Phase.PREFILL) else 300)
    for instance in scene.fleet:
        instance.undrain()
    for _ in range(3000):
        if not scene.running and not len(scene.gate):
            break
        for name in list(scene.running):
            await scene.end(name)
        await scene.rest()
    for task in tasks.values():
        with contextlib.suppress(asyncio.CancelledError, RequestError):
            await task
            ended["served"] += 1
            continue
        ended["not"] += 1
    assert len(scene.gate) == 0
    assert sum(ended.values()) == len(tasks)
    assert ended["served"] > 300
    assert not any(i.running_legs() for i in scene.fleet)


# -- engines that say they are full --------------------------------------------------------------------------


def says_full(scene: Scene, address: str, legs: int = 0, come_back_s: float = 0.2) -> None:
    now = asyncio.get_running_loop().time()
    scene.instance(address).fullness.said(now, legs, now, come_back_s)


async def test_requests_for_a_full_engine_are_let_in_one_at_a_time_when_its_pause_is_over() -> None:
    scene = Scene(timed=True)
    says_full(scene, "decode0:1")
    for n in range(4):
        await scene.ask(f"r{n}")
    assert (scene.order, len(scene.gate)) == ([], 4)
    async with asyncio.timeout(20):
        while not scene.order:  # noqa: ASYNC110  # nothing else happens meanwhile: it is the gate's own timer
            await asyncio.sleep(0.01)
    assert (scene.order, len(scene.gate)) == (["r0"], 3)
    loop, instance = asyncio.get_running_loop(), scene.instance("decode0:1")
    instance.fullness.took(1, loop.time())  # it has begun to answer: two more may follow
    instance.announce()
    await scene.rest()
    assert scene.order == ["r0", "r1", "r2"]
    instance.fullness.forget()
    instance.announce()
    await scene.rest()
    assert len(scene.order) == 4
    assert scene.gate._reopening is None


async def test_a_leg_that_nobody_refuses_lets_others_follow_in_time() -> None:
    scene = Scene(timed=True)
    scene.instance("prefill0:1").fullness = Fullness(unrefused_s=0.05)
    says_full(scene, "prefill0:1", come_back_s=0.1)
    tasks = [await scene.ask(f"r{n}") for n in range(4)]
    await asyncio.wait({tasks[0]}, timeout=20)
    assert scene.order == ["r0"]
    scene.instance("prefill0:1").fullness.sent(asyncio.get_running_loop().time())
    scene.instance("prefill0:1").announce()  # something else happens
    await asyncio.wait(tasks, timeout=20)
    assert scene.order == ["r0", "r1", "r2", "r3"]


async def test_a_leg_that_ends_at_a_full_engine_is_replaced_at_once() -> None:
    scene = Scene(timed=True)
    for n in range(2):
        await scene.ask(f"r{n}")
    now = asyncio.get_running_loop().time()
    instance = scene.instance("decode0:1")
    for _ in range(20):  # for a moment that outlasts the test
        instance.fullness.said(now, 2, now)
        now = now + instance.fullness.left_s(now)
    await scene.ask("next")
    assert scene.order == ["r0", "r1"]
    await scene.end("r0")
    assert scene.order == ["r0", "r1", "next"]


async def test_a_retry_waits_for_a_full_engine_though_it_waits_for_no_other_room() -> None:
    scene = Scene(timed=True, max_decode_tokens=100)
    await scene.ask("first", 100)
    again = Ticket("a")
    again.let_in()
    await scene.ask("retry", 100, ticket=again)
    assert scene.order == ["first", "retry"]
    says_full(scene, "prefill0:1", come_back_s=5.0)
    other = Ticket("b")
    other.let_in()
    await scene.ask("waits", 100, ticket=other)
    assert (scene.order, len(scene.gate)) == (["first", "retry"], 1)
    scene.instance("prefill0:1").fullness.forget()
    scene.instance("prefill0:1").announce()
    await scene.rest()
    assert scene.order[2:] == ["waits"]


async def test_nobody_slips_past_a_retry_that_waits_for_a_full_engine() -> None:
    scene = Scene(timed=True)
    says_full(scene, "decode0:1", come_back_s=5.0)
    again = Ticket("a")
    again.let_in()
    await scene.ask("retry", 10, ticket=again)
    scene.instance("decode0:1").fullness.said(0.0, 0, 0.0)  # its moment is over, and nobody has told the gate
    scene.instance("decode0:1").fullness._until = 0.0
    await scene.ask("newcomer", 10, client="b")
    assert scene.order == []
    scene.instance("decode0:1").announce()
    await scene.rest()
    assert scene.order[0] == "retry"


async def test_at_the_deadline_of_who_waits_for_full_engines() -> None:
    scene = Scene(timed=True, queue_timeout_s=0.1)
    says_full(scene, "decode0:1", come_back_s=4.0)
    first, second = await scene.ask("first"), await scene.ask("behind it")
    for task in (first, second):
        with pytest.raises(UnavailableError, match="full") as refused:
            await task
        assert refused.value.reason == "engines_full"
        assert 3 <= int(refused.value.headers["Retry-After"]) <= 4
    assert scene.book.refusals == {"engines_full": 2}
    await scene.rest()
    assert scene.gate._reopening is None


@pytest.mark.parametrize("waited_s", [5.0, 0.0])
async def test_a_request_turned_away_for_as_long_as_it_may_wait_is_not_tried_again(
    waited_s: float,
) -> None:
    scene = Scene(decode=2, timed=True, queue_timeout_s=5.0)
    ticket = Ticket("a")
    ticket.let_in()
    ticket.waited_s = waited_s
    await scene.ask("a retry of another kind", ticket=ticket)
    assert scene.order == ["a retry of another kind"]
    ticket.turn_away("decode0:1", asyncio.get_running_loop().time() - 5.0 + waited_s, 0.0)
    says_full(scene, "decode0:1", come_back_s=5.0)
    await scene.ask("another is idle", ticket=ticket)
    assert scene.order == ["a retry of another kind", "another is idle"]
    ticket.turn_away("decode1:1", asyncio.get_running_loop().time(), 0.0)
    for come_back_s in (None, 5.0):  # there is room by now, or there is none
        if come_back_s is not None:
            says_full(scene, "decode1:1", come_back_s=come_back_s)
        with pytest.raises(UnavailableError, match="full") as refused:
            await (await scene.ask("turned away", ticket=ticket))
        assert refused.value.reason == "engines_full"


async def test_others_go_on_while_one_is_full() -> None:
    scene = Scene(decode=2, timed=True)
    says_full(scene, "decode0:1", come_back_s=5.0)
    for n in range(3):
        await scene.ask(f"r{n}")
    assert scene.order == ["r0", "r1", "r2"]
    assert scene.instance("decode1:1").running_legs() == 3
