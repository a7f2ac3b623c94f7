"""`python -m proxy.simulation` as a process."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.simulation.__main__ import config_of, parser
from proxy.simulation.engine.latency import PROFILES
from proxy.simulation.live.config import StandInConfig
from proxy.simulation.live.publisher import EventForm


def test_arguments_become_a_configuration() -> None:
    words = (
        "--port 1 --model m --lora a --lora b --role prefill --ranks 2 --block-size 32 --blocks 100 "
        "--max-model-len 64 --max-num-batched-tokens 7 --max-num-seqs 8 --max-num-queued-reqs 11 "
        "--max-num-queued-tokens 12 --profile tiny-cpu --eos-every 9 --events 3 --replay 4 --topic t "
        "--buffer-steps 5 --event-arrays --bytes-hashes --side-port 6 --lease-s 2.5 --hash-seed 5 "
        "--recompute --lucky-reads --no-prompt-tokens-details --request-metrics --load-tracking "
        "--request-id-headers --admin 10 --no-prefix-caching --foreign-events --clock-offset-s 3.5 "
        "--greeting hi --api-key k --vllm-version 0.33.0 --sources-form array"
    )
    assert config_of(parser().parse_args(words.split())) == StandInConfig(
        port=1,
        model="m",
        loras=("a", "b"),
        ranks=2,
        block_size=32,
        blocks=100,
        max_model_len=64,
        max_batched_tokens=7,
        max_sequences=8,
        max_queued_requests=11,
        max_queued_tokens=12,
        profile=PROFILES["tiny-cpu"],
        eos_every=9,
        events=3,
        replay=4,
        topic="t",
        buffer_steps=5,
        event_form=EventForm(arrays=True, bytes_hashes=True, foreign=True),
        prefix_caching=False,
        clock_offset_s=3.5,
        greeting="hi",
        api_key="k",
        side_port=6,
        lease_s=2.5,
        hash_seed="5",
        recompute=True,
        lucky_reads=True,
        prompt_tokens_details=False,
        request_metrics=True,
        load_tracking=True,
        request_id_headers=True,
        admin=10,
        version="0.33.0",
        sources_form="array",
    )


def test_a_plain_engine_has_no_connector_and_no_events() -> None:
    config = config_of(parser().parse_args(["--role", "plain", "--lookahead", "1"]))
    assert (config.connector, config.events, config.replay) == (False, None, None)
    assert config.shape().lookahead == 1


def test_an_engine_with_a_connector_does_not_look_ahead() -> None:
    with pytest.raises(ValueError, match="connector"):
        config_of(parser().parse_args(["--lookahead", "1"]))


class Process:
    """A stand-in process; `url` is read from its first line."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-m", "proxy.simulation", "--port", "0", *words]
        self.popen = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.popen.stdout is not None
        self.url = self.popen.stdout.readline().split()[-1]

    def post(self, path: str, body: Any) -> int:
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def cpu_s(self) -> float:
        """What the process has used so far: unlike the clock, it does not depend on who else is busy."""
        fields = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> int:
        """Wait for the exit status."""
        assert self.popen.stdout is not None
        with self.popen:
            return self.popen.wait(10)


@pytest.fixture
def process() -> Iterator[Process]:
    started = Process("--events", "0", "--replay", "0")
    yield started
    if started.popen.poll() is None:
        started.popen.kill()
        started.end()


def test_it_serves_until_a_signal(process: Process) -> None:
    assert process.cpu_s() < 1
    assert process.post("/v1/completions", {"prompt": "x", "max_tokens": 2}) == 200
    process.popen.send_signal(signal.SIGTERM)
    assert process.end() == 0


def test_a_request_can_kill_it(process: Process) -> None:
    body = {"prompt": "x", "max_tokens": 2, "kv_transfer_params": {"do_remote_prefill": True}}
    assert process.post("/v1/completions", body) == 500
    assert process.end() == 1
