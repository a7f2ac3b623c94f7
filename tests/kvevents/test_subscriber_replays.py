"""What was missed is asked for again, on real sockets; what cannot be had is known to be missing."""

import asyncio

import pytest

from kvevents import RetireReason, State
from tests.kvevents.bench import ENGINE, Bench, Heard, block, publish, until
from tests.kvevents.publisher import Publisher


async def test_live_batches_during_a_long_replay_are_applied_after_it(bench: Bench) -> None:
    publisher = bench.publisher()
    publish(publisher, 1, 600)
    publisher.settle()
    async with bench.following() as subscriber:
        await until(lambda: bool(publisher.requests))
        publish(publisher, 601, 700)
        await until(lambda: subscriber.state is State.EXACT and bench.cached() == 700)
    assert bench.heard.numbers == list(range(700))
    assert bench.heard.retirements == []


@pytest.mark.parametrize("parts", [2, 3])
async def test_replays_of_other_releases(bench: Bench, parts: int) -> None:
    publisher = bench.publisher(parts=parts)
    publish(publisher, 1, 3)
    publisher.settle()
    async with bench.following() as subscriber:
        await until(lambda: subscriber.state is State.EXACT)
        assert bench.cached() == 3


async def test_what_was_published_before_our_subscription_had_arrived(bench: Bench) -> None:
    publisher = bench.publisher(lose=lambda number: number < 3)
    async with bench.following(settle_s=0.2) as subscriber:
        await until(lambda: subscriber.state is State.EXACT)
        publish(publisher, 1, 3)  # nothing follows that would show the gap
        publisher.settle()
        await until(lambda: bench.cached() == 3)
        assert subscriber.state is State.EXACT
    assert bench.heard.retirements == []


async def test_a_gap_is_filled_by_a_replay(bench: Bench) -> None:
    publisher = bench.publisher(lose=lambda number: number in {2, 3})
    async with bench.following() as subscriber:
        await until(lambda: subscriber.state is State.EXACT)
        publish(publisher, 1, 6)
        await until(lambda: bench.cached() == 6)
        await until(lambda: subscriber.state is State.EXACT)
    assert bench.heard.missing == 2
    assert bench.heard.retirements == []
    assert publisher.requests == [0, 1]


async def test_a_gap_the_buffer_has_outgrown(bench: Bench) -> None:
    publisher = bench.publisher(lose=lambda number: 2 <= number < 20, buffer_steps=3)
    async with bench.following() as subscriber:
        await until(lambda: subscriber.state is State.EXACT)
        publish(publisher, 1, 20)
        publisher.publish(block(1), block(2))
        await until(lambda: subscriber.state is State.PARTIAL)
        await until(lambda: bench.cached() == 2)
        publisher.publish({"type": "AllBlocksCleared"}, block(1))
        await until(lambda: subscriber.state is State.EXACT)
        assert bench.cached() == 1
    assert bench.heard.retirements == ["gap"]


async def test_a_wrapped_buffer_makes_a_late_joiner_partial(bench: Bench) -> None:
    publisher = bench.publisher(buffer_steps=2)
    publish(publisher, 1, 9)
    publisher.publish(block(1))
    publisher.settle()
    async with bench.following() as subscriber:
        await until(lambda: subscriber.state is State.PARTIAL)
        assert bench.heard.numbers == [8, 9]
        assert bench.cached() == 1
        assert bench.index.orphans(ENGINE, 0) == 1


async def test_a_router_that_drops_is_asked_again(bench: Bench) -> None:
    dropped = {(0, 4), (0, 5), (0, 6), (1, 6), (1, -1)}
    publisher = bench.publisher(drop=lambda request, number: (request, number) in dropped)
    publish(publisher, 1, 12)
    publisher.settle()
    async with bench.following(replay_quiet_s=0.2) as subscriber:
        await until(lambda: subscriber.state is State.EXACT)
        assert bench.cached() == 12
    assert bench.heard.numbers == list(range(12))
    assert publisher.requests == [0, 3, 5]
    assert bench.heard.replays == [(4, False), (2, False), (6, True)]


async def test_a_lost_end_marker_costs_time_only(bench: Bench) -> None:
    publisher = bench.publisher(drop=lambda _, number: number == -1)
    publish(publisher, 1, 3)
    publisher.settle()
    async with bench.following(replay_quiet_s=0.2) as subscriber:
        await until(lambda: subscriber.state is State.EXACT)
        assert bench.cached() == 3
    assert publisher.requests == [0, 2]


