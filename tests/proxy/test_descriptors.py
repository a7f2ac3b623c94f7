"""However many connections there are, engines are reached, probes and operators are answered, and what is
closed is told."""

import contextlib

import pytest

from proxy.descriptors import Descriptors, Place
from proxy.edge.sockets.doors import ClientDoor, OperatorDoor
from proxy.errors import NoSocketError
from proxy.happenings import ConnectionClosed, Happening
from proxy.simulation import StandIn
from proxy.upstream.client import EngineClient
from proxy.upstream.engine_api.about import health

# -- decisions ----------------------------------------------------------------------------------------------


class Bench:
    """Descriptors of a process that has so many open for itself; its clock and counts are the test's."""

    def __init__(self, limit: int, own: int, *, with_operators: bool = False) -> None:
        self.now = 0.0
        self.own: int | None = own
        self.looks = 0
        self.legs = 0
        self.told: list[str] = []
        self.them = Descriptors(
            limit,
            open_now=self._open,
            clock=lambda: self.now,
            tell=self._heard,
            with_operators=with_operators,
        )
        self.them.count_legs = lambda: self.legs

    def _open(self) -> int | None:
        self.looks += 1
        if self.own is None:
            return None
        them = self.them
        return self.own + self.legs + them.connections + them.operators + len(them._closing)

    def _heard(self, happening: Happening) -> None:
        assert isinstance(happening, ConnectionClosed)
        self.told.append(happening.reason)


class Guest:
    def __init__(self, door: ClientDoor | OperatorDoor) -> None:
        self.is_idle = True
        self.is_reading = False
        self.closed = False
        self.came = door.comes(self)

    def force_close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("limit", "own", "with_operators", "spare", "shared"),
    [
        (64, 30, False, 4, 30),
        (64, 30, True, 4, 26),
        (1024, 60, False, 64, 900),
        (1024, 60, True, 64, 836),
        (16_384, 100, True, 128, 16_028),
        (65_536, 100, False, 128, 61_212),
        (-1, 100, False, 128, (1 << 20) - 100 - 65_536 - 128),
        (32, 60, False, 4, 2),
    ],
)
def test_the_limit_is_divided(limit: int, own: int, with_operators: bool, spare: int, shared: int) -> None:
    them = Bench(limit, own, with_operators=with_operators).them
    assert (them.spare, them.shared) == (spare, shared)


def test_clients_and_legs_may_have_what_the_others_leave_up_to_three_quarters() -> None:
    bench = Bench(64, 30)  # 30 to share
    places = [bench.them.client_comes() for _ in range(40)]
    assert places == [Place.SHARED] * 23 + [Place.SPARE] * 4 + [Place.NONE] * 13
    assert bench.told == ["refused"] * 13
    for bench.legs in range(1, 8):
        assert bench.them.leg_fits()
    bench.legs = 8
    assert not bench.them.leg_fits()

    bench = Bench(64, 30)
    for bench.legs in range(1, 24):
        assert bench.them.leg_fits()
    bench.legs = 24
    assert not bench.them.leg_fits()
    bench.legs = 23
    assert [bench.them.client_comes() for _ in range(9)] == [Place.SHARED] * 7 + [Place.SPARE] * 2


def test_for_a_leg_an_idle_client_goes() -> None:
    bench = Bench(64, 30)
    door = ClientDoor(bench.them)
    guests = [Guest(door) for _ in range(23)]
    bench.legs = 8
    assert bench.them.leg_fits()
    assert [guest.closed for guest in guests] == [True] + [False] * 22
    assert bench.told == ["idle"]


def test_files_that_the_process_opens_are_seen_and_those_it_closes_come_back() -> None:
    bench = Bench(64, 30)
    assert bench.them.shared == 30
    bench.own = 40
    assert bench.them.shared == 30
    bench.now = 1.0
    assert bench.them.shared == 20
    bench.own = None  # none is left to look with
    bench.now = 2.0
    assert bench.them.shared == 20
    bench.own = 30
    bench.now = 3.0
    assert bench.them.shared == 30
    many = Bench(1 << 20, 30)
    for many.now in range(100):
        assert many.them.shared
    assert many.looks == 1


def test_when_the_process_opens_more_for_itself_idle_clients_go() -> None:
    bench = Bench(64, 30)
    door = ClientDoor(bench.them)
    guests = [Guest(door) for _ in range(23)]
    bench.them.relieve()
    assert not bench.told
    bench.own, bench.now = 44, 1.0
    bench.them.relieve()
    assert [guest.closed for guest in guests] == [True] * 7 + [False] * 16
    for guest in guests[7:]:
        door.works(guest)
        guest.is_idle = False
    bench.own, bench.now = 50, 2.0
    bench.them.relieve()
    assert not any(guest.closed for guest in guests[7:])


def test_a_connection_that_is_about_to_be_closed_is_nobodys_own() -> None:
    """Its descriptor is open until the loop's next turn: counted as the process's own it would cost others
    their places."""
    bench = Bench(64, 30)
    door = ClientDoor(bench.them)
    guests = [Guest(door) for _ in range(60)]
    assert sum(guest.closed for guest in guests) == 60 - 23
    bench.now = 0.2  # all is counted again, and none of them is closed yet
    assert (bench.them.shared, bench.them.closing) == (30, 60 - 23)
    bench.them.relieve()
    assert sum(guest.closed for guest in guests) == 60 - 23
    for guest in guests:
        if guest.closed:
            door.closed(guest)
    bench.now = 2.0
    assert (bench.them.shared, bench.them.closing) == (30, 0)


