"""`least_ms` chooses the pair with the lowest sum of predicted time and price, in both forms."""

import math
import random
from collections import Counter
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvevents import BlockStored, PrefixIndex, Prompt
from proxy.config import parse_instance
from proxy.fleet import Fleet, Instance, ModelCard
from proxy.fleet.gauges import Gauges
from proxy.latency.model import LatencyModel
from proxy.latency.profiles import PROFILES, UNKNOWN, Profile
from proxy.phases import Phase, Role
from proxy.scheduling.pairs import ByPair
from proxy.scheduling.placement import Placement
from proxy.scheduling.policies import LeastMs
from proxy.scheduling.question import Question
from proxy.scheduling.terms import (
    BYPASS_SHARE,
    FULL_FROM,
    FULL_MS,
    LOST_SHARE,
    PRICED_STEPS,
    SHORTLIST,
    STALL_SHARE,
    terms_of,
)
from proxy.scheduling.types import Candidate, Pair, View
from tests.helpers.candidates import candidate

PROFILE = Profile(
    source="made up, so that every term counts",
    a=10.0,
    b=0.05,
    c=1e-6,
    overhead=3.0,
    chunk_tokens=4096,
    transfer=4.0,
    transfer_per_token=0.002,
    handshake=150.0,
    s0=8.0,
    s1=0.2,
    s2=0.00004,
)


def plain_price(p: Candidate, d: Candidate, n: int, met: bool) -> float:
    """The formula, written out for one pair."""
    u = n if p.uncached_tokens is None else p.uncached_tokens
    computed = u + p.reload_cost_tokens
    steps = max(1, math.ceil(computed / PROFILE.chunk_tokens))
    prefill = PROFILE.a * steps + PROFILE.b * computed + PROFILE.c * computed * (2 * n - computed) / 2
    step = PROFILE.s0 + PROFILE.s1 * d.sequences + PROFILE.s2 * d.context_tokens
    longer = PROFILE.s0 + PROFILE.s1 * (d.sequences + 1) + PROFILE.s2 * (d.context_tokens + n)
    price = p.wait_ms + prefill + PROFILE.overhead + LOST_SHARE * prefill
    price += PRICED_STEPS * (longer + d.sequences * (longer - step))
    price += FULL_MS * (max(d.kv_use - FULL_FROM, 0) / (1 - FULL_FROM)) ** 2
    if p.instance == d.instance:
        share = STALL_SHARE if p.serves_all else BYPASS_SHARE
        parts = 0.0
        if d.sequences:
            parts = max(1, math.ceil(u / PROFILE.chunk_tokens)) + (0 if p.wait_ms else 0.5)
        return price + share * d.sequences * prefill + parts * step
    fetched = n if d.uncached_tokens is None else d.uncached_tokens
    handshake = 0.0 if met else PROFILE.handshake
    return price + handshake + PROFILE.transfer + PROFILE.transfer_per_token * fetched + d.wait_ms + longer


N = 20_000
CANDIDATES = st.builds(
    lambda uncached, wait, sequences, context, use, reload: {
        "uncached_tokens": uncached,
        "wait_ms": wait,
        "sequences": sequences,
        "context_tokens": context if sequences else 0.0,
        "kv_use": use,
        "reload_cost_tokens": reload,
    },
    st.none() | st.integers(1, N),
    st.floats(0, 5000),
    st.integers(0, 60).map(float),
    st.floats(0, 800_000),
    st.floats(0, 1),
    st.sampled_from([0.0, 0.0, 125.5]),
)
SIDES = st.lists(CANDIDATES, min_size=1, max_size=SHORTLIST)


def made(name: str, figures: dict[str, float], *, serves_all: bool = False) -> Candidate:
    return msgspec.structs.replace(candidate(name), serves_all=serves_all, **figures)


