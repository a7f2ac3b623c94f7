"""What an engine's page says of what runs there, and what is no such page."""

import pytest

from proxy.upstream.engine_api.asking import UnreadableError
from proxy.upstream.engine_api.metrics import Busy, read_busy

PAGE = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
vllm:num_requests_waiting{engine="0",model_name="tiny"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 40.0
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.25
"""


def test_requests_and_the_share_of_blocks_in_use_are_read() -> None:
    assert read_busy(PAGE) == Busy(3, 2, 0.25)


def test_ranks_are_summed_and_the_fullest_counts() -> None:
    rank = PAGE.replace(b'engine="0"', b'engine="1"').replace(b"} 0.25", b"} 0.75")
    assert read_busy(PAGE + rank) == Busy(6, 4, 0.75)


LORA = b"""# TYPE vllm:lora_requests_info gauge
vllm:lora_requests_info{max_lora="2",running_lora_adapters="",waiting_lora_adapters=""} 1.7e+09
vllm:lora_requests_info{max_lora="2",running_lora_adapters="a,b",waiting_lora_adapters="c"} 1.8e+09
vllm:lora_requests_info{max_lora="2",running_lora_adapters="d",waiting_lora_adapters=""} 1.75e+09
"""


def test_of_adapters_counts_what_the_page_told_last() -> None:
    assert read_busy(PAGE + LORA) == Busy(3, 2, 0.25, 2, frozenset("abc"))


@pytest.mark.parametrize(
    "broken",
    [
        LORA.replace(b'max_lora="2"', b'max_lora="many"'),
        LORA.replace(b"e+09", b"e+zz"),
        LORA.replace(b'max_lora="2",', b""),
    ],
)
def test_what_says_nothing_of_adapters_is_no_harm(broken: bytes) -> None:
    assert read_busy(PAGE + broken) == Busy(3, 2, 0.25)


def test_a_page_without_the_use_of_blocks_and_without_a_last_line_end_is_read() -> None:
    assert read_busy(PAGE[: PAGE.index(b"vllm:kv")].rstrip()) == Busy(3, 2, 0.0)


@pytest.mark.parametrize("value", [b"NaN", b"-1", b"1e300", b"+Inf", b"three", b"", b"9" * 4000])
def test_what_is_no_number_of_requests_is_not_counted(value: bytes) -> None:
    with pytest.raises(UnreadableError, match="does not say how many requests"):
        read_busy(PAGE.replace(b"} 3.0", b"} " + value))


@pytest.mark.parametrize("page", [b"", b"\x00\xff" * 1000, b"vllm:num_requests_running", PAGE[:150]])
def test_a_page_that_does_not_say_is_told_apart(page: bytes) -> None:
    with pytest.raises(UnreadableError):
        read_busy(page)


def test_many_lines_are_bounded() -> None:
    line = b'\nvllm:num_requests_running{engine="0"} 1.0'
    assert read_busy(line * 5000 + b"\n" + PAGE).running == 1024
