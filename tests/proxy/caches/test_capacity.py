"""No more copies are counted than an engine's cache has room for, which the engine tells."""

import pytest

from proxy.upstream.engine_api.metrics import read_capacities

INFO = "vllm:cache_config_info"


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("", {}),
        (f'{INFO}{{block_size="16",engine="0",num_gpu_blocks="4096"}} 1.0', {0: 4096}),
        (f'{INFO}{{num_gpu_blocks="4"}} 1.0', {0: 4}),
        (
            (
                f'# HELP {INFO} I\n{INFO}{{engine="0",num_gpu_blocks="10"}} '
                f'1.0\n{INFO}{{engine="1",num_gpu_blocks="12"}} 1'
            ),
            {0: 10, 1: 12},
        ),
        (f'{INFO}{{engine="0",num_gpu_blocks="None"}} 1.0', {}),
        (f'{INFO}{{engine="0",num_gpu_blocks="0"}} 1.0', {}),
        (f'{INFO}{{engine="x",num_gpu_blocks="4"}} 1.0', {}),
        (f'{INFO}{{engine="0",num_gpu_blocks="{"9" * 5000}"}} 1.0', {}),
        (f'{INFO}{{engine="0",prefix="a\\"b,num_gpu_blocks=",num_gpu_blocks="4"}} 1.0', {0: 4}),
        (f"{INFO}{{", {}),
        (f"{INFO}{{{'a' * 1_000_000}", {}),  # read as it is written, it would take an hour
        (f'{INFO}{{engine="1024",num_gpu_blocks="4"}} 1.0', {}),
    ],
)
def test_capacities_are_read_from_the_metrics_page(page: str, expected: dict[int, int]) -> None:
    assert read_capacities(page) == expected