@settings(deadline=None)
@given(SIDES, SIDES, st.lists(CANDIDATES, max_size=3), st.booleans(), st.booleans(), st.booleans())
def test_the_price_is_that_of_the_formula_and_of_the_terms(
    prefill: Sequence[dict[str, float]],
    decode: Sequence[dict[str, float]],
    both: Sequence[dict[str, float]],
    bypass: bool,
    whole: bool,
    met: bool,
) -> None:
    model = LatencyModel(PROFILE)
    firsts = [made(f"p{number}:1", figures) for number, figures in enumerate(prefill)]
    thens = [made(f"d{number}:1", figures) for number, figures in enumerate(decode)]
    all_of_it = [made(f"b{number}:1", figures, serves_all=True) for number, figures in enumerate(both)]
    for one in firsts:
        model.join(one.instance, "prefill", "m")
        for other in thens + all_of_it:
            model.join(other.instance, "decode", "m")
            if met:
                model.transferred(one.instance, other.instance, 0, PROFILE.transfer + PROFILE.handshake)
    view = View(
        "m",
        N,
        () if whole else firsts + all_of_it,
        thens + all_of_it,
        whole=whole,
        alone=thens if bypass and not whole else (),
        estimated_tokens=N,
        latency=model,
    )
    prices = LeastMs().prices(view)
    wanted = [plain_price(p, d, N, met) for p, d in view.pairs]
    looked_at = [number for number, price in enumerate(prices) if price < math.inf]
    assert [prices[number] for number in looked_at] == pytest.approx([wanted[n] for n in looked_at])
    assert [terms_of(pair, view).cost_ms for pair in view.pairs] == pytest.approx(wanted)
    assert min(prices) < math.inf
    if met and len(thens) + len(all_of_it) <= SHORTLIST:
        assert min(prices) == pytest.approx(min(wanted))


def test_of_many_the_best_are_paired_and_of_equal_ones_those_picked_longest_ago() -> None:
    model = LatencyModel(PROFILE)
    prefill = [candidate(f"p{n}:1", uncached=N, last_pick=50 - n) for n in range(50)]
    decode = [candidate(f"d{n}:1", uncached=N if n != 33 else 100, last_pick=n) for n in range(50)]
    view = View("m", N, prefill, decode, estimated_tokens=N, latency=model)
    prices = dict(zip(view.pairs, LeastMs().prices(view), strict=True))
    compared = [pair for pair, price in prices.items() if price < math.inf]
    assert {pair.prefill.instance for pair in compared} == {"p46:1", "p47:1", "p48:1", "p49:1"}
    assert {pair.decode.instance for pair in compared} == {"d0:1", "d1:1", "d2:1", "d33:1"}
    chosen = ByPair(LeastMs()).choose(view, random.Random(1)).decode.chosen
    assert chosen is not None
    assert chosen.instance == "d33:1"


class Exact:
    """A source of events that is followed from its beginning."""

    state = "exact"
    epoch = 0


ADAPTERS = ("alpha", "beta")


