"""What happens in each phase while clients ask all along."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from scripts.workshop.live.waiting import wait_until
from tests.proofs.exactness import verdict as v
from tests.proofs.exactness.course import FIRST, LATE, Phase
from tests.proofs.exactness.prompts import MIXED, PRESSURE
from tests.proofs.exactness.setting import START_S
from tests.proofs.exactness.stage import Stage

_SHARES = {Phase.MIXED: 0.2, Phase.PRESSURE: 0.2, Phase.RESETS: 0.2, Phase.ENGINE: 0.15, Phase.ROUTER: 0.15}
"""Of the time; the late joiner gets the rest, and the end takes what it takes."""

_DOWN_S = 3.0
"""How long what was killed stays away."""
_TOLD_S = 60.0
_WRITTEN_S = 180.0
_WRAP_S = 300.0
_LATE_S = 600.0
_MIN_MISSED = 0.05
"""Of the cached blocks a late joiner cannot have heard of."""
_BESIDE_LATE = 2
"""Clients of the first kvproxy that go on beside the late joiner's."""


async def traffic(stage: Stage, group: asyncio.TaskGroup) -> None:
    """Clients of the first kvproxy ask all along."""
    acts: Mapping[Phase, Callable[[Stage], Awaitable[None]]] = {
        Phase.MIXED: _mixed,
        Phase.PRESSURE: _pressure,
        Phase.RESETS: _resets,
        Phase.ENGINE: _engine,
        Phase.ROUTER: _router,
    }
    until = asyncio.Event()
    clients = group.create_task(stage.crowds[FIRST].run(stage.options.clients, until), name="clients")
    try:
        for phase, act in acts.items():
            if phase not in stage.options.phases:
                continue
            async with stage.phase(phase):
                end = time.monotonic() + stage.options.seconds * _SHARES[phase]
                await act(stage)
                await asyncio.sleep(end - time.monotonic())
        if Phase.LATE in stage.options.phases:
            await _wrap(stage)
    finally:
        until.set()
    await clients
    if Phase.LATE in stage.options.phases:
        await _late(stage, group)


async def _mixed(stage: Stage) -> None:
    stage.crowds[FIRST].mix = MIXED


async def _pressure(stage: Stage) -> None:
    """Long documents push everything else out."""
    stage.crowds[FIRST].mix = PRESSURE
    await asyncio.sleep(stage.options.seconds * _SHARES[Phase.PRESSURE])
    stage.crowds[FIRST].mix = MIXED


async def _resets(stage: Stage) -> None:
    """Each prefill engine's cache is cleared in turn, at rest, for an engine at work refuses."""
    every_s = stage.options.seconds * _SHARES[Phase.RESETS] / stage.options.resets
    cleared = {spec.address: stage.witness[spec.address].cleared for spec in stage.prefill}
    reset: set[str] = set()
    for n in range(stage.options.resets):
        spec = stage.prefill[n % len(stage.prefill)]
        begun = time.monotonic()
        async with stage.at_rest() as resting:
            if resting:
                async with stage.session.post(f"{spec.url}/reset_prefix_cache") as answer:
                    answer.raise_for_status()
                reset.add(spec.address)
                stage.made.note(f"{spec.name} ({spec.address}) was reset")
        await asyncio.sleep(begun + every_s - time.monotonic())

    async def told() -> bool:
        """An engine tells of a reset with the next batch it publishes."""
        return all(stage.witness[address].cleared > cleared[address] for address in reset)

    try:
        await wait_until(told, _TOLD_S, "engines tell that they were reset")
    except TimeoutError as error:
        stage.made.wrong.append(str(error))


async def _engine(stage: Stage) -> None:
    """A prefill engine dies at work and comes back at its address."""
    spec = stage.prefill[0]
    begun = time.time()
    stage.fleet.kill(spec.name)
    stage.made.note(f"{spec.name} ({spec.address}) was killed")
    await asyncio.sleep(_DOWN_S)
    stage.witness.killed(spec.address, begun)  # what it had sent by then has been heard
    stage.fleet.restart(spec.name)
    await asyncio.to_thread(stage.fleet.wait_healthy, [spec.name], START_S)
    stage.made.wrong += await stage.known(FIRST, {"exact"})
    stage.made.note(f"{spec.name} is back")
    stage.made.kills.append((begun, time.time()))


async def _router(stage: Stage) -> None:
    """The router dies at work and comes back on its port and its state directory."""
    looks = stage.looks[FIRST]
    await _written(stage, time.time())
    await looks.look()
    begun = time.time()
    looks.dies()
    stage.routers.kill(FIRST)
    stage.made.note(f"kvproxy {FIRST} was killed")
    proxy = stage.routers.start(FIRST)
    await asyncio.to_thread(proxy.wait_status, "/ready", 200, START_S)
    looks.lives(proxy)
    stage.made.note(f"kvproxy {FIRST} is back")
    stage.made.verdict.add(v.RETURNED, await stage.known(FIRST, {"exact"}))
    stage.made.kills.append((begun, time.time()))


async def _written(stage: Stage, since: float) -> None:
    """Wait for snapshots of all engines: of one that has just come back, an old one tells nothing."""

    async def written() -> bool:
        return stage.routers.snapshots(FIRST, since) >= len(stage.fleet.specs)

    try:
        await wait_until(written, _WRITTEN_S, "kvproxy writes its snapshots")
    except TimeoutError as error:
        stage.made.wrong.append(str(error))


async def _wrap(stage: Stage) -> None:
    """Wait until no prefill engine can replay all it has published."""

    async def wrapped() -> bool:
        return all(
            stage.witness[spec.address].published > stage.options.buffer_steps for spec in stage.prefill
        )

    try:
        await wait_until(wrapped, _WRAP_S, "the replay buffers wrap")
    except TimeoutError:
        told = {spec.name: stage.witness[spec.address].published for spec in stage.prefill}
        stage.made.wrong.append(f"the replay buffers of {stage.options.buffer_steps} did not wrap: {told}")


async def _late(stage: Stage, group: asyncio.TaskGroup) -> None:
    """Another kvproxy joins, and its clients ask beside the first one's."""
    until = asyncio.Event()
    beside = group.create_task(stage.crowds[FIRST].run(_BESIDE_LATE, until), name="clients beside")
    try:
        await stage.join(group, LATE)
        _compare(stage)
        crowd = stage.crowds[LATE]
        async with stage.phase(Phase.LATE):
            enough = asyncio.Event()
            clients = group.create_task(crowd.run(stage.options.clients, enough), name="late clients")

            async def asked() -> bool:
                return sum(leg.served for leg in stage.of(LATE)) >= stage.options.late_requests

            try:
                await wait_until(asked, _LATE_S, "the late joiner has served enough")
            except TimeoutError as error:
                stage.made.wrong.append(str(error))
            finally:
                enough.set()
            await clients
    finally:
        until.set()
    await beside


def _compare(stage: Stage) -> None:
    """A late joiner that has missed nothing would prove nothing."""
    look = stage.looks[LATE].last
    known = {address: look.instances[address]["blocks"] if look else 0 for address in stage.addresses}
    cached = {address: stage.witness[address].cached_blocks for address in stage.addresses}
    for address in stage.addresses:
        stage.made.note(f"kvproxy {LATE} knows {known[address]} of {cached[address]} blocks of {address}")
    missed = sum(cached.values()) - sum(known.values())
    if missed < _MIN_MISSED * sum(cached.values()):
        stage.made.wrong.append(
            f"the late joiner knows {known} blocks of {cached}: the buffers hold too much"
        )
