"""The doctor finds nothing wrong with healthy engines, and names each planted fault with its remedy."""

import pathlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from proxy.doctor.patience import Patience
from proxy.findings import Finding, Status
from proxy.simulation import ROUTES
from proxy.simulation.api.validation import Asked, Checker
from proxy.simulation.live.faults import Fault
from proxy.simulation.live.publisher import EventForm
from scripts.workshop.live.ports import free_ports
from tests.helpers.doctoring import Case, Found, case
from tests.helpers.service import wait_until
from tests.helpers.tiny_model import write_tiny_model

IMPATIENT = Patience(connect_s=2.0, event_s=2.0, ask_s=2.0, replay_quiet_s=0.5)
"""What never comes is not waited for as long."""


async def at_rest(engines: Case) -> None:
    await wait_until(lambda: not any(len(e.model.holds) for e in engines.all), "the end of all holds")


def judged(finding: Finding, status: Status, words: str, remedy: str) -> None:
    assert (finding.status, words in finding.words, remedy in (finding.remedy or "")) == (
        status,
        True,
        True,
    ), finding


def gravest(found: Found, exit_code: int, *steps: str) -> None:
    """Nothing else is complained of."""
    assert found.report.exit_code == exit_code
    assert set(found.wrong) == set(steps)


# -- all is well ------------------------------------------------------------------------------------------


async def test_a_healthy_fleet_passes_in_every_step() -> None:
    async with case([{}, {}], [{}, {}]) as engines:
        found = await engines.examine()
        gravest(found, 0)
        assert found.report.count(Status.SKIP) == 0
        assert len(found.report.pairs) == 4
        for engine in engines.all:
            assert "exactly the tokens computed" in found.of(engine, "probe_event").words
            assert "= reported" in found.of(engine, "cached_tokens").words
        for prefill in engines.prefill:
            for decode in engines.decode:
                assert found.pair(prefill, decode, "hand_over").words.startswith("decode fetched")
                assert "computed 0" in found.pair(prefill, decode, "hand_over").words
        await at_rest(engines)


async def test_engines_that_do_both_pass_and_are_no_pairs() -> None:
    async with case([], [], [{}, {}]) as engines:
        found = await engines.examine()
        gravest(found, 0)
        assert found.report.pairs == []


async def test_a_fleet_of_all_roles_passes() -> None:
    async with case([{}], [{}], [{}]) as engines:
        found = await engines.examine()
        gravest(found, 0)
        assert [(p.prefill, p.decode) for p in found.report.pairs] == [
            (engines.prefill[0].address, other.address) for other in (engines.decode[0], engines.both[0])
        ]


@pytest.mark.parametrize(
    "settings",
    [
        {"ranks": 2},
        {"hash_seed": "other"},
        {"event_form": EventForm(arrays=True)},
        {"event_form": EventForm(bytes_hashes=True)},
        {"block_size": 128, "blocks": 512},
        {"loras": ("alpha",)},
        {"greeting": "<|turn|>system\nYou are a model made by somebody to be of use.<|end|>\n"},
    ],
)
async def test_engines_of_all_kinds_pass(settings: dict[str, Any]) -> None:
    async with case([settings], [settings]) as engines:
        for _ in range(2):  # the second time its caches know the template's beginning
            gravest(await engines.examine(), 0)


async def test_the_models_own_tokenizer_is_compared_and_used(tmp_path: pathlib.Path) -> None:
    root = {"root": str(write_tiny_model(tmp_path))}
    async with case([root], [root]) as engines:
        for tokenizer in ("auto", str(tmp_path)):
            found = await engines.examine(tokenizer=tokenizer)
            gravest(found, 0)
            assert str(tmp_path) in found.of(engines.prefill[0], "tokenizer").words


async def test_without_kv_events_they_are_not_looked_for() -> None:
    async with case([{"events": None, "replay": None}], [{"events": None, "replay": None}]) as engines:
        found = await engines.examine(kv_events=False)
        gravest(found, 0)
        assert found.of(engines.prefill[0], "event_sources").status is Status.SKIP


async def test_an_engine_whose_publisher_connects_to_us_is_heard() -> None:
    (port,) = free_ports(1)
    async with case([{"events_connect": f"tcp://127.0.0.1:{port}"}]) as engines:
        gravest(await engines.examine(), 0)


