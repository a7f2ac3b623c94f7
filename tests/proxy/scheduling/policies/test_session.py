"""A session stays where it is while it can, and few move when an instance comes or goes."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import pytest

from proxy.phases import Phase
from proxy.scheduling.policies import Session
from proxy.scheduling.policies.session import BOUND, FLOOR_TOKENS
from proxy.scheduling.types import Candidate, Leg
from tests.helpers.candidates import candidate

SESSIONS = [f"chat-{number}" for number in range(2000)]


def goes_to(session: str | None, candidates: Sequence[Candidate]) -> str:
    costs = Session().costs(Leg(Phase.PREFILL, "tiny", None, session=session), candidates)
    assert len(set(costs)) == len(costs), "no two places are the same"
    return candidates[costs.index(min(costs))].instance


def idle(count: int) -> list[Candidate]:
    return [candidate(f"10.0.0.{n}:8000") for n in range(count)]


def test_sessions_are_spread_evenly() -> None:
    homes = Counter(goes_to(session, idle(8)) for session in SESSIONS)
    assert len(homes) == 8
    assert min(homes.values()) > 0.8 * len(SESSIONS) / 8


def test_the_order_in_which_instances_are_named_changes_nothing() -> None:
    there = idle(5)
    for session in SESSIONS[:50]:
        assert goes_to(session, there) == goes_to(session, there[::-1])


def test_when_one_leaves_only_its_sessions_move_and_to_all_others() -> None:
    before, left = idle(8), idle(8)[:3] + idle(8)[4:]
    moved = Counter[str]()
    for session in SESSIONS:
        home = goes_to(session, before)
        if home == "10.0.0.3:8000":
            moved[goes_to(session, left)] += 1
        else:
            assert goes_to(session, left) == home
    assert len(moved) == 7
    assert max(moved.values()) < 2.5 * moved.total() / 7


def test_one_that_comes_takes_its_share_and_nobody_else_moves() -> None:
    moved = [goes_to(session, idle(9)) for session in SESSIONS]
    for session, home in zip(SESSIONS, moved, strict=True):
        assert home in {goes_to(session, idle(8)), "10.0.0.8:8000"}
    assert moved.count("10.0.0.8:8000") == pytest.approx(len(SESSIONS) / 9, rel=0.2)


@pytest.mark.parametrize(
    ("own", "others", "stays"),
    [
        (FLOOR_TOKENS, 0, True),
        (FLOOR_TOKENS + 1, 0, False),
        (40_000, 40_000, True),
        (int(BOUND * 40_000), 40_000, True),
        (100_000, 40_000, False),
    ],
)
def test_a_session_moves_only_while_more_waits_for_it_than_for_others(
    own: int, others: int, stays: bool
) -> None:
    there = idle(4)
    for session in SESSIONS[:20]:
        home = goes_to(session, there)
        loaded = [candidate(c.instance, prefill=own if c.instance == home else others) for c in there]
        assert (goes_to(session, loaded) == home) is stays
        assert goes_to(session, there) == home, "and it comes back"


def test_running_streams_are_no_work_for_prompts_and_are_for_decode_legs() -> None:
    there = idle(4)
    for session in SESSIONS[:20]:
        home = goes_to(session, there)
        busy = candidate(home, load=10**6, decode=10**6, legs=99)
        streams = [busy if c.instance == home else c for c in there]
        assert goes_to(session, streams) == home
        decode = Leg(Phase.DECODE, "tiny", None, computes=False, session=session)
        costs = Session().costs(decode, streams)
        assert streams[costs.index(min(costs))].instance != home


def test_the_sessions_of_a_busy_instance_go_to_different_others() -> None:
    there = idle(8)
    busy = [candidate(c.instance, prefill=100_000 * (c is there[0])) for c in there]
    moved = {goes_to(session, busy) for session in SESSIONS if goes_to(session, there) == there[0].instance}
    assert moved == {c.instance for c in there[1:]}


def test_a_request_without_a_session_goes_where_the_least_is_to_do() -> None:
    loaded = [candidate(f"{n}:1", load=load) for n, load in enumerate((30, 10, 20))]
    assert goes_to(None, loaded) == "1:1"
    costs = Session().costs(Leg(Phase.PREFILL, "tiny", None), [candidate(load=5), candidate(load=5)])
    assert costs == [0, 0], "equals are drawn from"


def test_ranks_of_an_instance_are_places_of_their_own() -> None:
    ranks = [candidate("a:1", rank=rank) for rank in range(4)]
    leg = [Leg(Phase.PREFILL, "tiny", None, session=session) for session in SESSIONS[:100]]
    homes = {costs.index(min(costs)) for each in leg if (costs := Session().costs(each, ranks))}
    assert homes == {0, 1, 2, 3}


def test_another_process_finds_the_same_home() -> None:
    """The order is that of public hashes: any kvproxy, in any release, has the same."""

    def hashed(address: str) -> bytes:
        return hashlib.blake2b(f"chat-1\0{address}#0".encode(), digest_size=8).digest()

    assert goes_to("chat-1", idle(6)) == min((c.instance for c in idle(6)), key=hashed)
    assert goes_to("\udc80", idle(2)) in {c.instance for c in idle(2)}, "whatever a client sends"
