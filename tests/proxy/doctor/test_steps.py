"""What the doctor concludes from what it has seen: tables, without engines."""

import json
from typing import Any

import msgspec
import pytest

from kvevents import BlockStored
from proxy.caches.shown import AccuracyShown, MissesShown
from proxy.caches.tallies import Cause, Counts
from proxy.config import parse_instance
from proxy.connectors import CONNECTORS, Handoff, NixlConnector, SharedConnector
from proxy.connectors.seen import Moved
from proxy.doctor import as_json, as_text
from proxy.doctor.asking import read_counted
from proxy.doctor.engine_steps import reachable, version
from proxy.doctor.event_steps import of_rank
from proxy.doctor.facts import Answer, EngineFacts, PairFacts, RankFacts, Send, Trouble
from proxy.doctor.findings import InstanceReport, Report
from proxy.doctor.pair_steps import MAX_PAIRS, context_lengths, of_fleet, of_pair, pairs, roles, why_not
from proxy.doctor.runs import _FAR, MAX_CHAINS, Search
from proxy.findings import Finding, Status, failed, passed, skipped, warned
from proxy.fleet import ModelCard
from proxy.phases import Role

OURS = list(range(100, 140))


def stored(tokens: list[int], size: int = 4, first: int = 0, parent: int | None = None) -> BlockStored:
    hashes: list[Any] = [first + n for n in range(len(tokens) // size)]
    return BlockStored(hashes, parent, tokens, size)


def search(heard: list[BlockStored]) -> Search:
    search = Search(OURS)
    for at, event in enumerate(heard):
        search.add(event, 100.0 + at, 200.0 + at)
    return search


@pytest.mark.parametrize(
    ("heard", "differs_at"),
    [
        ([stored(OURS)], None),
        ([stored(OURS[:20], first=1), stored(OURS[20:], first=50, parent=5)], None),
        ([stored([7] * 8, first=900), stored(OURS)], None),
        ([stored(OURS[8:], first=3, parent=2)], None),  # the beginning was there already
        ([stored([*OURS, 1, 2, 3, 4])], None),  # and what was generated
        ([stored([9, *OURS[:39]])], 0),  # another token in front moves all of it
        ([stored([*OURS[:36], 0, 0, 0, 0])], 36),
        ([stored(OURS[:32])], 32),  # it ends before our last full block
    ],
)
def test_the_probes_blocks_are_found_among_others(heard: list[BlockStored], differs_at: int | None) -> None:
    found = search(heard).found()
    assert found is not None
    assert found.differs_at == differs_at
    assert found.block_size == 4


@pytest.mark.parametrize("heard", [[], [stored([7] * 40)], [stored(OURS[:12])]])
def test_events_of_other_requests_are_not_the_probes(heard: list[BlockStored]) -> None:
    assert search(heard).found() is None


def test_the_probe_is_found_wherever_its_runs_are_cut() -> None:
    for cut in range(4, 40, 4):
        told = [stored(OURS[:cut], first=1), stored(OURS[cut:], first=50, parent=cut // 4)]
        found = search(told).found()
        assert found is not None
        assert (found.tokens, found.differs_at, found.engine_ts, found.heard_ts) == (OURS, None, 100.0, 200.0)


def test_two_prompts_with_one_beginning_each_go_on() -> None:
    beginning = stored(OURS[:8], first=1)
    others = stored([7] * 8, first=40, parent=2)
    found = search([beginning, beginning, others, stored(OURS[8:], first=50, parent=2)]).found()
    assert found is not None
    assert found.tokens == OURS


def test_placeholders_are_no_runs() -> None:
    told = search([BlockStored([3], None, [], 0), BlockStored([2], None, [], 4)])
    assert (told.block_size, told.found()) == (None, None)
    told.add(stored(OURS[8:], first=10, parent=2), 0.0, 0.0)
    found = told.found()
    assert found is not None
    assert (found.offset, found.differs_at) == (8, None)


def test_a_mark_across_the_bounds_of_tokens_is_none() -> None:
    ours = Search([0x01010101] * 8)
    ours.add(stored([0x01010100, *[0x01010101] * 7, 1, 1, 1, 1]), 0.0, 0.0)
    assert ours.found() is None
    ours.add(stored([2**40] * 8, first=70), 0.0, 0.0)  # no engine's tokens
    ours.add(stored([0x01010101] * 8, first=80), 0.0, 0.0)
    assert ours.found() is not None


@pytest.mark.parametrize(("tokens", "heard"), [(4, False), (_FAR * 40 + 4, True)])
def test_prompts_that_can_be_the_probe_are_bounded_and_others_let_go(tokens: int, heard: bool) -> None:
    busy = Search(OURS)
    for n in range(MAX_CHAINS):
        busy.add(stored([7] * tokens, first=1000 * n), 0.0, 0.0)
    busy.add(stored(OURS, first=10**9), 0.0, 0.0)
    assert (busy.found() is not None) is heard


def test_a_probe_heard_in_part_is_waited_for() -> None:
    told = search([stored([*OURS[:28], 0, 0, 0, 0])])
    assert not told.is_over()
    told.add(stored([1] * 8, first=50, parent=7), 0.0, 0.0)
    assert told.is_over()


def engine(address: str = "a:1", role: Role = Role.PREFILL, **seen: Any) -> EngineFacts:
    return EngineFacts(parse_instance(address, role), health=Answer(value=b""), **seen)


@pytest.mark.parametrize(
    ("health", "words", "remedy"),
    [
        (Answer(trouble=Trouble.REFUSED, words="connection refused"), "cannot be connected", "--port 1"),
        (
            Answer(trouble=Trouble.REFUSED, words="its certificate is not accepted (x)"),
            "certificate",
            "--engine-ca",
        ),
        (Answer(trouble=Trouble.SILENT, words="no answer"), "answers nothing", "restart"),
        (Answer(trouble=Trouble.STATUS, status=503, words="status 503"), "its engine is dead", "restart"),
        (Answer(trouble=Trouble.STATUS, status=404, words="status 404"), "no vLLM", "--port"),
        (Answer(trouble=Trouble.BROKEN, words="the answer is not valid HTTP"), "no vLLM", "--port"),
        (None, "not asked in time", "--timeout"),
    ],
)
def test_why_an_engine_is_not_reached(health: Answer | None, words: str, remedy: str) -> None:
    facts = engine()
    facts.health = health
    finding = reachable(facts)
    assert finding.status is Status.FAIL
    assert words in finding.words
    assert remedy in (finding.remedy or "")


@pytest.mark.parametrize(
    ("told", "status"),
    [
        ("0.32.0", Status.PASS),
        ("0.32.0+cpu", Status.PASS),
        ("1.0.0rc1", Status.PASS),
        ("0.33.1.dev3+g1234", Status.PASS),
        ("mine", Status.PASS),
        ("0.31.2", Status.WARN),
        ("0.9.1", Status.WARN),
        (None, Status.WARN),
    ],
)
def test_versions_are_compared_as_numbers(told: str | None, status: Status) -> None:
    answer = Answer(value=told) if told else Answer(trouble=Trouble.STATUS, status=404, words="status 404")
    assert version(engine(version=answer)).status is status


def test_pairs_are_all_there_are_or_each_with_another() -> None:
    def specs(prefill: int, decode: int) -> list[Any]:
        return [parse_instance(f"p:{n + 1}", Role.PREFILL) for n in range(prefill)] + [
            parse_instance(f"d:{n + 1}", Role.DECODE) for n in range(decode)
        ]

    assert pairs(specs(4, 4)) == ([(f"p:{p}", f"d:{d}") for p in range(1, 5) for d in range(1, 5)], True)
    for prefill, decode in ((5, 4), (20, 3), (3, 20)):
        chosen, every = pairs(specs(prefill, decode))
        assert not every
        assert len(chosen) == max(prefill, decode) > MAX_PAIRS // 4
        assert {p for p, _ in chosen} == {f"p:{n + 1}" for n in range(prefill)}
        assert {d for _, d in chosen} == {f"d:{n + 1}" for n in range(decode)}
    assert pairs([parse_instance("b:1", Role.BOTH)]) == ([], True)
    assert pairs([]) == ([], True)


@pytest.mark.parametrize(
    ("there", "decode_alone", "words", "status"),
    [
        ([Role.PREFILL, Role.DECODE], False, None, None),
        ([Role.BOTH], False, None, None),
        ([Role.PREFILL, Role.BOTH], False, None, None),
        ([], False, "no prefill and no decode instance", Status.FAIL),
        ([Role.PREFILL], True, "no decode instance", Status.FAIL),
        ([Role.DECODE], False, "no prefill instance", Status.FAIL),
        ([Role.DECODE], True, "no prefill instance", Status.WARN),
    ],
)
def test_a_role_nobody_has_is_missed(
    there: list[Role], decode_alone: bool, words: str | None, status: Status | None
) -> None:
    specs = [parse_instance(f"h:{n + 1}", role) for n, role in enumerate(there)]
    found = roles(specs, decode_alone=decode_alone)
    assert [f.status for f in found] == ([] if status is None else [status])
    assert all((words or "") in f.words for f in found)


def moved(prompt: float, **by_source: float) -> Moved:
    return Moved(prompt=prompt, by_source=by_source, asked_connector=40.0, failed_transfers=0)


@pytest.mark.parametrize(
    ("connector", "seen", "status"),
    [
        ("nixl", moved(40, external_kv_transfer=40), Status.PASS),
        ("nixl", moved(40, external_kv_transfer=32, local_cache_hit=8), Status.PASS),
        ("nixl", moved(40, external_kv_transfer=39, local_compute=1), Status.PASS),
        ("nixl", moved(40, external_kv_transfer=20, local_compute=20), Status.FAIL),
        ("nixl", moved(40, local_compute=40), Status.FAIL),
        ("shared", moved(40, external_kv_transfer=32, local_compute=8), Status.PASS),
        ("shared", moved(40, local_compute=40), Status.FAIL),
        ("nixl", moved(99, external_kv_transfer=99), Status.PASS),
        ("nixl", moved(99, external_kv_transfer=60, local_compute=39), Status.PASS),
        ("nixl", moved(99, external_kv_transfer=59, local_compute=40), Status.WARN),
        ("nixl", None, Status.WARN),
    ],
)
def test_a_hand_over_is_judged_by_what_decode_counted(
    connector: str, seen: Moved | None, status: Status
) -> None:
    ok = Answer(value=b"{}")
    facts = PairFacts(
        "p:1", "d:1", prompt_tokens=40, prefill_answer=ok, decode_answer=ok, moved=seen,
        handoff=Handoff(msgspec.Raw(b"{}"), 40, 0, "e"),
    )  # fmt: skip
    decode = engine("d:1", Role.DECODE, ranks=[RankFacts(rank=0, block_size=8)])
    findings = of_pair(facts, engine("p:1"), decode, CONNECTORS[connector]())
    assert findings[-1].step == "hand_over"
    assert findings[-1].status is status, findings


def test_a_pair_that_could_kill_an_engine_is_not_tried() -> None:
    served = Send(answer=Answer(value=b"{}"), sent_ts=0.0)
    cards = Answer(value=[ModelCard("m")])

    def probed(address: str, size: int) -> EngineFacts:
        rank = RankFacts(rank=0, block_size=size, token_ids=[1], sends=[served])
        return engine(address, cards=cards, ranks=[rank])

    assert why_not(probed("p:1", 16), probed("d:1", 16), "m") is None
    assert why_not(probed("p:1", 16), probed("d:1", 32), "m") == "their block sizes differ"
    assert why_not(probed("p:1", 16), engine("d:1"), "m") == "d:1 does not serve"


PAGE = """\
# HELP vllm:prompt_tokens_total x
vllm:prompt_tokens_total{engine="0",model_name="m"} 7.0
vllm:prompt_tokens_total{engine="1",model_name="m"} 3.0
vllm:prompt_tokens_by_source_total{engine="0",source="local_compute"} 4.0
vllm:prompt_tokens_by_source_total{engine="1",source="local_compute"} 2.0
vllm:prompt_tokens_by_source_total{engine="0",source="external_kv_transfer"} 4.0
vllm:cache_config_info{block_size="32",enable_prefix_caching="True",engine="0",num_gpu_blocks="9"} 1.0
vllm:num_requests_running{engine="0"} NaN
"""


def test_metrics_are_summed_over_ranks() -> None:
    read = read_counted(Answer(value=PAGE.encode())).value
    assert (read.prompt_tokens, read.by_source) == (10, {"local_compute": 6, "external_kv_transfer": 4})
    assert (read.block_size, read.prefix_caching, read.asked_connector) == (32, True, None)


@pytest.mark.parametrize("page", [b"\xff\xfe", b"vllm:cache_config_info{ oops", b"<html>"])
def test_a_page_that_is_none_is_trouble_or_tells_nothing(page: bytes) -> None:
    read = read_counted(Answer(value=page))
    assert not read.ok or read.value.prompt_tokens is None


def report(*findings: Finding) -> Report:
    one = InstanceReport(name="prefill a:1", instance="a:1", role="prefill", findings=list(findings))
    return Report(model="m", connector="nixl", took_s=1.0, instances=[one], pairs=[], fleet=[])


@pytest.mark.parametrize(
    ("findings", "exit_code"),
    [
        ([], 0),
        ([passed("a", "x"), skipped("b", "x")], 0),
        ([passed("a", "x"), warned("b", "x", "do y")], 1),
        ([failed("a", "x", "do y"), warned("b", "x", "do y")], 2),
    ],
)
def test_the_gravest_finding_is_the_exit_code(findings: list[Finding], exit_code: int) -> None:
    assert report(*findings).exit_code == exit_code == as_json(report(*findings))["exit_code"]


def test_a_report_can_be_read_without_a_terminal_and_fits_into_one() -> None:
    long = "some words about what was seen " * 8
    made = report(passed("probe_event", long.strip(), 1), failed("replay", "no", "set --this 'to a {value}'"))
    plain = as_text(made)
    assert "\033" not in plain
    assert f"  pass  probe event 1     {long.strip()}" in plain.splitlines()
    assert "                          -> set --this 'to a {value}'" in plain.splitlines()
    assert plain.endswith("fail: 1 failed, 1 passed in 1.0 s")
    narrow = as_text(made, colour=True, width=80)
    assert "\033[1;31mfail\033[0m" in narrow
    assert max(len(line) for line in as_text(made, width=80).splitlines()) <= 80
    json.dumps(as_json(made))


def told(legs: int, share: float | None, *, trusted: bool = True, **misses: int) -> AccuracyShown:
    causes = dict.fromkeys(Cause, 0) | {Cause(name): count for name, count in misses.items()}
    return msgspec.structs.replace(
        Counts().shown(trusted=trusted),
        legs=legs,
        exact_share=share,
        misses=MissesShown(**{cause.value: count for cause, count in causes.items()}),
    )


@pytest.mark.parametrize(
    ("accuracy", "status", "words", "remedy"),
    [
        (told(0, None), Status.PASS, "not sampled", ""),
        (told(5, None), Status.PASS, "none reported", ""),
        (told(1000, 0.99, race=10), Status.PASS, "99.0% of 1000", ""),
        (told(4, 0.5, race=2), Status.PASS, "50.0% of 4", ""),
        (told(1000, 0.9, race=99, index=1), Status.WARN, "99 race, 1 index", "KV cache"),
        (told(100, 0.5, tokens=50), Status.WARN, "50 tokens", "engines_agree"),
        (told(100, 0.5, trusted=False, index=50), Status.FAIL, "by load alone", "wire_format"),
    ],
)
def test_the_services_own_predictions_are_judged(
    accuracy: AccuracyShown, status: Status, words: str, remedy: str
) -> None:
    rank = RankFacts(rank=0, accuracy=accuracy)
    [finding] = [f for f in of_rank(engine(), rank, several=False) if f.step == "accuracy"]
    assert finding.status is status
    assert words in finding.words
    assert remedy in (finding.remedy or "")
    assert not [f for f in of_rank(engine(role=Role.DECODE), rank, several=False) if f.step == "accuracy"]


@pytest.mark.parametrize(
    ("lengths", "status", "words"),
    [
        ([4096, 4096], Status.PASS, "4096 tokens on all 2 engines"),
        ([4096, 512, 4096], Status.WARN, "512 tokens: b:1; 4096 tokens: a:1, c:1"),
        ([4096, None, 512], Status.WARN, "512 tokens: c:1; 4096 tokens: a:1"),
        ([4096, None], None, ""),
    ],
)
def test_engines_of_different_context_lengths_are_told(
    lengths: list[int | None], status: Status | None, words: str
) -> None:
    cards = [Answer(value=[ModelCard("tiny", max_model_len=length)]) for length in lengths]
    found = context_lengths([engine(f"{n}:1", cards=c) for n, c in zip("abc", cards, strict=False)], "tiny")
    assert [f.status for f in found] == ([] if status is None else [status])
    for finding in found:
        assert words in finding.words
        assert (finding.remedy is None) == (status is Status.PASS)
        assert "--max-model-len" in (finding.remedy or "--max-model-len")


def of_releases(*told: str) -> list[EngineFacts]:
    """Engines like `p1 0.32.0`: a letter for the role, and the version it tells, `-` for none."""
    roles = {"p": Role.PREFILL, "d": Role.DECODE, "b": Role.BOTH}
    return [
        engine(f"{name}:1", roles[name[0]], version=None if version == "-" else Answer(value=version))
        for name, version in (words.split() for words in told)
    ]


@pytest.mark.parametrize(
    ("told", "status", "said", "remedy"),
    [
        (("p1 0.32.0", "d1 0.32.1+cpu"), None, "", ""),
        (("p1 0.33.0", "d1 0.33.0"), None, "", ""),
        (("p1 0.32.0", "d1 -"), None, "", ""),
        (("b1 0.32.0", "b2 0.33.0"), None, "", ""),
        (("p1 0.32.0", "p2 0.33.0"), None, "", ""),
        (
            ("p1 0.32.0", "p2 0.32.0", "d1 0.33.0", "d2 -"),
            Status.FAIL,
            "(vLLM 0.32.0, NIXL metadata version 14) and d1:1 (vLLM 0.33.0, NIXL metadata version 15) do not",
            "upgrade together, so that all are of one release: p1:1, p2:1 to vLLM 0.33.0 as d1:1",
        ),
        (
            ("p1 0.33.0", "p2 0.32.0", "d1 0.33.0"),
            Status.FAIL,
            "p2:1 (vLLM 0.32.0, NIXL",
            "p2:1 to vLLM 0.33.0",
        ),
        (("p1 0.33.0", "b1 v0.32.0"), Status.FAIL, "b1:1 (vLLM v0.32.0", "b1:1 to vLLM 0.33.0"),
        (
            ("p1 0.33.0", "d1 0.34.0"),
            Status.WARN,
            "d1:1 (vLLM 0.34.0) may not shake hands",
            "p1:1 to vLLM 0.34.0",
        ),
        (("p1 0.34.0", "d1 0.35.1"), Status.WARN, "may not shake hands", "p1:1 to vLLM 0.35.1"),
        (("p1 dev", "d1 0.33.0"), Status.WARN, "p1:1 (vLLM dev) may not", "p1:1 to vLLM 0.33.0"),
        (("p1 dev", "d1 main"), None, "", ""),
        (
            ("p1 0.32.0", *(f"d{n} 0.33.0" for n in range(12))),
            Status.FAIL,
            "d7:1 and 4 more (",
            "p1:1 to vLLM",
        ),
    ],
)
def test_releases_that_do_not_shake_hands_are_told(
    told: tuple[str, ...], status: Status | None, said: str, remedy: str
) -> None:
    engines = of_releases(*told)
    assert of_fleet(engines, SharedConnector()) == []
    found = of_fleet(engines, NixlConnector())
    assert [one.status for one in found] == ([] if status is None else [status])
    for one in found:
        assert said in one.words
        assert remedy in (one.remedy or "")
