"""What a late joiner does not know ends with a reset, and is told by full reports."""

from kvevents import State
from kvevents.events import REPORT_SESSION
from tests.kvevents.bench import ENGINE, Bench, block, publish, until


async def test_a_reset_makes_a_late_joiner_exact(bench: Bench) -> None:
    publisher = bench.publisher(buffer_steps=2)
    publish(publisher, 1, 9)
    publisher.settle()
    async with bench.following() as subscriber:
        await until(lambda: subscriber.state is State.PARTIAL)
        publisher.publish(block(1), {"type": "AllBlocksCleared"}, block(1), block(2))
        await until(lambda: subscriber.state is State.EXACT)
        assert bench.cached() == 2
        assert bench.index.orphans(ENGINE, 0) == 0
        assert bench.heard.retirements == []
        publisher.publish({"type": "AllBlocksCleared"}, {"type": "BlockRemoved"})  # one that cannot be read
        await until(lambda: subscriber.state is State.PARTIAL)
    assert bench.heard.retirements == ["damaged"]


async def test_a_reset_of_an_engine_with_several_tiers_does_not(bench: Bench) -> None:
    """Each tier's own reset is told in the same words."""
    publisher = bench.publisher(buffer_steps=2)
    publish(publisher, 1, 9)
    publisher.settle()
    async with bench.following() as subscriber:
        await until(lambda: subscriber.state is State.PARTIAL)
        publisher.publish(block(1) | {"medium": "CPU"})
        publisher.publish({"type": "AllBlocksCleared"}, block(1))
        await until(lambda: bench.cached() == 1)
        assert subscriber.state is State.PARTIAL


async def test_a_reset_before_a_gap_proves_nothing_of_what_comes_after_it(bench: Bench) -> None:
    publisher = bench.publisher(replay=False, lose=lambda number: number == 2)
    async with bench.following(replay=False) as subscriber:
        await until(lambda: subscriber.connected)
        publisher.publish(block(1))
        await until(lambda: subscriber.state is State.EXACT)
        publisher.publish({"type": "AllBlocksCleared"})
        publish(publisher, 1, 2)  # the first of them is lost
        await until(lambda: subscriber.state is State.PARTIAL)
        assert bench.cached() == 0


async def test_a_report_attaches_what_waited_for_it(bench: Bench) -> None:
    """A late joiner hears only the end of a long prompt; a full report tells of its beginning."""
    publisher = bench.publisher(buffer_steps=3)
    publish(publisher, 1, 9)
    publisher.settle()
    async with bench.following() as subscriber:
        await until(lambda: subscriber.state is State.PARTIAL)
        assert (bench.cached(), bench.index.orphans(ENGINE, 0)) == (0, 3)
        run = block(1) | {"block_hashes": [*range(1, 8)], "token_ids": [*range(1, 15)]}
        publisher.publish(run | {"session_id": REPORT_SESSION})
        await until(lambda: bench.cached() == 9)
        assert bench.index.orphans(ENGINE, 0) == 0
        publisher.publish({"type": "BlockRemoved", "block_hashes": [7], "medium": "GPU"})
        await until(lambda: bench.cached() == 6)  # it was told twice and is there once
        assert subscriber.state is State.PARTIAL