async def test_many_engines_are_tried_in_fewer_pairs() -> None:
    async with case([{}] * 6, [{}] * 3) as engines:
        found = await engines.examine()
        gravest(found, 0)
        assert len(found.report.pairs) == 6
        assert {p.prefill for p in found.report.pairs} == {e.address for e in engines.prefill}
        assert {p.decode for p in found.report.pairs} == {e.address for e in engines.decode}
        assert any("6 pairs were tried" in f.words for f in found.report.fleet)


# -- planted ----------------------------------------------------------------------------------------------


async def test_events_off() -> None:
    off = {"events": None, "replay": None}
    async with case([off], [off]) as engines:
        found = await engines.examine()
        gravest(found, 2, "event_sources")
        step = found.of(engines.prefill[0], "event_sources")
        judged(
            step,
            Status.FAIL,
            "publishes no KV events",
            '--kv-events-config \'{"enable_kv_cache_events": true',
        )
        judged(
            found.of(engines.decode[0], "event_sources"),
            Status.WARN,
            "placed there by load",
            "--kv-events-config",
        )
        assert found.of(engines.prefill[0], "cached_tokens").status is Status.SKIP


async def test_an_engine_too_old_to_tell_its_sources() -> None:
    async with case() as engines:
        engines.prefill[0].faults.add(Fault(kind="status", path="/kv_event_sources", status=404))
        found = await engines.examine()
        judged(
            found.of(engines.prefill[0], "event_sources"),
            Status.FAIL,
            "status 404",
            "?events=tcp://127.0.0.1:5557",
        )


async def test_an_engine_that_tells_its_sources_in_a_way_nobody_knows() -> None:
    async with case([{"sources_form": "other"}], [{"sources_form": "array"}]) as engines:
        found = await engines.examine()
        step = found.of(engines.prefill[0], "event_sources")
        judged(step, Status.FAIL, "/kv_event_sources is not understood", "?events=tcp://127.0.0.1:5557")
        assert "publishes no" not in step.words
        assert found.of(engines.decode[0], "event_sources").status is Status.PASS


async def test_a_wrong_event_port() -> None:
    (nobody,) = free_ports(1)
    async with case() as engines:
        prefill = engines.prefill[0]
        engines.named[prefill.address] = f"?events=tcp://127.0.0.1:{nobody}"
        found = await engines.examine(patience=IMPATIENT)
        gravest(found, 2, "events_connected")
        step = found.of(prefill, "events_connected")
        judged(step, Status.FAIL, f"nothing publishes at tcp://127.0.0.1:{nobody}", prefill.events_endpoint)
        assert "correct ?events=" in (step.remedy or "")


async def test_a_port_that_nobody_connects_to() -> None:
    (nobody,) = free_ports(1)
    async with case() as engines:
        engines.named[engines.prefill[0].address] = f"?events=tcp://*:{nobody}"
        found = await engines.examine(patience=IMPATIENT)
        gravest(found, 2, "events_connected")
        judged(
            found.of(engines.prefill[0], "events_connected"),
            Status.FAIL,
            "no engine has connected",
            '"endpoint"',
        )


async def test_a_port_that_another_process_has() -> None:
    async with case() as engines:
        taken = engines.decode[0].events_endpoint.rpartition(":")[2]
        engines.named[engines.prefill[0].address] = f"?events=tcp://*:{taken}"
        found = await engines.examine(patience=IMPATIENT)
        gravest(found, 1, "events_connected")
        judged(
            found.of(engines.prefill[0], "events_connected"), Status.WARN, "another process", "GET /doctor"
        )


async def test_another_engines_event_port() -> None:
    async with case([{}, {}]) as engines:
        mixed, other = engines.prefill
        engines.named[mixed.address] = f"?events={other.events_endpoint}&replay={other.replay_endpoint}"
        found = await engines.examine(patience=IMPATIENT)
        assert found.report.exit_code == 2
        judged(
            found.of(mixed, "probe_event"),
            Status.FAIL,
            "its blocks were not announced",
            "this engine's and not another's",
        )
        correction = f"correct ?events=: the engine itself says it publishes at {mixed.events_endpoint}"
        assert correction in (found.of(mixed, "probe_event").remedy or "")
        assert found.of(mixed, "cached_tokens").status is Status.SKIP