class Scene:
    """A placement by `least_ms` over engines that nobody has observed yet."""

    def __init__(self, *roles: Role, profile: Profile = PROFILES[UNKNOWN]) -> None:
        self.now = 50.0
        self.fleet, self.index = Fleet(), PrefixIndex()
        for number, role in enumerate(roles):
            instance = Instance(parse_instance(f"{role.value[0]}{number}:1", role))
            self.fleet.add(instance)
            instance.listed([ModelCard("m"), *(ModelCard(each, "m") for each in ADAPTERS)], 0.0)
            instance.is_followed({0: Exact()})
            instance.came_up()
        self.placement = Placement(
            self.fleet,
            self.index,
            LeastMs(),
            "least_ms",
            clock=lambda: self.now,
            rng=random.Random(1),
            latency=LatencyModel(profile),
        )

    def instance(self, address: str) -> Instance:
        found = self.fleet.get(address)
        assert found is not None
        return found

    def cache(self, address: str, tokens: list[int]) -> None:
        hashes: list[int | bytes] = [f"{address}{n}".encode() for n in range(len(tokens) // 16)]
        self.index.store(address, 0, BlockStored(hashes, None, tokens, 16, medium="GPU"))

    def place(self, tokens: list[int] | None, model: str = "m") -> tuple[str, str]:
        """Where a request goes; its claims are made and stay."""
        question = Question(model, None if tokens is None else Prompt(tokens), 2000)
        shown = self.placement.decide(question)
        decision = self.placement.decide(question, shown=False)
        prefill, decode = decision.prefill.chosen, decision.decode.chosen
        assert prefill is not None
        assert decode is not None
        prices = dict(zip(shown.pairs.pairs, shown.pairs.prices, strict=True))
        assert min(prices.values()) == pytest.approx(
            prices[next(p for p in prices if p == (prefill, decode))]
        )
        one_leg = prefill.instance == decode.instance
        self.placement.claim(decode, Phase.DECODE, question, computes=one_leg)
        if not one_leg:
            self.placement.claim(prefill, Phase.PREFILL, question)
        return prefill.instance, decode.instance


PROMPT = list(range(2000))
OTHER = list(range(5000, 7000))


def test_at_first_requests_go_by_load_and_to_what_is_cached() -> None:
    scene = Scene(Role.BOTH, Role.BOTH, Role.BOTH)
    first = [scene.place([number] * 2000)[0] for number in range(3)]
    assert sorted(first) == ["b0:1", "b1:1", "b2:1"]
    scene = Scene(Role.BOTH, Role.BOTH, Role.BOTH)
    scene.cache("b1:1", PROMPT)
    assert scene.place(PROMPT)[0] == "b1:1"
    assert scene.place([*PROMPT[:1600], *OTHER])[0] == "b1:1"


def test_a_busy_holder_loses_once_waiting_takes_longer_than_computing() -> None:
    scene = Scene(Role.BOTH, Role.BOTH)
    scene.cache("b0:1", PROMPT)
    load = scene.instance("b0:1").load.on(Phase.DECODE, 0).work
    load.computes(90.0, scene.now)
    assert scene.place(PROMPT)[0] == "b0:1"
    load.computes(900.0, scene.now)
    assert scene.place(PROMPT)[0] == "b1:1"


def test_what_has_been_computed_by_now_counts_no_more() -> None:
    scene = Scene(Role.BOTH, Role.BOTH)
    scene.cache("b0:1", PROMPT)
    scene.instance("b0:1").load.on(Phase.DECODE, 0).work.computes(500.0, scene.now)
    scene.now += 0.47
    assert scene.place(PROMPT)[0] == "b0:1"


def test_prompts_that_are_not_known_go_by_load() -> None:
    scene = Scene(Role.PREFILL, Role.PREFILL, Role.DECODE, Role.DECODE)
    scene.cache("p0:1", PROMPT)
    computed = Counter(scene.place(None)[0] for _ in range(4))
    assert set(computed.values()) == {1}, "an idle decode instance may as well compute one"


def test_what_a_decode_instance_has_cached_is_not_fetched_again() -> None:
    scene = Scene(Role.PREFILL, Role.DECODE, Role.DECODE, profile=PROFILE)
    scene.cache("d1:1", [*PROMPT[:1600]])
    assert scene.place(PROMPT)[1] == "d1:1"


def test_a_prompt_that_is_cached_where_it_is_decoded_has_one_leg() -> None:
    scene = Scene(Role.PREFILL, Role.DECODE, Role.DECODE, profile=PROFILE)
    scene.cache("d2:1", PROMPT)
    assert scene.place(PROMPT) == ("d2:1", "d2:1")


def test_a_prefill_instance_computes_while_answers_would_wait_for_it() -> None:
    scene = Scene(Role.PREFILL, Role.DECODE, profile=PROFILE)
    work = scene.instance("d1:1").load.on(Phase.DECODE, 0).work
    for _ in range(30):
        work.generates(work.takes(2000), scene.now)
    scene.instance("p0:1").load.on(Phase.PREFILL, 0).work.computes(100.0, scene.now)
    assert scene.place(PROMPT) == ("p0:1", "d1:1")


def test_what_other_routers_send_counts_as_far_as_the_engine_tells() -> None:
    scene = Scene(Role.BOTH, Role.BOTH)
    for _ in range(4):
        scene.place(None)
    scene.now += 60
    for address, running, waiting in (("b0:1", 6, 4), ("b1:1", 2, 0)):
        scene.instance(address).told_gauges(Gauges(scene.now, running, waiting, 0.1, own=2))
    assert [scene.place(None)[0] for _ in range(3)] == ["b1:1"] * 3


@pytest.mark.parametrize("roles", [(Role.BOTH, Role.BOTH), (Role.PREFILL, Role.DECODE, Role.DECODE)])
def test_an_answer_goes_where_there_is_a_slot_for_its_adapter(roles: Sequence[Role]) -> None:
    scene = Scene(*roles)
    for instance in scene.fleet:
        instance.told_gauges(Gauges(scene.now, 0, 0, 0.0, own=0, adapter_slots=1))
    alpha, beta = scene.place(None, "alpha")[1], scene.place(None, "beta")[1]
    assert alpha != beta
    placed = [scene.place(None, model)[1] for model in ("alpha", "beta", "alpha", "alpha", "beta")]
    assert placed == [alpha, beta, alpha, alpha, beta]
    assert {scene.place(None)[1] for _ in range(4)} == {alpha, beta}  # the model itself needs no slot


def test_adapters_go_anywhere_where_slots_are_enough_or_not_told() -> None:
    for slots in (0, 2):
        scene = Scene(Role.BOTH, Role.BOTH)
        for instance in scene.fleet:
            instance.told_gauges(Gauges(scene.now, 0, 0, 0.0, own=0, adapter_slots=slots))
        placed = [scene.place(None, model)[1] for model in ("alpha", "alpha", "beta", "beta")]
        assert sorted(placed[:2]) == sorted(placed[2:]) == ["b0:1", "b1:1"]


def test_a_slot_that_another_router_has_taken_is_not_free() -> None:
    scene = Scene(Role.BOTH, Role.BOTH)
    taken = Gauges(scene.now, 1, 0, 0.0, own=0, adapter_slots=1, adapters=frozenset({"beta"}))
    scene.instance("b0:1").told_gauges(taken)
    scene.instance("b1:1").told_gauges(Gauges(scene.now, 1, 0, 0.0, own=0, adapter_slots=1))
    assert [scene.place(None, "alpha")[1] for _ in range(3)] == ["b1:1"] * 3


def test_what_others_usually_have_there_counts_and_no_single_reading() -> None:
    scene = Scene(Role.BOTH)
    question = Question("m", Prompt(PROMPT), 2000)

    def sequences(running: int, waiting: int = 0) -> tuple[float, bool]:
        scene.now += 1
        scene.instance("b0:1").told_gauges(Gauges(scene.now, running, waiting, 0.1, own=0))
        shown = scene.placement.decide(question).decode.candidates[0].candidate
        return shown.sequences, shown.wait_ms > 0

    scene.place(None)  # tells what a request usually is
    scene.now += 60
    own, _ = sequences(0)
    once, waits = sequences(16, 8)
    assert once == pytest.approx(own + 24 / 16)
    assert waits, "those that wait do so now"
    less, waits = sequences(0)
    assert own < less < once
    assert not waits
    for _ in range(80):
        usual, _ = sequences(8)
    assert usual == pytest.approx(own + 8, rel=0.02)
    for _ in range(80):
        usual, _ = sequences(0)
    assert usual == own, "who is there no more is forgotten"


def test_a_prompt_waits_for_the_step_under_way_where_answers_are_generated() -> None:
    scene = Scene(Role.BOTH, profile=PROFILE)
    work = scene.instance("b0:1").load.on(Phase.DECODE, 0).work
    question = Question("m", Prompt(PROMPT), 2000)

    def step_ms() -> float:
        chosen = scene.placement.decide(question).decode.chosen
        assert chosen is not None
        terms = scene.placement.terms(question, Pair(chosen, chosen))
        assert terms is not None
        return terms.step_ms

    assert step_ms() == 0
    for _ in range(10):
        work.generates(work.takes(2000), scene.now)
    of_one = scene.placement.latency.step_ms("b0:1", 10, 20_000)
    assert step_ms() == pytest.approx(1.5 * of_one), "its own step is longer, and half of one ends before it"
    work.computes(100.0, scene.now)
    assert step_ms() == pytest.approx(of_one), "what waits behind a prompt waits for no step"


def test_an_instance_whose_cache_is_nearly_full_gets_nothing_while_others_have_room() -> None:
    scene = Scene(Role.PREFILL, Role.DECODE, Role.DECODE)
    scene.instance("d1:1").told_gauges(Gauges(scene.now, 1, 0, 0.97, own=1))
    scene.instance("d2:1").told_gauges(Gauges(scene.now, 1, 0, 0.1, own=1))
    assert scene.place(PROMPT)[1] == "d2:1"


def test_a_cache_that_others_fill_is_as_full_with_a_little_more_of_ours() -> None:
    scene = Scene(Role.BOTH)
    work = scene.instance("b0:1").load.on(Phase.DECODE, 0).work
    question = Question("m", Prompt(PROMPT), 2000)

    def kv_use() -> float:
        return scene.placement.decide(question).decode.candidates[0].candidate.kv_use

    scene.place(None)  # tells what a request usually is
    work.generates(work.takes(50), scene.now)
    scene.instance("b0:1").told_gauges(Gauges(scene.now, 22, 0, 0.4, own=2))
    assert kv_use() == pytest.approx(0.4)
    work.generates(work.takes(1000), scene.now)
    assert 0.4 < kv_use() < 0.42
    scene.instance("b0:1").told_gauges(Gauges(scene.now, 20, 0, 0.4, own=0))
    assert kv_use() == pytest.approx(0.4)


@pytest.mark.parametrize(("streams", "left"), [(True, 9), (False, 5)])
def test_a_prompt_whose_first_token_nobody_sees_counts_until_it_should_be_computed(
    streams: bool, left: int
) -> None:
    scene = Scene(Role.BOTH)
    question = Question("m", Prompt(PROMPT), 2000, streams=streams)
    chosen = scene.placement.decide(question).decode.chosen
    assert chosen is not None
    work = scene.instance("b0:1").load.on(Phase.DECODE, 0).work
    each_ms = scene.placement.latency.prefill_ms("b0:1", 2000, 2000)
    for _ in range(10):
        scene.placement.claim(chosen, Phase.DECODE, question, computes=True)
    scene.now += 5 * each_ms / 1000
    # Of ten that stream the first has not shown a token: it may be done any moment, and no other has begun.
    assert work.wait_ms(scene.now) == pytest.approx(each_ms * left)


def test_a_claim_adds_what_is_predicted_and_takes_it_away_again() -> None:
    scene = Scene(Role.PREFILL, Role.DECODE)
    question = Question("m", Prompt(PROMPT), 2000)
    decision = scene.placement.decide(question, shown=False)
    assert decision.prefill.chosen is not None
    model, work = scene.placement.latency, scene.instance("p0:1").load.on(Phase.PREFILL, 0).work
    claim = scene.placement.claim(
        msgspec.structs.replace(decision.prefill.chosen, instance="p0:1"), Phase.PREFILL, question
    )
    assert work.wait_ms(scene.now) == pytest.approx(model.prefill_ms("p0:1", 2000, 2000))
    claim.end()
    assert (work.wait_ms(scene.now), work.waiting) == (0, 0)


class Contrary(LeastMs):
    """A user's own, with other prices."""

    def prices(self, view: View) -> list[float]:
        return [-price for price in super().prices(view)]


def test_a_policy_that_extends_it_is_asked_for_its_own_prices() -> None:
    scene = Scene(Role.BOTH, Role.BOTH)
    placement = Placement(
        scene.fleet, scene.index, Contrary(), "contrary", clock=lambda: scene.now, rng=random.Random(1)
    )
    scene.cache("b0:1", PROMPT)
    decision = placement.decide(Question("m", Prompt(PROMPT), 2000), shown=False)
    assert decision.decode.chosen is not None
    assert decision.decode.chosen.instance == "b1:1"
