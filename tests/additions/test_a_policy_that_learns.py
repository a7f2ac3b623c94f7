"""A policy with a history is added from outside: it learns of what was granted, and of nothing that was only
asked.
"""

import logging
from collections import Counter
from collections.abc import Sequence

import pytest

from proxy.scheduling.types import CacheLost, Candidate, Granted, Leg, Told
from tests.helpers.service import engines, kvproxy, prose, wait_until


class FewestSoFar:
    """A leg goes where the fewest have gone."""

    unit = "requests"
    reads_session = True

    def __init__(self) -> None:
        self.got: Counter[str] = Counter()
        self.heard: list[Told] = []

    def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> list[float]:  # asked so
        """As `LegPolicy`."""
        return [self.got[c.instance] for c in candidates]

    def learn(self, told: Told) -> None:
        """As `Learner`."""
        self.heard.append(told)
        match told:
            case Granted(prefill=prefill, decode=decode):
                self.got.update({prefill.instance, decode.instance})
            case CacheLost(instance):
                del self.got[instance]


async def test_it_learns_of_each_request_that_is_let_in_and_of_no_explanation() -> None:
    policy = FewestSoFar()
    async with engines(prefill=3, decode=2) as made, kvproxy(made.config(), policy) as service:
        for number in range(6):
            await service.explain({"model": "tiny", "prompt": prose(40, number)})
            assert (await service.complete(prose(40, number), user="me")).status == 200
        assert [policy.got[engine.address] for engine in made.prefill] == [2, 2, 2]
        assert [policy.got[engine.address] for engine in made.decode] == [3, 3]
        granted = [told for told in policy.heard if isinstance(told, Granted)]
        assert len(granted) == 6
        assert {(told.model, told.session) for told in granted} == {("tiny", "me")}
        assert all(len(told.block_keys) > 1 for told in granted)
        assert len({tuple(told.block_keys) for told in granted}) == 6

        leaving = made.prefill[0].address
        assert (await service.admin("/instances/remove", {"instance": leaving})).status == 200
        await wait_until(lambda: CacheLost(leaving) in policy.heard, "the news that its cache is gone")
        assert leaving not in policy.got


class NeverLearns(FewestSoFar):
    """It fails at what it should remember."""

    def learn(self, told: Told) -> None:
        """As `Learner`."""
        raise RuntimeError(f"what is {type(told).__name__}?")


async def test_what_it_fails_to_learn_harms_no_request_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with engines(prefill=1, decode=1) as made, kvproxy(made.config(), NeverLearns()) as service:
        with caplog.at_level(logging.ERROR):
            for number in range(4):
                assert (await service.complete(prose(40, number))).status == 200
        await service.settled()
    assert [record.message for record in caplog.records if "did not learn" in record.message] == [
        "the policy NeverLearns did not learn what happened"
    ]
