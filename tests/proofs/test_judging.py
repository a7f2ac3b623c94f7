"""The judge of chaos.py: it knows what is right without asking, and lets nothing pass that a client may not
see."""

import dataclasses
import pathlib
import random
from typing import Any

import aiohttp
import pytest

from proxy.simulation import StandIn, StandInConfig
from scripts.workshop.live.asking import CHAT, COMPLETIONS, ask
from tests.proofs.chaos import verdict as v
from tests.proofs.chaos.clients import End, Line, Record, Says, send
from tests.proofs.chaos.journal import Fault, Journal
from tests.proofs.chaos.workload import INVOCATIONS, MESSAGES, RESPONSES, Manner, Plan, Workload
from tests.proofs.setting import Vitals
from tests.proofs.soak.run import Options, Sample, Soak
from tests.proofs.texts import MAX_MODEL_LEN, RightAnswers
from tests.proofs.trend import trend

DECODE = "127.0.0.1:8200"


async def test_the_right_text_is_the_one_a_plain_engine_says() -> None:
    workload = Workload("c0", 7, "tiny", RightAnswers("tiny"), disloyal=True)
    plans = [workload.next() for _ in range(80)]
    assert {plan.path for plan in plans} == {CHAT, COMPLETIONS, RESPONSES, MESSAGES, INVOCATIONS}
    assert {plan.stream for plan in plans} == {True, False}
    assert any(plan.body.get("n") == 2 for plan in plans)
    config = StandInConfig(connector=False, max_model_len=MAX_MODEL_LEN)
    async with StandIn(config) as plain, aiohttp.ClientSession() as session:
        host, _, port = plain.url.removeprefix("http://").rpartition(":")
        line = Line(host, int(port))
        for plan in plans:
            if plan.path not in {RESPONSES, MESSAGES}:
                answer = await ask(session, plain.url, plan.path, plan.body)
                assert (answer.status, answer.choices) == (200, plan.expected)
            seen = await send(line, dataclasses.replace(plan, manner=Manner.READS))
            assert (seen.status, seen.end, seen.says, seen.done) == (200, End.CLEAN, Says.RIGHT, plan.stream)
        line.close()


def test_the_same_seed_asks_the_same() -> None:
    right = RightAnswers("tiny")
    one, same, other = (
        [Workload("c1", seed, "tiny", right, disloyal=True).next() for _ in range(3)] for seed in (1, 1, 2)
    )
    assert one == same != other


def record(*, stream: bool = True, manner: Manner = Manner.READS, **seen: Any) -> Record:
    """A complete, right answer, but for what is `seen`."""
    plan = Plan("c0-1", COMPLETIONS, {"stream": stream}, ("right",), manner)
    whole = Record(plan, 10.0, ended=12.0, end=End.CLEAN, status=200, decode=DECODE, done=stream)
    made = dataclasses.replace(whole, **({"texts": ("right",)} | seen))
    made.compare()
    return made


CUT: dict[str, Any] = {"end": End.CUT, "done": False, "texts": ("ri",), "error": "a word"}


@pytest.mark.parametrize(
    ("made", "check"),
    [
        (record(), None),
        (record(stream=False), None),
        (record(texts=("wrong",)), v.RIGHT),
        (record(stream=False, texts=("right", "more")), v.NO_CLEAN_CUT),
        (record(texts=("ri",)), v.NO_CLEAN_CUT),
        (record(done=False), v.NO_CLEAN_CUT),
        (record(done=False, error_event=True, error="a word"), v.NO_CLEAN_CUT),
        (record(**CUT, error_event=True), v.SERVED),
        (record(**CUT), v.NO_CLEAN_CUT),
        (record(**(CUT | {"texts": ("x",)}), error_event=True), v.RIGHT),
        (record(**(CUT | {"done": True})), v.NO_CLEAN_CUT),
        (record(stream=False, **CUT), v.NO_CLEAN_CUT),
        (record(stream=False, status=502, texts=(), error="a word"), v.SERVED),
        (record(end=End.NO_ANSWER, status=None, texts=()), v.SERVED),
        (record(end=End.DEADLINE), v.SERVED),
        (record(end=End.LEFT, texts=("ri",), done=False), None),
        (record(end=End.LEFT, texts=("x",), done=False), v.RIGHT),
        (record(malformed="an event after the last one"), v.ONE_END),
    ],
)
def test_only_whole_right_answers_and_clients_that_left_pass(made: Record, check: str | None) -> None:
    found = v.judge(made, Journal())
    assert (None if found is None else found.check) == check


