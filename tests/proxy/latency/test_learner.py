"""The model learns from what happens, and from nothing that did not happen as it seems."""

import asyncio
import random

import msgspec
import pytest

from proxy.happenings import InstanceRemoved, LegBegan, LegEnded, LegSent, QueueLeft
from proxy.latency.fits import PoolName
from proxy.latency.learner import LatencyLearner
from proxy.latency.model import LatencyModel
from proxy.latency.profiles import PROFILES, UNKNOWN
from proxy.phases import Phase
from proxy.scheduling.policies import LeastMs
from tests.helpers.service import UNHURRIED, fleet, wait_until
from tests.proxy.latency.queueing import Truth, grid_error, poisson, work

PREFILL = PoolName("prefill", "m")


def learner(*instances: str) -> tuple[LatencyLearner, LatencyModel, dict[str, PoolName]]:
    model, there = LatencyModel(PROFILES[UNKNOWN]), dict.fromkeys(instances, PREFILL)
    return LatencyLearner(model, there.get), model, there


def ended(
    began_at: float,
    ended_at: float,
    uncached: int | None,
    prompt: int | None,
    *,
    outcome: str = "served",
    reported: int | None = None,
    phase: Phase = Phase.PREFILL,
    rank: int = 0,
) -> LegEnded:
    served = outcome == "served"
    return LegEnded(phase, "p", rank, began_at, ended_at, outcome, served, uncached, prompt, None, reported)


def test_prefill_is_learned_from_legs_that_were_served() -> None:
    truth, rng = Truth(), random.Random(1)
    consumer, model, _ = learner("p")
    for each in work(poisson(rng, truth, 1500, 0.5), truth, rng, outliers=0.01):
        outcome = "timeout" if rng.random() < 0.1 else "served"
        prompt = each.prompt if outcome == "served" else None
        consumer.hear(ended(each.at, each.ended_at, each.uncached, prompt, outcome=outcome))
    mean, _ = grid_error(lambda u, n: model.prefill_ms("p", u, n), truth)
    assert mean < 0.05


def test_a_pair_that_has_handed_over_shakes_hands_no_more_whether_or_not_it_was_timed() -> None:
    profile = msgspec.structs.replace(PROFILES[UNKNOWN], handshake=200.0)
    model = LatencyModel(profile)
    consumer = LatencyLearner(model, {"p": PREFILL, "d": PoolName("decode", "m")}.get)
    assert consumer.joined("p")
    assert model.handshake_ms("p", "d") == 200
    consumer.hear(LegBegan("d", 0, 1.0, 1.1, 900, 900, "p", in_turn=False))
    assert model.handshake_ms("p", "d") == 0


def test_streams_are_followed_where_a_step_was_fitted_to_take_nothing() -> None:
    profile = msgspec.structs.replace(PROFILES[UNKNOWN], s0=1e-300, s1=0.0, s2=0.0)
    consumer = LatencyLearner(LatencyModel(profile), {"d": PREFILL}.get)
    for at in (1.0, 2.0, 3.0):
        consumer.hear(LegBegan("d", 0, at, at + 0.5, 900, 900))


def test_a_stream_that_ends_with_the_clients_own_error_runs_no_more() -> None:
    consumer = LatencyLearner(LatencyModel(PROFILES[UNKNOWN]), {"d": PREFILL}.get)
    for at in (1.0, 2.0, 3.0):
        consumer.hear(LegBegan("d", 0, at, at + 0.5, 900, 900))
        end = ended(at, at + 0.7, 900, 900, outcome="refused", phase=Phase.DECODE)
        consumer.hear(msgspec.structs.replace(end, instance="d", first_token_at=at + 0.5))
    assert consumer._streams["d"][0].sequences == 0


