"""Clients take turns by tokens, a client's own requests go by priority and age, and the queue never grows too
long."""

import itertools
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.admission.drain_rate import MAX_RETRY_AFTER_S, DrainRate
from proxy.fair_queue import FairQueue, QueueFullError, Waiting

CLIENTS = ("a", "b", "c")
LANES = ("one", "two")
MAX_TOKENS = 50


def drained(queue: FairQueue[Any]) -> list[Waiting[Any]]:
    served: list[Waiting[Any]] = []
    while (waiting := queue.next()) is not None:
        queue.take(waiting)
        served.append(waiting)
    return served


def filled(*requests: tuple[str, int], limit: int = 10_000) -> FairQueue[int]:
    """A queue with requests of (client, tokens) in one lane."""
    queue: FairQueue[int] = FairQueue(limit)
    for number, (client, tokens) in enumerate(requests):
        queue.push(client, "one", 0, tokens, number)
    return queue


def test_a_client_with_a_thousand_requests_does_not_delay_anothers_single_one() -> None:
    queue = filled(*[("greedy", 100)] * 1000, ("modest", 100))
    assert "modest" in {waiting.client for waiting in drained(queue)[:2]}


def test_a_client_that_comes_late_is_not_behind_what_others_had_waiting() -> None:
    queue = filled(*[("greedy", 100)] * 1000)
    for _ in range(500):
        waiting = queue.next()
        assert waiting is not None
        queue.take(waiting)
    queue.push("modest", "one", 0, 100, 0)
    assert "modest" in {waiting.client for waiting in drained(queue)[:2]}


def test_a_client_that_asks_again_and_again_does_not_starve_who_waits() -> None:
    queue = filled(*[("patient", 90)] * 3, ("busy", 10))
    served: list[str] = []
    while len(served) < 12:
        waiting = queue.next()
        assert waiting is not None
        queue.take(waiting)
        served.append(waiting.client)
        if waiting.client == "busy":
            queue.push("busy", "one", 0, 10, 0)
    assert served.count("patient") == 1
    assert served.index("patient") <= 9


def test_turns_are_counted_in_tokens() -> None:
    served = drained(filled(*[("long", 300)] * 10, *[("short", 100)] * 30))
    first = [waiting.client for waiting in served[:20]]
    assert abs(first.count("short") - 3 * first.count("long")) <= 3


def test_a_client_that_was_away_has_not_saved_up_turns() -> None:
    queue = filled(("a", 10))
    drained(queue)
    for _ in range(100):
        queue.push("b", "one", 0, 10, 0)
        drained(queue)
    for _ in range(10):
        queue.push("a", "one", 0, 10, 0)
        queue.push("b", "one", 0, 10, 0)
    first = [waiting.client for waiting in drained(queue)[:10]]
    assert abs(first.count("a") - first.count("b")) <= 1


def test_within_a_client_the_lower_priority_number_goes_first_then_who_came_first() -> None:
    queue: FairQueue[int] = FairQueue(10)
    for item, priority in enumerate((0, 5, -1, 0, -1)):
        queue.push("a", LANES[item % 2], priority, 1, item)
    assert [waiting.item for waiting in drained(queue)] == [2, 4, 0, 3, 1]


def test_a_blocked_lane_is_passed_over_and_keeps_its_order() -> None:
    queue: FairQueue[int] = FairQueue(10)
    for item in range(4):
        queue.push("a", LANES[item % 2], 0, 1, item)
    waiting = queue.next({"one"})
    assert waiting is not None
    assert waiting.item == 1
    assert queue.next(LANES) is None
    assert [w.item for w in drained(queue)] == [0, 1, 2, 3]


def test_a_full_queue_sheds_the_last_of_the_greediest_for_a_client_that_has_fewer() -> None:
    queue: FairQueue[int] = FairQueue(4)
    for item, priority in enumerate((0, 0, 9, 0)):
        queue.push("greedy", "one", priority, 1, item)
    _, shed = queue.push("modest", "one", 0, 1, 10)
    assert [(waiting.client, waiting.item) for waiting in shed] == [("greedy", 2)]
    _, shed = queue.push("modest", "one", 0, 1, 11)
    assert [waiting.item for waiting in shed] == [3]
    with pytest.raises(QueueFullError):  # two each: nobody has more than the newcomer would
        queue.push("modest", "one", 0, 1, 12)
    with pytest.raises(QueueFullError):
        queue.push("greedy", "one", -100, 1, 13)
    assert queue.push("third", "one", 0, 1, 14)[1]
    assert len(queue) == 4