@pytest.mark.parametrize(
    ("fault", "at", "begun", "excused"),
    [
        (Fault.KILL, DECODE, 11.0, True),
        (Fault.CUT, DECODE, 9.0, True),
        (Fault.LATE_ERROR, DECODE, 9.0, False),  # in other words than the engine's
        (Fault.FREEZE, "127.0.0.1:8201", 11.0, False),
        (Fault.KILL, DECODE, 13.0, False),
        (Fault.SLOW, DECODE, 11.0, False),
        (Fault.EARLY_ERROR, DECODE, 11.0, False),
        (Fault.FULL, DECODE, 11.0, False),
        (Fault.SLEEP, DECODE, 11.0, False),
        (Fault.DRAIN, DECODE, 11.0, False),
    ],
)
def test_a_stream_may_be_cut_only_by_what_was_done_to_its_own_engine(
    fault: Fault, at: str, begun: float, *, excused: bool
) -> None:
    journal = Journal()
    journal.begin("decode-0", at, fault, begun)
    assert (v.judge(record(**CUT, error_event=True), journal) is None) is excused
    assert v.judge(record(**CUT), journal) is not None, "without a word it never may"
    refused = record(stream=False, status=503, texts=())
    assert v.judge(refused, journal) is not None, "another engine was well"


def test_an_error_inside_a_stream_is_passed_on_and_nothing_is_cut_before_it_began() -> None:
    journal = Journal()
    journal.begin("decode-0", DECODE, Fault.LATE_ERROR, 11.0)
    told = record(**(CUT | {"error": v.ENGINES_WORDS}), error_event=True)
    assert v.judge(told, journal) is None
    found = v.judge(record(**CUT, error_event=True), journal)
    assert found is not None
    assert "did not reach the client" in found.words
    nothing = v.judge(record(**(CUT | {"texts": ("",)}), error_event=True), journal)
    assert nothing is not None
    assert nothing.check == v.SERVED
    journal.begin("decode-0", DECODE, Fault.KILL, 11.0)
    assert v.judge(record(**CUT, error_event=True), journal) is None, "another fault has other words"


@pytest.mark.parametrize(
    ("path", "heard", "right"),
    [
        (MESSAGES, "4 validation errors for ChatCompletionStreamResponse: a fault", True),
        (MESSAGES, "a fault", False),
        (RESPONSES, "the stream broke", True),  # an engine has no words for it
    ],
)
def test_an_error_inside_a_stream_is_heard_as_its_engine_words_it(
    path: str, heard: str, *, right: bool
) -> None:
    journal = Journal()
    journal.begin("decode-0", DECODE, Fault.LATE_ERROR, 11.0)
    told = record(**(CUT | {"error": heard}), error_event=True)
    told.plan = dataclasses.replace(told.plan, path=path)
    assert (v.judge(told, journal) is None) is right


def test_who_falls_asleep_may_cut_streams_only_if_it_drops_them() -> None:
    journal = Journal()
    entry = journal.begin("decode-0", DECODE, Fault.SLEEP, 11.0)
    assert v.judge(record(**CUT, error_event=True), journal) is not None
    entry.cuts = True
    assert v.judge(record(**CUT, error_event=True), journal) is None
    assert v.judge(record(texts=("ri",)), journal) is not None, "never with a clean end"
    assert v.judge(record(texts=("ri",), stream=False), journal) is not None


def test_only_a_response_may_end_early_and_cleanly_on_an_engine_that_aborts_it() -> None:
    made = record(texts=("ri",))
    response = dataclasses.replace(made, plan=dataclasses.replace(made.plan, path=RESPONSES))
    journal = Journal()
    assert v.judge(response, journal) is not None
    journal.begin("decode-0", DECODE, Fault.SLEEP, 11.0).cuts = True
    assert v.judge(response, journal) is None
    assert v.judge(made, journal) is not None


def test_a_fault_that_was_over_long_before_excuses_nothing() -> None:
    journal = Journal()
    entry = journal.begin("decode-0", DECODE, Fault.KILL, 1.0)
    assert journal.touched() == {"decode-0"}
    entry.ended = 2.0
    assert journal.touched() == set()
    assert v.judge(record(**CUT, error_event=True), journal) is not None


LINE = "2026-11-22 11:00:00,000 INFO POST /v1/completions {} 12.3ms id={} prefill=a decode=b outcome={}\n"


def test_what_kvproxy_counts_must_be_what_clients_saw() -> None:
    left = record(end=End.LEFT, texts=(), manner=Manner.LEAVES)
    left.plan = dataclasses.replace(left.plan, id="c0-2")
    both = [record(), left]
    logged = v.access_log([LINE.format(200, "c0-1", "ok"), LINE.format(499, "c0-2", "client_left")])
    counted = {"ok": 1.0, "client_left": 1.0, "cut": 0.0}
    assert v.check_counts(both, logged, counted) == []

    def found(lines: list[str], counts: dict[str, float]) -> list[str]:
        return [finding.words for finding in v.check_counts(both, v.access_log(lines), counts)]

    ok = LINE.format(200, "c0-1", "ok")
    assert found([ok], {"ok": 1}) == [], "a client may leave before its request is read"
    assert len(found([ok, ok], {"ok": 2})) == 1
    assert len(found([], {})) == 1
    assert len(found([LINE.format(200, "c0-1", "cut")], {"cut": 1})) == 1
    assert len(found([ok], {"ok": 2})) == 1
    assert len(found([ok, LINE.format(200, "another", "ok")], {"ok": 2})) == 1
    assert found([ok, LINE.format(500, "c0-2", "failed")], {"ok": 1, "failed": 1}) != []


