"""A policy that prices pairs is added from outside: one class, given by name or from Python, seen in
`/explain`."""

import pathlib

import pytest

from proxy.errors import ConfigError
from proxy.phases import Phase
from proxy.scheduling.policies import POLICIES, load_policy
from proxy.scheduling.types import Policy, View
from tests.helpers.service import engines, kvproxy, prose

TRANSFER_TOKENS = 10_000
"""What fetching blocks from another zone costs, in tokens computed meanwhile."""


class WithinOneZone:
    """Both legs stay within one zone, unless what waits there would take longer than the way."""

    unit = "tokens"

    def __init__(self, zones: dict[str, str]) -> None:
        """`zones`: of each instance."""
        self._zones = zones

    def prices(self, view: View) -> list[float]:
        """As `Policy`."""
        return [
            (prefill.uncached_tokens or 0)
            + prefill.load_tokens
            + decode.load_tokens
            + (0 if self._zones[prefill.instance] == self._zones[decode.instance] else TRANSFER_TOKENS)
            for prefill, decode in view.pairs
        ]


async def test_both_legs_stay_in_the_zone_of_the_cheaper_pair() -> None:
    async with engines(prefill=2, decode=2) as made:
        zones = {
            engine.address: zone
            for each in (made.prefill, made.decode)
            for engine, zone in zip(each, "ab", strict=True)
        }
        async with kvproxy(made.config(), WithinOneZone(zones)) as service:
            used: set[str] = set()
            for seed, engine in enumerate([*made.prefill, *made.prefill]):
                # It has less to do than the way to the other zone costs, so the other zone
                # is the cheaper one.
                with service.fleet.claim(engine.address, 0, Phase.PREFILL, TRANSFER_TOKENS // 10):
                    body = {"model": "tiny", "prompt": prose(40, seed), "max_tokens": 4}
                    told = await service.explain(body)
                    assert told["policy"] == "WithinOneZone"
                    assert told["unit"] == "tokens"
                    legs = {told["prefill"]["chosen"], told["decode"]["chosen"]}
                    assert len(legs) == 2
                    assert len({zones[leg] for leg in legs}) == 1
                    pairs = told["pairs"]
                    assert len(pairs) == 4
                    assert [zones[p["prefill"]] == zones[p["decode"]] for p in pairs] == [
                        True,
                        True,
                        False,
                        False,
                    ]
                    assert pairs[2]["cost"] >= pairs[0]["cost"] + TRANSFER_TOKENS
                    costs = {
                        c["instance"]: c["cost"]
                        for leg in ("prefill", "decode")
                        for c in told[leg]["candidates"]
                    }
                    assert costs[told["decode"]["chosen"]] == pairs[0]["cost"]

                    answer = await service.complete(body["prompt"])
                    assert answer.status == 200
                    used |= legs
                await service.settled()
            # What no policy of legs can do: every prompt was handed over within its zone.
            assert [instance.peers for instance in service.fleet.of(Phase.DECODE)] == [1, 1]
            assert used == set(zones)


async def test_a_busy_zone_is_left_when_that_is_cheaper() -> None:
    async with engines(prefill=1, decode=2) as made:
        (prefill,), (near, far) = made.prefill, made.decode
        zones = {prefill.address: "a", near.address: "a", far.address: "b"}
        async with kvproxy(made.config(), WithinOneZone(zones)) as service:
            body = {"model": "tiny", "prompt": "anything", "max_tokens": 4}
            assert (await service.explain(body))["decode"]["chosen"] == near.address
            with service.fleet.claim(near.address, 0, Phase.DECODE, TRANSFER_TOKENS + 1):
                assert (await service.explain(body))["decode"]["chosen"] == far.address


@pytest.mark.parametrize(
    ("name", "unit"), [(name, getattr(kind, "unit", "")) for name, kind in POLICIES.items()]
)
async def test_policies_that_come_with_kvproxy_tell_their_unit_and_pairs_if_they_price_them(
    name: str, unit: str
) -> None:
    async with (
        engines(prefill=1, decode=1) as made,
        kvproxy(made.config(policy=name, kv_events=False)) as service,
    ):
        told = await service.explain({"model": "tiny", "prompt": "anything"})
        assert (told["policy"], told["unit"]) == (name, unit)
        assert bool(told["pairs"]) is hasattr(POLICIES[name], "prices")


class FirstPair:
    """As simple as can be, and loaded by name."""

    unit = "places"

    def prices(self, view: View) -> list[float]:
        """As `Policy`."""
        return [float(number) for number, _ in enumerate(view.pairs)]


class Unpriced:
    """No policy."""

    unit = "tokens"


class WithoutUnit:
    """A policy that does not say what its prices are."""

    def prices(self, view: View) -> list[float]:
        """As `Policy`."""
        return [0.0 for _ in view.pairs]


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> str:
    """This module's name, as `--policy` takes it."""
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parent)
    return pathlib.Path(__file__).stem


def test_the_policy_is_loaded_by_name(importable: str) -> None:
    assert isinstance(load_policy(f"{importable}:FirstPair"), Policy)


@pytest.mark.parametrize("name", ["Unpriced", "WithoutUnit"])
def test_a_class_that_is_no_policy_gets_an_error_that_says_what_it_lacks(importable: str, name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"{name} has neither .* costs\(leg, candidates\) nor prices\(view\) and a unit"
    ):
        load_policy(f"{importable}:{name}")
