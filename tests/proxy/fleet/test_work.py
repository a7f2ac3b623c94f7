"""What is predicted of a rank is what its claims add up to, and nothing once they have ended."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config import parse_instance
from proxy.fleet import Claim, Instance
from proxy.fleet.claims import Timing
from proxy.fleet.work import Work
from proxy.phases import Phase, Role


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_head_of_the_queue_is_under_way_and_the_others_wait() -> None:
    work = Work()
    first, second = work.computes(100, 1.0), work.computes(50, 1.02)
    assert work.wait_ms(1.02) == pytest.approx(130)
    assert work.wait_ms(1.06) == pytest.approx(90)
    assert work.wait_ms(1.5) == pytest.approx(50)  # the first is late, and the second has not begun
    work.computed(first, 1.5)
    assert work.wait_ms(1.5) == pytest.approx(50)
    work.computed(second, 1.53)
    assert work.wait_ms(1.53) == 0


def test_one_that_is_computed_before_the_head_counts_no_more() -> None:
    work = Work()
    first, second = work.computes(100, 1.0), work.computes(50, 1.0)
    work.computed(second, 1.04)
    assert work.wait_ms(1.04) == pytest.approx(60)
    work.computed(second, 1.05)
    work.computed(first, 1.08)
    assert work.wait_ms(1.08) == 0


def test_one_that_is_left_makes_way() -> None:
    work = Work()
    first, second = work.computes(100, 1.0), work.computes(50, 1.0)
    work.left(first, 1.02)
    assert work.wait_ms(1.03) == pytest.approx(40)
    work.left(second, 1.04)
    work.left(second, 1.05)
    assert work.wait_ms(1.05) == 0


def test_prompts_whose_end_nobody_sees_are_over_when_they_should_be() -> None:
    work = Work()
    for _ in range(3):
        work.computes(100, 1.0, told=False)
    assert work.wait_ms(1.15) == pytest.approx(150)
    assert work.wait_ms(1.3) == pytest.approx(0)
    work.computes(100, 2.0, told=False)
    assert work.wait_ms(2.01) == pytest.approx(90)


def test_a_prompt_that_is_computed_shows_that_those_before_it_are() -> None:
    work = Work()
    unseen, seen, later = (work.computes(100, 1.0, told=told) for told in (False, True, True))
    work.computed(seen, 1.05)
    assert work.wait_ms(1.05) == pytest.approx(100)
    work.left(unseen, 1.1)  # its answer was read
    assert work.wait_ms(1.1) == pytest.approx(50)
    work.computed(later, 1.1)


def test_answers_count_from_their_first_token_on() -> None:
    clock = Clock()
    instance = Instance(parse_instance("b:1", Role.BOTH))
    claim = Claim(instance, 0, Phase.DECODE, 1000, None, 400, Timing(clock, 200.0))
    work = instance.load.on(Phase.DECODE, 0).work
    assert (work.streams, work.prompt_tokens, work.wait_ms(clock())) == (1, 1000, 200)
    clock.now += 0.3
    claim.computed()
    assert (work.wait_ms(clock()), work.generated_s(clock())) == (0, 0)
    clock.now += 2
    assert work.generated_s(clock()) == pytest.approx(2)
    claim.end()
    assert (work.streams, work.prompt_tokens, work.generated_s(clock())) == (0, 0, 0)


def test_an_answer_whose_prompt_is_computed_elsewhere_runs_there_and_does_not_grow_before() -> None:
    clock = Clock()
    instance = Instance(parse_instance("d:1", Role.DECODE))
    first, second = (Claim(instance, 0, Phase.DECODE, 1000, timing=Timing(clock, 0.0)) for _ in range(2))
    work = instance.load.on(Phase.DECODE, 0).work
    clock.now += 10
    assert (work.streams, work.prompt_tokens, work.generated_s(clock())) == (2, 2000, 0)
    first.computed()
    clock.now += 2
    first.computed()
    assert work.generated_s(clock()) == pytest.approx(2)
    second.end()
    second.computed()
    assert work.streams == 1
    assert work.generated_s(clock()) == pytest.approx(2)
    first.end()
    assert (work.streams, work.prompt_tokens, work.generated_s(clock())) == (0, 0, 0)


def test_each_answer_of_a_leg_for_several_runs_and_grows() -> None:
    clock = Clock()
    instance = Instance(parse_instance("d:1", Role.DECODE))
    several = Timing(clock, 0.0, prompts=2, sequences=6)
    claim = Claim(instance, 0, Phase.DECODE, 1000, timing=several)
    work = instance.load.on(Phase.DECODE, 0).work
    assert (work.streams, work.prompt_tokens) == (6, 3000)
    claim.computed()
    clock.now += 2
    assert work.generated_s(clock()) == pytest.approx(12)
    claim.end()
    assert (work.streams, work.prompt_tokens, work.generated_s(clock())) == (0, 0, 0)


def test_an_answer_whose_first_token_nobody_sees_grows_from_when_it_should_come() -> None:
    clock = Clock()
    instance = Instance(parse_instance("b:1", Role.BOTH))
    unseen = Timing(clock, 500.0, told=False)
    first, second = (Claim(instance, 0, Phase.DECODE, 1000, None, 400, unseen) for _ in range(2))
    work = instance.load.on(Phase.DECODE, 0).work
    clock.now += 0.4
    assert work.wait_ms(clock()) == pytest.approx(600)
    assert work.generated_s(clock()) == 0
    clock.now += 1.6
    assert work.wait_ms(clock()) == 0
    assert work.generated_s(clock()) == pytest.approx(1.5 + 1.0)
    first.end()
    second.end()
    assert (work.streams, work.generated_s(clock())) == (0, 0)


def test_a_prefill_leg_is_no_answer_and_its_end_is_that_of_its_prompt() -> None:
    clock = Clock()
    instance = Instance(parse_instance("p:1", Role.PREFILL))
    first, second = (Claim(instance, 0, Phase.PREFILL, 10, timing=Timing(clock, 50.0)) for _ in range(2))
    work = instance.load.on(Phase.PREFILL, 0).work
    clock.now += 0.08
    first.end()
    assert not work.streams
    assert work.wait_ms(clock()) == pytest.approx(50)
    second.end()
    assert work.wait_ms(clock()) == 0


def test_a_claim_without_a_timing_predicts_nothing() -> None:
    instance = Instance(parse_instance("b:1", Role.BOTH))
    Claim(instance, 0, Phase.DECODE, 1000, None, 400)
    work = instance.load.on(Phase.DECODE, 0).work
    assert (work.streams, work.prompt_tokens, work.wait_ms(1e9)) == (0, 0, 0)


class PlainWork:
    """The same by looking at all claims each time."""

    def __init__(self) -> None:
        self.queue: list[tuple[int, float, bool]] = []
        self.since = 0.0

    def computes(self, number: int, ms: float, now: float, told: bool) -> None:
        self.expire(now)
        if not self.queue:
            self.since = now
        self.queue.append((number, ms, told))

    def expire(self, now: float) -> None:
        while self.queue and not self.queue[0][2] and self.since + self.queue[0][1] / 1000 <= now:
            self.since += self.queue.pop(0)[1] / 1000

    def computed(self, number: int, now: float) -> None:
        if any(each[0] == number for each in self.queue):
            while self.queue[0][0] != number and not self.queue[0][2]:
                self.queue.pop(0)
                self.since = now
            self.remove(number, now)

    def remove(self, number: int, now: float) -> None:
        if self.queue and self.queue[0][0] == number:
            self.since = now
        self.queue = [each for each in self.queue if each[0] != number]

    def wait_ms(self, now: float) -> float:
        self.expire(now)
        if not self.queue:
            return 0.0
        head = self.queue[0][1]
        return sum(ms for _, ms, _ in self.queue) - min(1000 * (now - self.since), head)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["computes", "unseen", "computed", "left", "look"]),
            st.integers(0, 9),
            st.integers(1, 500),
        ),
        max_size=60,
    )
)
def test_any_course_is_that_of_a_plain_list(course: list[tuple[str, int, int]]) -> None:
    work, plain, running = Work(), PlainWork(), []
    now = 10.0
    for number, (verb, which, ms) in enumerate(course):
        now += ms / 4000
        if verb in ("computes", "unseen"):
            told = verb == "computes"
            running.append((number, told, work.computes(ms, now, told=told)))
            plain.computes(number, ms, now, told)
        elif verb in ("computed", "left") and running:
            at, told, computing = running.pop(which % len(running))
            if verb == "computed" and told:
                work.computed(computing, now)
                plain.expire(now)
                plain.computed(at, now)
            else:
                work.left(computing, now)
                plain.expire(now)
                plain.remove(at, now)
        assert work.wait_ms(now) == pytest.approx(plain.wait_ms(now), abs=1e-6)
    for _, _, computing in running:
        work.left(computing, now)
    assert work.wait_ms(now) == 0
    assert work.waiting == 0
