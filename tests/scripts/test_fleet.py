"""An engine's command is made from its description, and a fleet says what went wrong with which engine."""

import dataclasses
import json
import os
import pathlib

import pytest

from scripts.workshop.engines.engine import EngineSpec, Installation, command, environment
from scripts.workshop.engines.fleet import EngineFailedError, Fleet, plan

CONFIG = {"num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 32}


@pytest.fixture
def install(tmp_path: pathlib.Path) -> Installation:
    """An installation whose engine says a word and dies."""
    made = Installation(tmp_path / "env")
    made.model.mkdir(parents=True)
    (made.model / "config.json").write_text(json.dumps(CONFIG))
    (made.model / "model.safetensors").touch()
    made.vllm.parent.mkdir()
    made.vllm.write_text("#!/bin/sh\necho no memory left\nexit 3\n")
    made.vllm.chmod(0o755)
    return made


def after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_the_command_of_a_prefill_engine(install: Installation) -> None:
    spec = EngineSpec(
        "p",
        1,
        "prefill",
        "nixl",
        side_port=2,
        events_port=3,
        replay_port=4,
        lease_s=20,
        loras=("alpha",),
        flags=("--x",),
    )
    words = command(spec, install)
    assert words[:3] == [str(install.vllm), "serve", str(install.model)]
    assert after(words, "--port") == "1"
    assert after(words, "--kv-cache-memory-bytes") == str(16_384 * 2 * 4 * 2 * 2 * 32)
    assert json.loads(after(words, "--kv-transfer-config")) == {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_producer",
        "kv_buffer_device": "cpu",
        "kv_connector_extra_config": {"kv_lease_duration": 20},
    }
    events = json.loads(after(words, "--kv-events-config"))
    assert (events["endpoint"], events["replay_endpoint"]) == ("tcp://*:3", "tcp://*:4")
    assert after(words, "--lora-modules") == f"alpha={install.model}/lora/alpha"
    assert words[-1] == "--x"
    assert environment(spec, {"PYTHONPATH": "/own"})["PYTHONPATH"].endswith("/quiet:/own")


def test_a_plain_engine_transfers_nothing(install: Installation) -> None:
    assert "--kv-transfer-config" not in command(EngineSpec("a", 1), install)


def test_a_plan_shares_no_port_and_no_hash_seed() -> None:
    specs = plan(plain=1, prefill=2, decode=2)
    assert [spec.name for spec in specs] == ["plain-0", "prefill-0", "prefill-1", "decode-0", "decode-1"]
    ports = [n for spec in specs for n in (spec.port, spec.side_port, spec.events_port, spec.replay_port)]
    assert len(set(ports)) == 20
    seeds = {environment(spec, {})["PYTHONHASHSEED"] for spec in specs}
    assert len(seeds) == 5


def test_a_dead_engine_is_named_with_its_log(install: Installation, tmp_path: pathlib.Path) -> None:
    with Fleet(plan(prefill=1), tmp_path / "logs", install=install, say=lambda _: None) as fleet:
        fleet.start()
        with pytest.raises(EngineFailedError) as caught:
            fleet.wait_healthy(timeout_s=30)
    assert "prefill-0 ended with exit code 3" in str(caught.value)
    assert str(tmp_path / "logs" / "prefill-0.log") in str(caught.value)
    assert "no memory left" in str(caught.value)


def test_a_silent_engine_is_not_waited_for_long(install: Installation, tmp_path: pathlib.Path) -> None:
    install.vllm.write_text("#!/bin/sh\nexec sleep 60\n")
    with Fleet(plan(decode=1), tmp_path / "logs", install=install, say=lambda _: None) as fleet:
        fleet.start()
        with pytest.raises(EngineFailedError, match="decode-0 did not come up"):
            fleet.wait_healthy(timeout_s=0.1)
        pid = fleet.pid("decode-0")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_nothing_installed_says_what_to_run(tmp_path: pathlib.Path) -> None:
    fleet = Fleet([EngineSpec("a", 1)], tmp_path, install=Installation(tmp_path / "nowhere"))
    with pytest.raises(EngineFailedError, match=r"vllm_cpu\.sh"):
        fleet.start()


def test_addresses_lead_to_names(tmp_path: pathlib.Path) -> None:
    spec = dataclasses.replace(EngineSpec("a", 1), role="decode")
    fleet = Fleet([spec], tmp_path)
    assert fleet.named("127.0.0.1:1") == "a"
    assert fleet.of_role("decode") == [spec]
    assert fleet.of_role("prefill") == []
