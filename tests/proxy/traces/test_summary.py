"""The figures of a workload are what a slow way of counting finds."""

from hypothesis import given

from proxy.traces.summary import summary
from proxy.traces.workload import Workload
from tests.proxy.traces.given import request, workload, workloads


def test_figures_of_a_workload_that_can_be_counted_by_hand() -> None:
    found = summary(
        workload(
            request(0.0, (1, 2), input_tokens=600, session="a"),
            request(3.0, (1, 2, 3), input_tokens=1500, session="b", model="m"),
            request(3.0, (1, 4), input_tokens=1024, session="b"),
            request(3.0, (1, 4, 5), input_tokens=1100, session="b", after=2, think_s=60.0),
        )
    )
    assert (found.requests, found.duration_s, found.distinct_stamps, found.most_at_once) == (4, 3.0, 2, 2)
    assert (found.sessions, found.waiting, found.models, found.distinct_blocks) == (2, 1, 2, 5)
    assert found.reused_tokens == (1024 + 512 + 1024) / (600 + 1500 + 1024 + 1100)
    assert found.reused_blocks == (2 + 1 + 2) / 10
    assert (found.input_tokens.mean, found.input_tokens.p50, found.input_tokens.greatest) == (
        1056,
        1062,
        1500,
    )


def test_a_partial_block_counts_with_its_tokens_alone() -> None:
    found = summary(workload(request(0.0, (1,), input_tokens=100), request(1.0, (1,), input_tokens=100)))
    assert found.reused_tokens == 0.5


@given(workloads())
def test_reuse_is_the_longest_prefix_of_which_all_blocks_were_there(any_workload: Workload) -> None:
    had = total = 0
    for index, each in enumerate(any_workload.requests):
        earlier = {
            (other.block_tokens, block) for other in any_workload.requests[:index] for block in other.blocks
        }
        hit = 0
        while hit < len(each.blocks) and (each.block_tokens, each.blocks[hit]) in earlier:
            hit += 1
        had += min(hit * each.block_tokens, each.input_tokens)
        total += each.input_tokens
    assert summary(any_workload).reused_tokens == had / total