def test_a_request_that_shares_a_place_needs_no_other_and_leaves_with_it() -> None:
    queue: FairQueue[int] = FairQueue(3)
    for item in range(5):
        queue.push("a", LANES[item % 2], 0, 1, item, place="list")
    queue.push("a", "one", 0, 1, 5)
    queue.push("b", "one", 0, 1, 6)
    assert len(queue) == 7
    with pytest.raises(QueueFullError):
        queue.push("a", "one", 0, 1, 7)
    with pytest.raises(QueueFullError):  # a has two places, b would have two
        queue.push("b", "one", 0, 1, 8)
    _, shed = queue.push("c", "one", 0, 1, 9)
    assert [waiting.item for waiting in shed] == [5]
    for item in (10, 11):
        queue.push("a", "one", 9, 1, item, place="list")
    assert not queue.push("d", "one", 0, 1, 12, needs_place=False)[1]
    greedy: FairQueue[int] = FairQueue(2)
    greedy.push("a", "one", 0, 1, 0)
    for item in range(1, 4):
        greedy.push("a", LANES[item % 2], 0, 1, item, place="list")
    _, shed = greedy.push("b", "one", 0, 1, 4)
    assert {waiting.item for waiting in shed} == {1, 2, 3}
    assert [waiting.item for waiting in drained(greedy)] == [0, 4]


def test_a_request_let_in_before_always_finds_a_place_and_never_has_to_leave() -> None:
    queue: FairQueue[int] = FairQueue(2)
    for item in range(4):
        queue.push("a", "one", 0, 1, item, needs_place=False)
    for item in (4, 5, 6):  # the parts of a list that wait on after one of them was served
        queue.push("a", "two", 0, 1, item, place="list")
    served = queue.next({"one"})
    assert served is not None
    queue.take(served)
    for item in (7, 8):
        assert not queue.push("a", "one", -1, 1, item)[1]
    _, shed = queue.push("b", "one", 0, 1, 9)
    assert [waiting.item for waiting in shed] == [8]
    with pytest.raises(QueueFullError):
        queue.push("c", "one", 0, 1, 10)
    assert sorted(waiting.item for waiting in drained(queue)) == [0, 1, 2, 3, 5, 6, 7, 9]
    assert not queue.push("c", "one", 0, 1, 11)[1]


def test_a_client_that_is_held_back_holds_up_nobody_and_keeps_its_order() -> None:
    queue = filled(("held", 1), ("held", 1), ("other", 50), ("other", 50))
    queue.hold_back("held")
    assert [waiting.client for waiting in drained(queue)] == ["other", "other"]
    assert not queue.waits_in("one")
    queue.let_go("held")
    assert [waiting.item for waiting in drained(queue)] == [0, 1]


def test_a_request_let_in_before_is_not_held_back_with_its_client() -> None:
    queue: FairQueue[int] = FairQueue(10)
    for item in range(3):
        queue.push("a", "one", 0, 1, item, place="list")
    queue.push("a", "one", -9, 1, 3)
    queue.push("a", "two", 0, 1, 4, needs_place=False)
    queue.hold_back("a")
    assert [waiting.item for waiting in drained(queue)] == [4]
    queue.let_in("a", "list")  # another part of it
    assert [waiting.item for waiting in drained(queue)] == [0, 1, 2]
    queue.let_go("a")
    assert [waiting.item for waiting in drained(queue)] == [3]


def test_a_queue_of_no_length_takes_nobody() -> None:
    with pytest.raises(QueueFullError):
        FairQueue[int](0).push("a", "one", 0, 1, 0)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("push"),
            st.sampled_from(CLIENTS),
            st.sampled_from(LANES),
            st.integers(-2, 2),
            st.integers(0, MAX_TOKENS),
            st.sampled_from(("own", "own", "shared", "none")),
        ),
        st.tuples(st.just("take"), st.sets(st.sampled_from(LANES), max_size=1)),
        st.tuples(st.just("drop"), st.integers(0, 30)),
        st.tuples(st.sampled_from(("hold back", "let go", "let in")), st.sampled_from(CLIENTS)),
    ),
    max_size=80,
)


