"""The memory for bodies has room for everybody: whoever takes most of it leaves some, and small bodies always
fit."""

import random
import threading
from concurrent.futures import Future

import pytest

from proxy.admission.bodies import BodyBudget, BodyLease
from tests.helpers.service import wait_until

LIMIT = 8192
RESERVE = LIMIT // 8
SMALL = RESERVE // 8


def grab(budget: BodyBudget, client: str, size_bytes: int) -> list[BodyLease]:
    """As many bodies of that size as a client gets."""
    leases = []
    while (lease := budget.lease(client)).hold(size_bytes):
        leases.append(lease)
    return leases


def test_a_budget_is_never_exceeded_but_by_one_body_alone() -> None:
    budget = BodyBudget(LIMIT)
    big, other = budget.lease("a"), budget.lease("b")
    assert big.hold(5 * LIMIT)
    assert not budget.fits("b", SMALL + 1)
    assert not other.hold(SMALL + 1)
    assert not other.hold(LIMIT)
    assert big.hold(2000)
    assert other.hold(3000)
    big.end()
    big.end()
    assert budget.held_bytes == 3000
    assert budget.clients == 1
    other.end()
    assert (budget.held_bytes, budget.clients) == (0, 0)
    assert not budget._large.by_client
    assert not budget._small.by_client


@pytest.mark.parametrize(("greedy", "each"), [(1, 4 / 5), (2, 4 / 9), (5, 4 / 21)])
def test_clients_that_want_all_get_the_same_and_leave_some(greedy: int, each: float) -> None:
    budget = BodyBudget(LIMIT * 1000)
    size_bytes, pool_bytes = SMALL * 1000 + 1, (LIMIT - RESERVE) * 1000
    held = dict.fromkeys(range(greedy), 0)
    going = True
    while going:  # in turn, as they would if each had many connections
        going = False
        for client in held:
            if budget.lease(str(client)).hold(size_bytes):
                held[client] += size_bytes
                going = True
    for held_bytes in held.values():
        assert held_bytes / pool_bytes == pytest.approx(each, abs=2 * size_bytes / pool_bytes)
    left_bytes = pool_bytes - budget.held_bytes
    assert left_bytes > 0
    assert grab(budget, "comes last", size_bytes) or left_bytes < 2 * size_bytes


def test_the_first_client_leaves_room_for_the_largest_usual_body_of_another() -> None:
    budget = BodyBudget(1 << 30)
    grab(budget, "first", 3 << 20)
    assert budget.lease("second").hold(2 * (64 << 20))


@pytest.mark.parametrize("client", ["attacker", "somebody"])
def test_small_bodies_fit_however_full_it_is_of_large_ones(client: str) -> None:
    for size_bytes in (SMALL + 1, 2000, 20 * LIMIT):
        budget = BodyBudget(LIMIT)
        for attacker in ("attacker", *map(str, range(50))):
            grab(budget, attacker, size_bytes)
        assert budget.fits(client, SMALL)
        assert len(grab(budget, client, SMALL)) >= 6


def test_small_bodies_of_one_client_leave_room_for_those_of_others() -> None:
    budget = BodyBudget(LIMIT)
    grab(budget, "attacker", SMALL)
    assert budget.lease("other").hold(SMALL)
    assert budget.lease("other").hold(2 * SMALL)


def test_a_body_that_grows_is_small_first() -> None:
    budget = BodyBudget(LIMIT)
    grab(budget, "attacker", 500)
    lease = budget.lease("attacker")
    assert lease.hold(SMALL)
    held_bytes = budget.held_bytes
    assert not lease.hold(500)
    assert budget.held_bytes == held_bytes
    assert lease.hold(1)
    lease.end()
    assert budget.held_bytes == held_bytes - SMALL


def test_whatever_is_held_and_ended_the_sums_are_right() -> None:
    dice = random.Random(7)
    budget = BodyBudget(LIMIT)
    leases: dict[BodyLease, tuple[str, int]] = {}
    for _ in range(20_000):
        if leases and dice.random() < 0.4:
            lease = dice.choice(list(leases))
            client, held = leases[lease]
            size = dice.choice([0, held // 2, held * 2, held + 100])
        else:
            client, held, size = dice.choice("abcde"), 0, int(dice.paretovariate(0.8) * 20)
            lease = budget.lease(client)
        alone = budget._large.total_bytes <= (held if held > SMALL else 0)
        if lease.hold(size):
            leases[lease] = (client, size)
            if size > held and not alone:
                assert budget.held_bytes <= max(LIMIT, budget._large.total_bytes + RESERVE)
        if not leases.get(lease, ("", 1))[1]:
            del leases[lease]
        sizes = [size for _, size in leases.values()]
        assert budget.held_bytes == sum(sizes)
        assert budget.clients == len({client for client, _ in leases.values()})


async def test_a_lease_lasts_as_long_as_its_work_does_in_whatever_thread() -> None:
    budget = BodyBudget(LIMIT)
    lease = budget.lease("a")
    assert lease.hold(LIMIT // 2)
    work: Future[None] = Future()
    lease.lasts(work)
    lease.end()
    assert budget.held_bytes == LIMIT // 2
    threading.Thread(target=work.set_result, args=(None,)).start()
    await wait_until(lambda: budget.held_bytes == 0, "the end of the lease")
    done: Future[None] = Future()
    done.set_result(None)
    lease = budget.lease("a")
    assert lease.hold(1)
    lease.lasts(done)
    lease.end()
    assert budget.held_bytes == 0
