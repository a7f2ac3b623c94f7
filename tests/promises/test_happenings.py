"""Each leg and each hold is told once, when it is over, however it ended."""

from collections import Counter
from typing import Any

import pytest

from proxy.happenings import Happening, HoldEnded, LegEnded, Retried
from proxy.phases import Phase
from proxy.simulation.live.faults import Fault
from tests.helpers.service import UNHURRIED, InOrder, fleet, wait_until

P, D = Phase.PREFILL, Phase.DECODE


class Heard:
    """Keeps what it hears of legs."""

    hears: tuple[type[Happening], ...] = (LegEnded, HoldEnded, Retried)

    def __init__(self) -> None:
        self.told: list[Happening] = []

    def hear(self, happening: Happening) -> None:
        self.told.append(happening)

    def legs(self) -> list[LegEnded]:
        return [each for each in self.told if isinstance(each, LegEnded)]

    def ends(self) -> list[tuple[Phase, str]]:
        return [(leg.phase, leg.outcome) for leg in self.legs()]

    def holds(self) -> list[str]:
        return [each.end for each in self.told if isinstance(each, HoldEnded)]


@pytest.mark.parametrize("stream", [False, True])
async def test_both_legs_of_a_request_are_told_with_what_was_predicted(stream: bool) -> None:
    heard = Heard()
    async with fleet(prefill=1, decode=1, consumers=[heard]) as pair:
        for _ in range(2):
            assert (await pair.service.complete("hello " * 40, stream=stream)).status == 200
        await wait_until(lambda: len(heard.ends()) == 4, "the legs' ends")
        first, decode, second, _ = heard.legs()
        assert heard.ends() == [(P, "served"), (D, "served")] * 2
        assert heard.holds() == ["pulled", "pulled"]
        assert (first.instance, first.rank) == (pair.engines.prefill[0].address, 0)
        assert (first.predicted, first.reported) == (0, 0)
        assert second.predicted == second.reported
        assert second.predicted
        assert first.uncached == first.prompt_tokens == second.prompt_tokens
        assert first.began_at < first.ended_at <= second.began_at
        assert decode.prompt_tokens is None


@pytest.mark.parametrize(
    ("role", "fault", "outcome", "answered"),
    [
        ("prefill", {"kind": "status", "status": 500}, "status", True),
        ("decode", {"kind": "status", "status": 500}, "status", True),
        ("decode", {"kind": "status", "status": 503}, "full", True),
        ("decode", {"kind": "cut"}, "broken", False),
    ],
)
async def test_a_leg_that_fails_is_told_once_and_so_is_its_retry(
    role: str, fault: dict[str, Any], outcome: str, answered: bool
) -> None:
    heard = Heard()
    async with fleet(policy=InOrder(), kv_events=False, consumers=[heard]) as pair:
        engines = pair.engines.prefill if role == "prefill" else pair.engines.decode
        bad = min(engines, key=lambda engine: engine.address)
        bad.faults.add(Fault(path="/v1/c", times=1, **fault))
        assert (await pair.service.complete("hello")).status == 200
        (failed,) = [leg for leg in heard.legs() if leg.outcome != "served"]
        assert (failed.phase, failed.instance) == (role, bad.address)
        assert (failed.outcome, failed.answered) == (outcome, answered)
        assert [each.reason for each in heard.told if isinstance(each, Retried)] == [outcome]
        served = Counter(leg.phase for leg in heard.legs() if leg.outcome == "served")
        assert served == ({P: 1, D: 1} if role == "prefill" else {P: 2, D: 1})


async def test_a_leg_whose_client_leaves_is_told_as_left() -> None:
    heard = Heard()
    async with fleet(prefill=1, decode=1, kv_events=False, stand_in=UNHURRIED, consumers=[heard]) as pair:
        body = {"model": "tiny", "prompt": "x", "max_tokens": 5000, "ignore_eos": True, "stream": True}
        async with pair.service.session.post(pair.service.url + "/v1/completions", json=body) as answer:
            await answer.content.readany()
            answer.close()
        await wait_until(lambda: len(heard.ends()) == 2, "the legs' ends")
        assert heard.ends() == [(P, "served"), (D, "left")]
        assert heard.holds() == ["pulled"]


async def test_a_leg_whose_request_the_engine_refuses_is_told_as_refused() -> None:
    heard = Heard()
    async with fleet(prefill=1, decode=1, kv_events=False, consumers=[heard]) as pair:
        fault = Fault(path="/v1/c", kind="status", status=400, times=1)
        pair.engines.prefill[0].faults.add(fault)
        assert (await pair.service.complete("hello")).status == 400
        assert heard.ends() == [(P, "refused")]
        assert not heard.holds()