class Model:
    """The same queue in the plainest words: a list, searched anew for every question."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.waiting: list[Waiting[int]] = []
        self.places: dict[int, str | None] = {}
        """The place of each request that waits, by its number."""
        self.due: dict[str, int] = {}
        self.now = 0
        self.held_back: set[str] = set()

    def has_turns(self, waiting: Waiting[int]) -> bool:
        return waiting.client not in self.held_back or self.places[waiting.number] is None

    def taken(self, client: str | None = None) -> set[str]:
        places = {self.places[w.number] for w in self.waiting if client in {None, w.client}}
        return {place for place in places if place is not None}

    def count(self, client: str) -> int:
        return len(self.taken(client))

    def leave(self, waiting: Waiting[int], *, served: bool = False) -> None:
        self.waiting.remove(waiting)
        place = self.places.pop(waiting.number)
        if served:
            self.places = {n: None if p == place else p for n, p in self.places.items()}

    def shed(self, newcomer: str) -> str | None:
        """Whose request must go; None if the newcomer must."""
        most = max(CLIENTS, key=self.count)
        return most if self.count(most) >= self.count(newcomer) + 2 else None

    def next(self, blocked: set[str]) -> Waiting[int] | None:
        heads = []
        for client, lane in itertools.product(CLIENTS, set(LANES) - blocked):
            own = [w for w in self.waiting if (w.client, w.lane) == (client, lane) and self.has_turns(w)]
            if own:
                head = min(own, key=lambda w: (w.priority, w.number))
                heads.append((self.due[client] + head.tokens, head.number, client))
        if not heads:
            return None
        own = [w for w in self.waiting if w.client == min(heads)[2] and w.lane not in blocked]
        own = [w for w in own if self.has_turns(w)]
        return min(own, key=lambda w: (w.priority, w.number))


@given(OPERATIONS)
def test_the_queue_does_what_a_plain_model_does(operations: list[Any]) -> None:
    queue: FairQueue[int] = FairQueue(6)
    model = Model(6)
    ended: list[Waiting[int]] = []
    pushed = 0
    for what, *how in operations:
        if what == "push":
            client, lane, priority, tokens, place = how
            key = {"own": f"{pushed}", "shared": f"of {client}", "none": None}[place]
            full = key is not None and len(model.taken()) >= model.limit and key not in model.taken(client)
            loser = model.shed(client) if full else None
            shared = {"place": key} if place == "shared" else {}
            try:
                waiting, shed = queue.push(
                    client, lane, priority, tokens, pushed, **shared, needs_place=key is not None
                )
            except QueueFullError:
                assert full
                assert loser is None
                continue
            pushed += 1
            assert bool(shed) is full
            if shed:
                assert model.count(shed[0].client) == model.count(str(loser))
                own = [w for w in model.waiting if w.client == shed[0].client]
                own = [w for w in own if model.places[w.number] is not None]
                last = max(own, key=lambda w: (w.priority, w.number))
                together = [w for w in own if model.places[w.number] == model.places[last.number]]
                assert {w.number for w in shed} == {w.number for w in together}
                for each in shed:
                    model.leave(each)
                ended.extend(shed)
            if not any(w.client == client for w in model.waiting):
                model.due[client] = model.now
            model.waiting.append(waiting)
            model.places[waiting.number] = key
        elif what == "take":
            waiting_next = queue.next(how[0])
            assert waiting_next is model.next(how[0])
            if waiting_next is not None:
                queue.take(waiting_next)
                model.leave(waiting_next, served=True)
                model.due[waiting_next.client] += waiting_next.tokens
                model.now = max(model.now, model.due[waiting_next.client])
                ended.append(waiting_next)
        elif what == "hold back":
            queue.hold_back(how[0])
            model.held_back.add(how[0])
        elif what == "let go":
            queue.let_go(how[0])
            model.held_back.discard(how[0])
        elif what == "let in":
            queue.let_in(how[0], f"of {how[0]}")
            model.places = {n: None if p == f"of {how[0]}" else p for n, p in model.places.items()}
        elif how[0] < len(model.waiting):
            left = model.waiting[how[0]]
            model.leave(left)
            assert queue.drop(left)
            assert not queue.drop(left)
            ended.append(left)
        assert len(queue) == len(model.waiting)
        assert len(model.taken()) <= model.limit
        assert queue.clients == len({w.client for w in model.waiting})
        in_turns = {w.lane for w in model.waiting if model.has_turns(w)}
        assert {lane for lane in LANES if queue.waits_in(lane)} == in_turns
        assert queue.clients_held_back == len(model.held_back)
        assert {w.number for w in queue} == {w.number for w in model.waiting}
    for client in CLIENTS:
        queue.let_go(client)
    rest = drained(queue)
    assert sorted(w.item for w in [*ended, *rest]) == list(range(pushed))


@given(st.lists(st.tuples(st.sampled_from(CLIENTS), st.integers(1, MAX_TOKENS)), min_size=1, max_size=200))
def test_clients_that_wait_all_the_time_get_the_same_within_one_request_each(
    requests: list[tuple[str, int]],
) -> None:
    queue = filled(*requests)
    left: dict[str, int] = defaultdict(int)
    got: dict[str, int] = defaultdict(int)
    for client, _ in requests:
        left[client] += 1
    everybody = set(left)
    for waiting in drained(queue):
        got[waiting.client] += waiting.tokens
        left[waiting.client] -= 1
        if not all(left[client] for client in everybody):
            break
        assert max(got[c] for c in everybody) - min(got[c] for c in everybody) <= 2 * MAX_TOKENS


def test_clients_that_come_and_leave_unserved_leave_nothing() -> None:
    queue = filled(*[("a", 5)] * 10)
    for n in range(10_000):
        waiting, _ = queue.push(str(n % 7), "one", 0, 1000, n)
        queue.drop(waiting)
        urgent, _ = queue.push("a", "one", -1, 1000, n)
        queue.drop(urgent)
    assert queue.clients == 1
    assert sum(len(heap) for heap in queue._heads.values()) < 200
    drained(queue)
    assert not queue._heads


def test_the_way_to_the_front_is_estimated_from_the_pace() -> None:
    rate = DrainRate()
    assert rate.retry_after_s(0, 0.0) == 1
    assert rate.retry_after_s(5, 0.0) == MAX_RETRY_AFTER_S  # nothing has moved yet
    for n in range(1000):  # 10 a second, for long
        rate.left(n / 10)
    assert 8 <= rate.retry_after_s(100, 100.0) <= 12
    assert rate.retry_after_s(1, 100.0) == 1
    assert rate.retry_after_s(100, 1000.0) == MAX_RETRY_AFTER_S  # that was long ago
