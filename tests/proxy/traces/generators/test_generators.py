"""Generated workloads are ones, equal by seed, and each of the nature that it is named for."""

import itertools
import pathlib
from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import TraceError
from proxy.traces.blocks import block_count
from proxy.traces.generators import (
    GENERATORS,
    Agents,
    Chats,
    Documents,
    Generator,
    Systems,
    Unrelated,
    generator,
)
from proxy.traces.readers import read
from proxy.traces.summary import summary
from proxy.traces.workload import TraceRequest, Workload
from proxy.traces.writing import write

KINDS = tuple(GENERATORS.values())


def is_one(workload: Workload) -> None:
    """Whether a workload keeps to what `TraceRequest` says."""
    begins = [each.at_s for each in workload.requests]
    assert begins == sorted(begins)
    for index, each in enumerate(workload.requests):
        assert len(each.blocks) == block_count(each.input_tokens, each.block_tokens)
        assert each.output_tokens >= 1
        assert each.think_s >= 0
        if each.after is not None:
            before = workload.requests[each.after]
            assert each.after < index
            assert (before.at_s, before.session) == (each.at_s, each.session)


def prefix(one: TraceRequest, other: TraceRequest) -> int:
    """How many blocks two prompts have in common."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one.blocks, other.blocks, strict=False))
    return sum(1 for _ in same)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_are_equal_workloads_and_others_are_not(kind: type[Generator]) -> None:
    made = kind(seed=7, duration_s=200).generate()
    assert made == kind(seed=7, duration_s=200).generate()
    assert made.requests != kind(seed=8, duration_s=200).generate().requests
    assert made.source.startswith(f"generated: {kind.name} seed=7 duration_s=200 block_tokens=512 ")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), block_tokens=st.sampled_from((16, 100, 512)))
def test_any_seed_makes_a_workload(kind: type[Generator], seed: int, block_tokens: int) -> None:
    is_one(kind(seed=seed, duration_s=120, block_tokens=block_tokens).generate())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_generated_survives_a_file(kind: type[Generator], tmp_path: pathlib.Path) -> None:
    made = kind(duration_s=120).generate()
    write(made, tmp_path / "made.jsonl.gz")
    found = read(tmp_path / "made.jsonl.gz")
    began_s = made.requests[0].at_s
    assert len(found.requests) == len(made.requests)
    for one, other in zip(found.requests, made.requests, strict=True):
        assert one.at_s == pytest.approx(other.at_s - began_s, abs=2e-6)
        assert one.think_s == pytest.approx(other.think_s, abs=1e-6)
        assert (one.input_tokens, one.output_tokens, one.session, one.after) == (
            other.input_tokens,
            other.output_tokens,
            other.session,
            other.after,
        )
    assert summary(found).reused_tokens == summary(made).reused_tokens


def test_unrelated_prompts_share_nothing() -> None:
    figures = summary(Unrelated(most_tokens=20_000, input_tokens=10_000).generate())
    assert figures.reused_tokens == 0
    assert figures.input_tokens.greatest == 20_000


def test_system_prompts_are_as_popular_as_zipf_says() -> None:
    made = Systems(per_s=50, systems=10, exponent=1.0).generate()
    firsts = Counter(each.blocks[0] for each in made.requests if each.input_tokens > 2048)
    (_, most), (_, second), *_ = firsts.most_common()
    assert most / second == pytest.approx(2, rel=0.35)
    assert summary(made).reused_tokens > 0.7
    alone = Systems(per_s=50, systems=1000, exponent=0, duration_s=20).generate()
    assert summary(alone).reused_tokens < summary(made).reused_tokens


def test_each_turn_of_a_chat_continues_the_one_before() -> None:
    made = Chats(system_tokens=5000).generate()
    figures = summary(made)
    assert (figures.requests - figures.waiting) == figures.sessions > 200
    for each in made.requests:
        if each.after is not None:
            before = made.requests[each.after]
            assert each.input_tokens > before.input_tokens + before.output_tokens
            assert prefix(each, before) == before.input_tokens // 512
    assert len({each.blocks[0] for each in made.requests if each.after is None}) <= 4
    assert max(each.input_tokens for each in Chats(most_tokens=6000).generate().requests) <= 6000


def test_chats_without_a_system_prompt_share_nothing_with_others() -> None:
    made = Chats(systems=0).generate()
    owners: dict[int, set[str | None]] = {}
    for each in made.requests:
        for block in each.blocks:
            owners.setdefault(block, set()).add(each.session)
    assert {len(sessions) for sessions in owners.values()} == {1}


def test_agents_grow_long_and_fan_out_from_a_shared_context() -> None:
    made = Agents(seed=2).generate()
    figures = summary(made)
    assert figures.reused_tokens > 0.9
    assert 150_000 < figures.input_tokens.greatest <= 200_000
    assert len({each.blocks[:29] for each in made.requests if each.after is None}) == 1  # 15k tokens
    waiting = Counter(each.after for each in made.requests if each.after is not None)
    fans = [index for index, count in waiting.items() if count > 1]
    assert fans
    forked = [
        each
        for each in made.requests
        if each.after in set(fans)
        and prefix(each, made.requests[each.after]) == made.requests[each.after].input_tokens // 512
    ]
    assert len(forked) > len(fans)


def test_agents_without_a_shared_system_prompt_share_nothing_with_others() -> None:
    made = Agents(system_tokens=0, sub_system_tokens=0).generate()
    firsts = {each.blocks[0]: each.session for each in made.requests if each.after is None}
    assert len(firsts) == len({*firsts.values()})


def test_a_full_session_goes_on_with_a_summary() -> None:
    made = Agents(compactions=3, fan_out_share=0, sessions_per_minute=1).generate()
    shrunk = [
        each
        for each in made.requests
        if each.after is not None and each.input_tokens < made.requests[each.after].input_tokens
    ]
    assert shrunk
    once = Agents(compactions=0, fan_out_share=0, sessions_per_minute=1).generate()
    assert all(
        each.input_tokens > once.requests[each.after].input_tokens
        for each in once.requests
        if each.after is not None
    )


def test_documents_are_asked_about_several_times() -> None:
    made = Documents(questions=8).generate()
    by_document = Counter(each.session for each in made.requests)
    assert sum(by_document.values()) / len(by_document) == pytest.approx(8, rel=0.25)
    assert summary(made).reused_tokens > 0.6
    assert summary(made).input_tokens.p50 > 20_000


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("chats", Chats()),
        ("chats:turns=3,think_s=5,seed=9", Chats(turns=3, think_s=5, seed=9)),
        ("agents:system_tokens=0", Agents(system_tokens=0)),
    ],
)
def test_a_generator_in_words(text: str, made: Generator) -> None:
    assert generator(text) == made


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("chat", "chat: no generator; there are systems, chats, agents, documents, unrelated"),
        ("chats:turn=3", r"chats: 'turn=3' is no figure; there are seed, duration_s, block_tokens, sessions"),
        ("chats:turns", "chats: 'turns' is no figure"),
        ("chats:turns=many", r"chats: Expected float, got str - at turns"),
        ("chats:turns=-1", "chats: turns is -1, and must be 0 or more"),
        ("chats:turns=nan", "chats: turns is nan, and must be 0 or more"),
        ("chats:duration_s=0", "chats: duration_s must be more than 0"),
    ],
)
def test_words_that_name_no_generator_are_refused(text: str, why: str) -> None:
    with pytest.raises(TraceError, match=why):
        generator(text)


def test_figures_that_make_nothing_are_refused() -> None:
    with pytest.raises(TraceError, match="unrelated: these figures make no request within 600 s"):
        Unrelated(per_s=0).generate()


def test_arrivals_can_come_in_bursts() -> None:
    def unevenness(burst: float) -> float:
        made = Unrelated(per_s=10, burst=burst).generate()
        seconds = Counter(int(each.at_s) for each in made.requests)
        counts = [seconds[second] for second in range(600)]
        mean = sum(counts) / len(counts)
        return sum((count - mean) ** 2 for count in counts) / len(counts) / mean

    assert unevenness(0) < 0.2
    assert unevenness(1) == pytest.approx(1, rel=0.3)
    assert unevenness(3) > 3


def test_figures_are_plain_values() -> None:
    assert msgspec.json.decode(msgspec.json.encode(Chats(turns=2)), type=Chats) == Chats(turns=2)


@pytest.mark.parametrize(
    "figures",
    [
        "unrelated:per_s=1e9",
        "unrelated:burst=1000,per_s=1e9",
        "unrelated:input_tokens=1e9,most_tokens=1000000000,per_s=100",
        "systems:system_tokens=1e9,systems=1000",
        "chats:sessions_per_minute=1e9",
        "chats:turns=1e9,message_tokens=1,most_tokens=1000000000",
        "agents:sub_agents=1e9,fan_out_share=1,most_context_tokens=1000000000,least_context_tokens=1000000000",
        "documents:questions=1e9",
        "documents:duration_s=1e9",
    ],
)
def test_figures_that_would_take_for_ever_end_with_an_error(
    figures: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.traces.generators.draws.MOST_TIMES", 20_000)
    monkeypatch.setattr("proxy.traces.generators.contents.MOST_MIB", 16)
    with pytest.raises(TraceError, match=r"\w+: these figures make (more than 20000 arrivals|prompts that)"):
        generator(figures).generate()


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_has_a_bound(kind: type[Generator]) -> None:
    for figure in kind.__struct_fields__:
        with pytest.raises(TraceError, match=f"{kind.name}: {figure} is .*, and must be .* or less"):
            generator(f"{kind.name}:{figure}={10**20}")


def test_a_seed_beside_the_figures_counts_if_these_have_none() -> None:
    assert generator("chats", seed=7) == Chats(seed=7)
    assert generator("chats:seed=3", seed=7) == Chats(seed=3)