async def test_a_wrong_topic() -> None:
    async with case() as engines:
        prefill = engines.prefill[0]
        sources = f"events={prefill.events_endpoint}&replay={prefill.replay_endpoint}"
        engines.named[prefill.address] = f"?{sources}&topic=nothing"
        found = await engines.examine(patience=IMPATIENT)
        assert found.report.exit_code == 2
        judged(found.of(prefill, "probe_event"), Status.FAIL, "'nothing'", "&topic=")
        engines.named[prefill.address] = f"?{sources}&topic=kv-ev"
        gravest(await engines.examine(patience=IMPATIENT), 0)


async def test_replay_off() -> None:
    async with case([{"replay": None}]) as engines:
        found = await engines.examine()
        gravest(found, 1, "replay")
        judged(
            found.of(engines.prefill[0], "replay"), Status.WARN, "off", '"replay_endpoint": "tcp://*:5657"'
        )


async def test_a_wrong_replay_port() -> None:
    (nobody,) = free_ports(1)
    async with case() as engines:
        prefill = engines.prefill[0]
        engines.named[prefill.address] = f"?events={prefill.events_endpoint}&replay=tcp://127.0.0.1:{nobody}"
        found = await engines.examine(patience=IMPATIENT)
        gravest(found, 2, "replay")
        judged(found.of(prefill, "replay"), Status.FAIL, f"127.0.0.1:{nobody} does not answer", "&replay=")


@pytest.mark.parametrize("ahead", [0, 2])
async def test_another_engines_replay_port(ahead: int) -> None:
    """Its numbers are this one's by accident, or are not: what comes next does not follow what was
    replayed."""
    async with case([{}, {}]) as engines:
        mixed, other = engines.prefill
        await engines.examine(patience=IMPATIENT)  # both have published
        for _ in range(ahead):
            await engines.examine(patience=IMPATIENT)
        engines.named[mixed.address] = f"?events={mixed.events_endpoint}&replay={other.replay_endpoint}"
        found = await engines.examine(patience=IMPATIENT)
        assert found.report.exit_code == 2
        correction = f"correct &replay=: the engine itself says it replays at {mixed.replay_endpoint}"
        judged(found.of(mixed, "replay"), Status.FAIL, "is not what is published", correction)


async def test_prefix_caching_off() -> None:
    async with case([{"prefix_caching": False}], [{"prefix_caching": False}]) as engines:
        found = await engines.examine()
        gravest(found, 2, "prefix_caching")
        judged(
            found.of(engines.prefill[0], "prefix_caching"),
            Status.FAIL,
            "keeps nothing",
            "--no-enable-prefix-caching",
        )
        assert found.of(engines.decode[0], "prefix_caching").status is Status.WARN


async def test_a_tokenizer_other_than_the_engines(tmp_path: pathlib.Path) -> None:
    write_tiny_model(tmp_path, template="{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}")
    async with case() as engines:
        found = await engines.examine(tokenizer=str(tmp_path))
        gravest(found, 1, "tokenizer")
        step = found.of(engines.prefill[0], "tokenizer")
        judged(step, Status.WARN, "renders chat, ", "--chat-template")
        assert "(chat, token 0: " in step.words


@pytest.mark.parametrize("level", [0, 1])
async def test_an_engine_that_sleeps_is_told_and_left_alone(level: int) -> None:
    async with case([{}], [{}, {}]) as engines:
        sleeper, other = engines.decode
        await sleeper.ranks[0].sleep(level, "abort")
        found = await engines.examine()
        gravest(found, 1, "awake")
        judged(found.of(sleeper, "awake"), Status.WARN, "it sleeps", f"http://{sleeper.address}/wake_up")
        assert found.of(other, "awake").status is Status.PASS
        assert not [seen for seen in sleeper.seen if seen.path.startswith("/v1")]


async def test_releases_that_do_not_shake_hands() -> None:
    async with case([{"version": "0.33.0"}], [{"version": "0.32.0"}]) as engines:
        found = await engines.examine()
        [step] = [f for f in found.report.fleet if f.step == "nixl_versions"]
        judged(step, Status.FAIL, "NIXL metadata version 14", f"{engines.decode[0].address} to vLLM 0.33.0")