def test_no_hold_is_stranded_but_with_its_engine() -> None:
    journal = Journal()
    entry = journal.begin("prefill-0", "127.0.0.1:8100", Fault.KILL, 10.0)
    entry.may_strand, entry.ended = 3, 12.0

    def found(*growth: tuple[float, int]) -> int:
        return len(v.check_stranded(growth[-1][1] if growth else 0, growth, journal, 20.0, 0.0))

    assert found() == found((11.0, 3)) == found((11.0, 1), (30.0, 3)) == 0
    assert found((9.0, 1)) == 1, "no engine was lost before"
    assert found((60.0, 1)) == 1, "its lease was over long before"
    assert found((11.0, 4)) == 2, "more than it held"


def test_growth_is_told_from_noise() -> None:
    hours = [n / 120 for n in range(120)]
    dice = random.Random(3)
    noise = [dice.gauss(0, 1) for _ in hours]
    flat = trend(hours, [40 + n for n in noise])
    growing = trend(hours, [40 + 5 * t + n for t, n in zip(hours, noise, strict=True)])
    assert not flat.grows(0.0)
    assert growing.grows(0.0)
    assert not growing.grows(10.0), "that little does not matter"
    assert growing.slope - flat.slope == pytest.approx(5)
    assert flat.error == pytest.approx(0.32, rel=0.2), "sigma over the spread of the times"
    line = trend(hours, [2 * t for t in hours])
    assert line.slope == pytest.approx(2)
    assert line.error == pytest.approx(0, abs=1e-9)
    for few in ([], [1.0, 1.0, 1.0], [0.0, 1.0]):
        with pytest.raises(ValueError, match="a trend needs"):
            trend(few, [0.0] * len(few))


def test_a_figure_that_wanders_has_to_grow_by_more() -> None:
    """Each sample here is nearly the one before it, so that there are fewer than it seems."""
    hours = [n / 120 for n in range(120)]
    seen = []
    for seed in range(200):
        dice, walk = random.Random(seed), [0.0]
        while len(walk) < len(hours):
            walk.append(0.8 * walk[-1] + dice.gauss(0, 1))
        flat = trend(hours, walk)
        seen.append((flat.grows(0.0), trend(hours, [w + 10 * t for t, w in zip(hours, walk, strict=True)])))
    assert sum(grows for grows, _ in seen) <= 3, "one in 700, and a few"
    assert sum(growing.grows(0.0) for _, growing in seen) > 180


def sample(minute: int, **figures: float) -> Sample:
    usual = {field.name: 10 for field in dataclasses.fields(Sample)} | {"failures": 0}
    return Sample(**(usual | {"at_s": 60 * minute} | figures))  # type: ignore[arg-type]  # all are numbers


def test_what_grows_after_it_has_settled_is_found(tmp_path: pathlib.Path) -> None:
    options = Options(seconds=3600, share=0.7, seed=1, logs=tmp_path, settle_s=600)
    settling = [sample(m, memory_mib=m) for m in range(1, 11)]
    later = range(11, 60)
    assert Soak(options, samples=settling + [sample(m) for m in later]).findings() == []
    assert len(Soak(options, samples=settling).findings()) == 1
    for figure in ("memory_mib", "unary_p99_ms", "tasks"):
        grown = Soak(options, samples=settling + [sample(m, **{figure: 10 + m / 10}) for m in later])
        assert [finding.partition(" ")[0] for finding in grown.findings()] == [figure]
        lately = Soak(options, samples=settling + [sample(m, **{figure: max(10, m - 28)}) for m in later])
        assert [finding.partition(" ")[0] for finding in lately.findings()] == [figure]
    for when in (15, 35, 55):
        arena = [sample(m, memory_mib=10 + (m > when)) for m in later]
        assert Soak(options, samples=settling + arena).findings() == [], "one more arena is no growth"
    leaking = [sample(m, memory_mib=10 + (m - 10) // 12) for m in later]
    assert len(Soak(options, samples=settling + leaking).findings()) == 1, "four are"
    failed = Soak(options, samples=[sample(m) for m in later], failures=["status 502"])
    assert len(failed.findings()) == 1
    assert "memory_mib" in failed.write(tmp_path).read_text()


def test_kvproxy_must_be_as_it_was_before() -> None:
    before = Vitals(at=0.0, tasks=20, sockets=23, memory_mib=40.0, cpu_s=1.0)
    assert v.check_back(before, before) == []
    assert v.check_back(before, dataclasses.replace(before, memory_mib=90.0), remembered_mib=30.0) == []
    for more in ({"tasks": 21}, {"sockets": 24}, {"memory_mib": 70.0}):
        assert len(v.check_back(before, dataclasses.replace(before, **more))) == 1