async def test_no_replay_endpoint_and_there_from_the_start(bench: Bench) -> None:
    publisher = bench.publisher(replay=False)
    async with bench.following(replay=False) as subscriber:
        await until(lambda: subscriber.connected)
        assert subscriber.state is State.UNKNOWN
        await _publish_until_heard(bench, publisher)
        # What is published before the subscription has reached the publisher is lost, and then it is partial.
        assert subscriber.state is (State.EXACT if bench.heard.numbers[0] == 0 else State.PARTIAL)


async def test_no_replay_endpoint_and_a_gap(bench: Bench) -> None:
    publisher = bench.publisher(replay=False, lose=lambda number: number == 500)
    async with bench.following(replay=False) as subscriber:
        await until(lambda: subscriber.connected)
        await _publish_until_heard(bench, publisher)
        publisher.settle()
        publish(publisher, publisher.published + 1, 500)
        publisher.settle()
        publisher.publish(block(501))  # lost
        publisher.publish(block(1))
        await until(lambda: "gap" in bench.heard.retirements)
        await until(lambda: bench.cached() == 1 and subscriber.state is State.PARTIAL)
        assert bench.heard.missing == 1


async def test_an_exact_rank_is_partial_before_a_gap_takes_its_blocks(bench: Bench) -> None:
    states: list[State] = []

    class AtRetirement(Heard):
        def retired(self, *, instance: str, rank: int, why: RetireReason) -> None:
            super().retired(instance=instance, rank=rank, why=why)
            states.append(subscriber.state)

    bench.heard = AtRetirement()
    publisher = bench.publisher(replay=False, lose=lambda number: number == 500)
    async with bench.following(replay=False) as subscriber:
        await until(lambda: publisher._subscriptions > 0)
        publish(publisher, 1, 500)
        publisher.settle()
        publisher.publish(block(501))  # lost
        publisher.publish(block(1))
        await until(lambda: "gap" in bench.heard.retirements)
    assert states[-1] is State.PARTIAL


async def _publish_until_heard(bench: Bench, publisher: Publisher) -> None:
    number = 0
    while not bench.heard.numbers:
        number += 1
        assert number < 400
        publisher.publish(block(number))
        await asyncio.sleep(0.01)


async def test_a_deaf_replay_endpoint_leaves_live_messages(bench: Bench) -> None:
    publisher = bench.publisher(deaf=True)
    publish(publisher, 1, 2)
    publisher.settle()
    async with bench.following(replay_quiet_s=0.1) as subscriber:
        await until(lambda: len(bench.heard.replays) >= 3)
        publisher.publish(block(1))
        await until(lambda: subscriber.state is State.PARTIAL)
        assert bench.cached() == 1


async def test_a_replay_endpoint_that_comes_back_makes_it_exact(bench: Bench) -> None:
    publisher = bench.publisher(deaf=True)
    publish(publisher, 1, 2)
    publisher.settle()
    async with bench.following(replay_quiet_s=0.1, probe_s=0.2) as subscriber:

        def partial() -> bool:
            publisher.publish(block(publisher.published + 1))
            return subscriber.state is State.PARTIAL

        def exact() -> bool:  # while the source is never idle
            partial()
            return subscriber.state is State.EXACT

        await until(partial)
        publisher._deaf = False
        await until(exact)
        assert bench.heard.retirements == ["rebuild"]
    assert bench.heard.numbers[-1] < publisher.published
    first = bench.heard.numbers.index(0)
    assert bench.heard.numbers[first:] == list(range(len(bench.heard.numbers) - first))


async def test_a_lost_last_batch_is_found_by_a_probe(bench: Bench) -> None:
    publisher = bench.publisher(lose=lambda number: number >= 2)
    async with bench.following(probe_s=0.2) as subscriber:
        await until(lambda: subscriber.state is State.EXACT)
        publish(publisher, 1, 4)
        await until(lambda: bench.cached() == 4)
        assert subscriber.state is State.EXACT
    assert bench.heard.missing == 0
    assert bench.heard.retirements == []


async def test_who_hears_by_replay_alone_is_not_exact_and_says_why(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = bench.publisher(topic="kv@one")
    publish(publisher, 1, 3)
    async with bench.following(topic="kv@two", probe_s=0.02) as subscriber:
        await until(lambda: subscriber.state is State.EXACT)
        for number in range(4, 7):
            publish(publisher, number, number)
            await until(lambda last=number: bench.cached() == last)  # type: ignore[misc]
        await until(lambda: subscriber.state is State.PARTIAL)
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 1
    assert "replay only" in told[0]
    assert "'kv@two'" in told[0]