async def test_engines_with_other_chat_templates() -> None:
    async with case([{}, {"greeting": "<|turn|>system\nhi<|end|>\n"}]) as engines:
        found = await engines.examine()
        gravest(found, 2, "engines_agree")
        [step] = [f for f in found.report.fleet if f.step == "engines_agree"]
        judged(step, Status.FAIL, f"{engines.prefill[1].address} renders chat, ", "--chat-template")


async def test_an_engine_that_renders_otherwise_than_it_tells() -> None:
    def otherwise(checker: Checker, body: Mapping[str, Any]) -> Asked:
        messages = [{"role": "system", "content": "Be brief."}, *body["messages"]]
        return checker.chat({**body, "messages": messages})

    completions, chats, *_ = ROUTES
    async with case([{"routes": (completions, replace(chats, check=otherwise))}]) as engines:
        prefill = engines.prefill[0]
        found = await engines.examine(patience=IMPATIENT)
        assert found.report.exit_code == 2
        judged(
            found.of(prefill, "probe_event"),
            Status.FAIL,
            "than its own /tokenize tells",
            "--default-chat-template-kwargs",
        )


async def test_an_unknown_wire_format() -> None:
    async with case([{"event_form": EventForm(foreign=True)}]) as engines:
        found = await engines.examine(patience=IMPATIENT)
        assert found.report.exit_code == 2
        judged(found.of(engines.prefill[0], "wire_format"), Status.FAIL, "unknown type", "update kvproxy")


async def test_another_model() -> None:
    async with case([{"model": "other"}]) as engines:
        found = await engines.examine()
        gravest(found, 2, "model")
        judged(
            found.of(engines.prefill[0], "model"),
            Status.FAIL,
            "serves 'other', not 'tiny'",
            "--served-model-name tiny",
        )
        assert "does not serve" in found.pair(engines.prefill[0], engines.decode[0], "hand_over").words


async def test_a_block_size_nobody_can_match() -> None:
    large = {"block_size": 512, "blocks": 16, "max_model_len": 512}
    async with case([large], [large]) as engines:
        found = await engines.examine()
        gravest(found, 2, "block_size")
        judged(
            found.of(engines.prefill[0], "block_size"),
            Status.FAIL,
            "no prompt of at most 512",
            "--block-size",
        )


async def test_an_unreachable_engine() -> None:
    async with case() as engines:
        await engines.prefill[0].refuse()
        found = await engines.examine()
        gravest(found, 2, "reachable")
        judged(found.of(engines.prefill[0], "reachable"), Status.FAIL, "connection refused", "--port")
        assert found.pair(engines.prefill[0], engines.decode[0], "hand_over").status is Status.SKIP
        assert found.of(engines.decode[0], "cached_tokens").status is Status.PASS


async def test_a_frozen_engine() -> None:
    async with case() as engines:
        engines.decode[0].faults.add(Fault(kind="hang", path="/"))
        found = await engines.examine(patience=IMPATIENT)
        gravest(found, 2, "reachable")
        judged(found.of(engines.decode[0], "reachable"), Status.FAIL, "answers nothing", "restart")


async def test_an_engine_that_computes_nothing() -> None:
    async with case() as engines:
        engines.decode[0].faults.add(Fault(kind="hang", path="/v1/c"))
        found = await engines.examine(patience=msgspec.structs.replace(IMPATIENT, probe_s=3.0))
        gravest(found, 2, "probe_event")
        judged(
            found.of(engines.decode[0], "probe_event"),
            Status.FAIL,
            "was not answered",
            "num_requests_running",
        )


async def test_time_is_up() -> None:
    async with case() as engines:
        engines.decode[0].faults.add(Fault(kind="hang", path="/v1/c"))
        found = await engines.examine(limit_s=3.0)
        assert found.report.exit_code == 2
        judged(found.of(engines.decode[0], "time"), Status.FAIL, "within 3 s", "--timeout")


async def test_what_there_was_no_time_for_is_not_judged() -> None:
    (nobody,) = free_ports(1)
    async with case() as engines:
        prefill = engines.prefill[0]
        engines.named[prefill.address] = f"?events={prefill.events_endpoint}&replay=tcp://127.0.0.1:{nobody}"
        for limit_s in (0.2, 1.2):
            found = await engines.examine(limit_s=limit_s)
            assert found.report.exit_code == 2
            told = [
                f
                for f in found.report.instances[0].findings
                if f.step in {"events_connected", "replay", "probe_event"}
            ]
            assert Status.FAIL not in {finding.status for finding in told}, told


