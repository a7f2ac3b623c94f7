"""The model learns from what happens, and from nothing that did not happen as it seems."""

import random

import msgspec
import pytest

from proxy.happenings import InstanceRemoved, LegBegan, LegEnded, QueueLeft
from proxy.latency.fits import PoolName
from proxy.latency.learner import LatencyLearner
from proxy.latency.model import LatencyModel
from proxy.latency.profiles import PROFILES, UNKNOWN
from proxy.phases import Phase
from tests.helpers.service import fleet, wait_until
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