def test_a_refused_connection_does_not_count_as_kvproxys_own() -> None:
    bench = Bench(64, 30)
    door = ClientDoor(bench.them)
    guests = [Guest(door) for _ in range(23)]
    for guest in guests:
        door.works(guest)
        guest.is_idle = False
    late = []
    for _ in range(6):
        late.append(guest := Guest(door))
        door.works(guest)
        guest.is_idle = False
    assert [guest.came for guest in late] == [True] * 4 + [False] * 2
    assert bench.them.closing == 2
    bench.now = 0.2
    assert bench.them.shared == 30
    for guest in late:
        door.closed(guest)
    assert bench.them.closing == 0


def test_connections_that_linger_take_room_until_they_are_closed() -> None:
    """A client that reads no more keeps its descriptor open: others cannot have it meanwhile."""
    bench = Bench(64, 30)
    door = ClientDoor(bench.them)
    guests = [Guest(door) for _ in range(33)]
    gone = [guest for guest in guests if guest.closed]
    assert len(gone) == 10
    bench.now = 1.0
    assert (bench.them.shared, bench.them.closing) == (20, 0)
    for guest in gone:
        door.closed(guest)
    bench.now = 2.0
    assert bench.them.shared == 30


def test_the_longest_idle_connection_goes_first_and_working_ones_stay() -> None:
    bench = Bench(64, 30)
    door = ClientDoor(bench.them)
    guests = [Guest(door) for _ in range(23)]
    for number in (0, 1, 2):
        door.works(guests[number])
        guests[number].is_idle = False
    door.rests(guests[0])
    guests[0].is_idle = True
    guests[3].is_idle = False  # it is being written to, as the door does not know
    late = [Guest(door) for _ in range(19)]
    assert all(guest.came for guest in late)
    assert [n for n, guest in enumerate(guests) if guest.closed] == list(range(4, 23))
    newest = Guest(door)
    assert guests[0].closed
    assert newest.came
    assert bench.told == ["idle"] * 20
    assert bench.them.connections == 23


def test_where_none_is_idle_the_one_goes_whose_request_is_coming_for_the_longest() -> None:
    bench = Bench(64, 30)
    door = ClientDoor(bench.them)
    guests = [Guest(door) for _ in range(23)]
    for guest in guests:
        guest.is_idle, guest.is_reading = False, True
        door.works(guest)
    guests[0].is_reading = False  # its body has come to its end
    door.rests(guests[1])  # it has been answered, and sends no more
    guests[1].is_reading = False
    assert all(Guest(door).came for _ in range(3))
    assert [n for n, guest in enumerate(guests) if guest.closed] == [
        2
    ]  # the others that went were the new ones
    assert bench.told == ["reading", "idle", "idle"]
    assert bench.them.connections == 23


def test_where_all_work_some_come_for_one_answer_and_then_none() -> None:
    bench = Bench(64, 30)
    door = ClientDoor(bench.them)
    guests = []
    for _ in range(30):
        guests.append(Guest(door))
        door.works(guests[-1])
        guests[-1].is_idle = False
    assert [door.is_spare(guest) for guest in guests] == [False] * 23 + [True] * 4 + [False] * 3
    assert [guest.came for guest in guests] == [True] * 27 + [False] * 3
    assert bench.told == ["refused"] * 3
    door.closed(guests[24])
    door.closed(guests[24])
    assert door.is_spare(Guest(door))
    for guest in guests:
        door.closed(guest)
    assert bench.them.connections == 1  # the one that came last


def test_operators_have_their_own() -> None:
    bench = Bench(64, 30, with_operators=True)
    clients, door = ClientDoor(bench.them), OperatorDoor(bench.them)
    for _ in range(50):
        Guest(clients)
    guests = [Guest(door) for _ in range(6)]
    assert [guest.closed for guest in guests] == [True, True, False, False, False, False]
    for guest in guests[2:]:
        door.works(guest)
        guest.is_idle = False
    assert not Guest(door).came
    door.closed(guests[2])
    assert Guest(door).came
    assert bench.them.operators == 4


def test_the_log_is_told_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(64, 30)
    for _ in range(100):
        bench.them.closed("idle")
    bench.them.closed("refused")
    assert len(caplog.records) == 1
    bench.now = 60.0
    bench.them.closed("idle")
    assert len(caplog.records) == 2
    assert "ulimit -Hn" in caplog.text
    assert (
        "100 idle connections, and 0 whose requests were still coming, were closed and 1 new ones"
        in caplog.text
    )


# -- a process that has few ----------------------------------------------------------------------------------


async def test_free_connections_to_engines_make_room_for_new_ones_and_those_in_use_do_not() -> None:
    bench = Bench(8, 0)  # four to share, so three for engines
    bench.own = None
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(EngineClient(descriptors=bench.them))
        made = [await stack.enter_async_context(StandIn()) for _ in range(6)]
        for engine in made:
            assert await health(client, engine.address, 10) == 200
            assert bench.them.legs <= 3
        body = b'{"model": "tiny", "prompt": "x", "max_tokens": 4000, "ignore_eos": true, "stream": true}'
        answers = [await client.post(engine.address, "/v1/completions", body, []) for engine in made[:3]]
        assert bench.them.legs == 3
        with pytest.raises(NoSocketError):
            await health(client, made[3].address, 10)
        answers[0].close()
        assert await health(client, made[3].address, 10) == 200
        for answer in answers:
            answer.close()