async def test_a_missing_api_key() -> None:
    async with case([{"api_key": "secret"}], [{"api_key": "secret"}]) as engines:
        found = await engines.examine()
        gravest(found, 2, "model")
        judged(found.of(engines.prefill[0], "model"), Status.FAIL, "401", "--engine-api-key-file")
        gravest(await engines.examine(engine_api_key="secret"), 0)


@pytest.mark.parametrize(("offset_s", "direction"), [(60.0, "ahead"), (-60.0, "behind")])
async def test_a_clock_off_by_a_minute(offset_s: float, direction: str) -> None:
    async with case([{"clock_offset_s": offset_s}]) as engines:
        found = await engines.examine()
        gravest(found, 1, "clock")
        judged(found.of(engines.prefill[0], "clock"), Status.WARN, f"s {direction}", "NTP")


async def test_cached_tokens_nobody_tells() -> None:
    quiet = {"prompt_tokens_details": False}
    async with case([quiet], [quiet]) as engines:
        found = await engines.examine()
        gravest(found, 1, "cached_tokens")
        assert "= reported" in found.of(engines.prefill[0], "cached_tokens").words  # in what it hands on
        judged(
            found.of(engines.decode[0], "cached_tokens"),
            Status.WARN,
            "does not tell",
            "--enable-prompt-tokens-details",
        )


# -- pairs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefill", "decode", "words", "remedy"),
    [
        ({"connector": False}, {}, "without kv_transfer_params", '"kv_role": "kv_producer"'),
        ({}, {"connector": False}, "asks no connector", '"kv_role": "kv_consumer"'),
    ],
)
async def test_an_engine_without_a_connector(
    prefill: dict[str, Any], decode: dict[str, Any], words: str, remedy: str
) -> None:
    async with case([prefill], [decode]) as engines:
        found = await engines.examine()
        assert found.report.exit_code == 2
        judged(found.pair(engines.prefill[0], engines.decode[0], "connector"), Status.FAIL, words, remedy)


async def test_engines_with_another_connector_than_kvproxy_was_told() -> None:
    async with case() as engines:
        found = await engines.examine(connector="shared")
        gravest(found, 2, "hand_over")
        step = found.pair(engines.prefill[0], engines.decode[0], "hand_over")
        judged(step, Status.FAIL, "finds nothing in a store they share", "--connector nixl")


async def test_other_block_sizes_are_not_tried_out() -> None:
    async with case([{"block_size": 32}], [{}]) as engines:
        found = await engines.examine()
        gravest(found, 2, "hand_over")
        step = found.pair(engines.prefill[0], engines.decode[0], "hand_over")
        judged(step, Status.FAIL, "32 in prefill, 16 in decode", "same --block-size")
        assert not any(engine.dead for engine in engines.all)


@pytest.mark.parametrize("recompute", [True, False])
async def test_a_side_channel_that_cannot_be_reached(recompute: bool) -> None:
    (nobody,) = free_ports(1)
    async with case([{"lease_s": 2.0}], [{"recompute": recompute}]) as engines:
        engines.prefill[0].model.address = ("127.0.0.1", nobody)
        found = await engines.examine()
        gravest(found, 2, "hand_over")
        step = found.pair(engines.prefill[0], engines.decode[0], "hand_over")
        words = "after a failed transfer" if recompute else "the decode leg failed: status 500"
        judged(step, Status.FAIL, words, "VLLM_NIXL_SIDE_CHANNEL_HOST")


async def test_a_decode_leg_that_is_refused_leaves_nothing_held() -> None:
    async with case() as engines:
        engines.decode[0].faults.add(Fault(kind="status", path="/v1/completions", status=500, times=1))
        found = await engines.examine()
        gravest(found, 2, "hand_over")
        await at_rest(engines)
        assert engines.prefill[0].model.holds.expired == 0


async def test_time_up_in_the_middle_of_a_hand_over_leaves_nothing_held() -> None:
    async with case() as engines:
        engines.decode[0].faults.add(Fault(kind="hang", path="/v1/completions", times=1))
        found = await engines.examine(limit_s=4.0)
        assert found.report.exit_code == 2
        assert "time" in f"{found.report.findings}"  # in probing already, on a machine that is very busy
        await at_rest(engines)
        assert engines.prefill[0].model.holds.expired == 0