@pytest.mark.parametrize("answers", [1, 3])
def test_steps_are_learned_beside_answers_that_come_whole(answers: int) -> None:
    """Of 5 ms, and 1 ms for each sequence: the one stream that is seen has 0 to 12 others beside it."""
    model = LatencyModel(PROFILES[UNKNOWN])
    consumer = LatencyLearner(model, {"d": PREFILL}.get)
    at, rng = 0.0, random.Random(3)
    for _ in range(300):
        legs = rng.randrange(1 + 12 // answers)
        for _ in range(legs):
            consumer.hear(LegSent("d", 0, at, 1000, answers))
        until = at + 39 * (5 + 1 + legs * answers) / 1000
        consumer.hear(LegBegan("d", 0, at - 0.1, at, 1000, 1000, "p", in_turn=False))
        stream = ended(at - 0.1, until, 1000, 1000, phase=Phase.DECODE)
        stream = msgspec.structs.replace(stream, instance="d", first_token_at=at, generated=40)
        consumer.hear(msgspec.structs.replace(stream, pulled_from="p"))
        whole = msgspec.structs.replace(ended(at, until, 1000, 1000, phase=Phase.DECODE), instance="d")
        for number in range(legs):
            outcome = "connect" if number == 0 else "served"
            whole = msgspec.structs.replace(whole, outcome=outcome, sequences=answers, whole=True)
            consumer.hear(whole)
        at = until + 0.5
    assert consumer._streams["d"][0].sequences == 0
    assert consumer._streams["d"][0].context_tokens == 0
    for sequences in (1, 4, 12):
        assert model.step_ms("d", sequences, 1000 * sequences) == pytest.approx(5 + sequences, rel=0.05)


def test_the_end_of_a_whole_answer_of_a_process_that_was_there_before_takes_nothing_off() -> None:
    consumer = LatencyLearner(LatencyModel(PROFILES[UNKNOWN]), {"d": PREFILL}.get)
    consumer.hear(LegSent("d", 0, 1.0, 1000, 2))
    consumer.restarted("d")
    consumer.hear(LegSent("d", 0, 2.0, 500))
    before = msgspec.structs.replace(ended(1.0, 3.0, None, 1000, phase=Phase.DECODE), instance="d")
    consumer.hear(msgspec.structs.replace(before, outcome="broken", sequences=2, whole=True))
    streams = consumer._streams["d"][0]
    assert streams.sequences == 1
    assert streams.context_tokens >= 500


def test_what_the_engine_counted_is_believed_rather_than_the_decision() -> None:
    counted, predicted = learner("p"), learner("p")
    for index in range(20):
        counted[0].hear(ended(index, index + 0.5, 10, 9000, reported=1000))
        predicted[0].hear(ended(index, index + 0.5, 8000, 9000))
    assert counted[1].state() == predicted[1].state()
    assert counted[1].fitted()[0].observations > 10


@pytest.mark.parametrize(
    "more",
    [
        {"outcome": "timeout", "prompt": None},
        {"outcome": "left", "prompt": None},
        {"uncached": None, "prompt": None},
        {"phase": Phase.DECODE, "prompt": None},
    ],
)
def test_other_work_teaches_nothing_and_hides_what_ran_beside(more: dict[str, object]) -> None:
    consumer, model, _ = learner("p")
    for index in range(0, 40, 2):
        consumer.hear(ended(index, index + 0.5, 1000, 1000))
        other = {"uncached": 1000, "prompt": 1000} | more
        consumer.hear(ended(index + 0.1, index + 0.9, **other))  # type: ignore[arg-type]  # a leg's fields
    assert not model.fitted()


def test_ranks_have_queues_of_their_own() -> None:
    """Two legs at once on two ranks took their whole times, and on one rank half of it each."""
    apart, together = learner("p"), learner("p")
    for index in range(20):
        for rank in (0, 1):
            apart[0].hear(ended(index, index + 0.4 + 0.2 * rank, 1000, 1000, rank=rank))
            together[0].hear(ended(index, index + 0.4 + 0.2 * rank, 1000, 1000))
    assert apart[1].prefill_ms("p", 1000, 1000) > 400
    assert together[1].prefill_ms("p", 1000, 1000) < 400


def test_who_is_removed_is_forgotten_and_what_ends_there_later_teaches_nothing() -> None:
    consumer, model, there = learner("p")
    for index in range(20):
        consumer.hear(ended(index, index + 0.5, 1000, 1000))
    del there["p"]
    consumer.hear(InstanceRemoved("p"))
    state = model.state()
    for index in range(20, 40):
        consumer.hear(ended(index, index + 5.0, 1000, 1000))
    assert model.state() == state
    assert model.fitted()[0].factors == {}


def test_what_it_does_not_hear_changes_nothing() -> None:
    consumer, model, _ = learner("p")
    before = model.state()
    consumer.hear(QueueLeft(1.0))
    assert model.state() == before


async def test_it_hears_of_a_service() -> None:
    """Through sockets, as it stands: legs of prompts that are known teach prefill."""
    model = LatencyModel(PROFILES["tiny-cpu"])
    consumer = LatencyLearner(model, lambda _: PREFILL)
    async with fleet(prefill=1, decode=1, consumers=[consumer]) as pair:
        for index in range(12):
            assert (await pair.service.complete(f"{index} hello " * 40, max_tokens=2)).status == 200
        await wait_until(lambda: bool(model.fitted()), "an observation")
        (fitted,) = model.fitted()
        assert (fitted.kind, fitted.role) == ("prefill", "prefill")
        assert list(fitted.factors) == [pair.engines.prefill[0].address]


async def test_whole_answers_run_from_their_sending_to_their_end() -> None:
    consumer = LatencyLearner(LatencyModel(PROFILES["tiny-cpu"]), lambda _: PREFILL)
    async with fleet(
        1, 1, policy=LeastMs(), bypass_tokens=0, consumers=[consumer], stand_in=UNHURRIED
    ) as pair:
        (decode,) = pair.engines.decode
        several = pair.service.complete("hello", n=2, max_tokens=64, temperature=1)
        asked = asyncio.get_running_loop().create_task(several)
        await wait_until(lambda: decode.address in consumer._streams, "the leg")
        (streams,) = consumer._streams[decode.address].values()
        assert streams.sequences == 2
        assert (await asked).status == 200
        await pair.service.settled()
        assert streams.sequences == 0
        leaving = asyncio.get_running_loop().create_task(pair.service.complete("hello", max_tokens=64))
        await wait_until(lambda: streams.sequences == 1, "the leg")
        leaving.cancel()
        await wait_until(lambda: streams.sequences == 0, "its end")
