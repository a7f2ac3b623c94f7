"""An operator finds each change of readiness, indexes and instances in the log, in /status and in /ready."""

import asyncio

import pytest

from proxy.config import Admission, WhenNoPrefill, parse_instance
from proxy.edge.app_keys import SERVICE
from proxy.phases import Role
from proxy.simulation.live.faults import Fault
from proxy.tuning import Tuning
from proxy.watching.changes import Changes
from tests.helpers.service import engines, fleet, kvproxy, wait_until


async def test_a_wrong_event_port_is_told_in_the_log_and_in_the_status(
    caplog: pytest.LogCaptureFixture,
) -> None:
    soon = Tuning(silent_s=0.3)
    async with engines(prefill=1, decode=1) as made:
        wrong = "tcp://127.0.0.1:1"
        told = parse_instance(f"{made.prefill[0].address}?events={wrong}", Role.PREFILL)
        config = made.config(instances=(told, made.config().instances[1]))
        async with kvproxy(config, ready=False, tuning=soon) as service:
            await wait_until(lambda: "no KV events come from" in caplog.text, "the warning")
            (rank,) = (await service.ask("/status")).json["instances"][0]["ranks"]
            assert rank["why"] == f"no KV events come from {wrong}"
            assert (await service.complete("hello")).status == 200
            assert made.decode[0].address not in caplog.text


async def test_lost_readiness_is_seen_everywhere_in_the_same_words(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[bool] = []
    look = Changes.look

    def looks(self: Changes) -> None:
        look(self)
        seen.append(self._fleet.ready)

    monkeypatch.setattr(Changes, "look", looks)
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        await wait_until(lambda: True in seen, "a look at a fleet that is ready")
        shown = (await pair.service.ask("/status")).json
        assert (shown["ready"], shown["not_ready_because"]) == (True, None)
        await pair.service.admin("/instances/drain", {"instance": pair.engines.prefill[0].address})
        words = "no usable prefill instance (1 of 1 draining)"
        await wait_until(lambda: f"not ready: {words}" in caplog.text, "the warning")
        assert (await pair.service.ask("/ready")).json["error"]["message"] == f"not ready: {words}"
        shown = (await pair.service.ask("/status")).json
        assert (shown["ready"], shown["not_ready_because"]) == (False, words)
        assert (shown["instances"][0]["share"], shown["instances"][1]["share"]) == (0, 1)


async def test_a_decode_engine_alone_is_ready_where_it_may_do_all() -> None:
    async with engines(prefill=1, decode=1) as made:
        await made.prefill[0].refuse()
        admission = Admission(when_no_prefill=WhenNoPrefill.DECODE)
        config = made.config(admission=admission, kv_events=False, startup_timeout_s=3.0)
        async with kvproxy(config, ready=False) as service:
            await wait_until(lambda: service.fleet.ready, "readiness")
            assert (await service.ask("/ready")).status == 200
            assert (await service.ask("/status")).json["ready"] is True
            assert (await service.complete("hello")).status == 200
            fatal = service.app[SERVICE].watch.fatal
            with pytest.raises(TimeoutError):  # the time for starting up passes
                async with asyncio.timeout(3.5):
                    await asyncio.shield(fatal)
            assert not fatal.done()


async def test_an_engine_that_does_not_answer_says_so_before_it_is_down() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        instance = pair.service.fleet.get(pair.engines.decode[0].address)
        assert instance is not None
        pair.engines.decode[0].faults.add(Fault(kind="hang", path="/health"))
        await wait_until(lambda: instance.breaker.doubtful, "a missed check")
        shown = (await pair.service.ask("/status")).json["instances"][1]
        assert (shown["state"], shown["why"]) == ("up", "its last check was not answered")
