"""A hold of the model engine ends once: when it is fetched, or when its lease is over."""

from proxy.simulation.engine.holds import Holds
from proxy.simulation.engine.request import Request
from tests.proxy.simulation.driving import request


def holding(lease_s: float = 30.0, **ids: float) -> Holds[Request]:
    holds: Holds[Request] = Holds(lease_s)
    for name, now_s in ids.items():
        holds.add(request(name, [1]), (1,), now_s)
    return holds


def test_a_lease_ends_when_its_time_is_over() -> None:
    holds = holding(a=0.0, b=5.0)
    assert holds.next_expiry_s() == 30.0
    assert holds.expire(29.9) == []
    assert [r.id for r in holds.expire(30.0)] == ["a"]
    assert (holds.expired, holds.ids(), holds.next_expiry_s()) == (1, ["b"], 35.0)


def test_a_heartbeat_gives_two_thirds_of_a_lease_but_never_takes() -> None:
    holds = holding(a=0.0)
    holds.heartbeat(["a", "unknown"], 5.0)
    assert holds.next_expiry_s() == 30.0
    holds.heartbeat(["a"], 20.0)
    assert holds.next_expiry_s() == 40.0
    assert holds.expire(30.0) == []


def test_a_hold_ends_once() -> None:
    holds = holding(a=0.0, b=0.0)
    pulled = holds.pull("a")
    assert pulled is not None
    assert pulled.id == "a"
    assert holds.pull("a") is None
    assert holds.release("a") is None
    assert holds.release("b") is not None
    assert (holds.pulled, holds.released, holds.expired, holds.after_expiry) == (1, 1, 0, 2)
    assert len(holds) == 0
    assert "a" not in holds
    assert holds.next_expiry_s() is None
