"""What engines take is learned from the legs that they serve, where the policy reads it; else nobody asks."""

import asyncio
import pathlib
import stat
from typing import Any

import msgspec
import pytest

from proxy.config import Config
from proxy.config.state import State
from proxy.edge.app_keys import SERVICE
from proxy.errors import ConfigError
from proxy.happenings import Happening, LegBegan, LegEnded
from proxy.latency.model import Fitted, LatencyModel
from proxy.latency.shown import LatencyShown
from proxy.phases import Phase
from proxy.scheduling.policies import POLICIES
from proxy.service import assemble
from proxy.snapshots.directory import StateDirectory
from tests.helpers.service import (
    UNHURRIED,
    Service,
    ask,
    engines,
    fleet,
    kvproxy,
    prose,
    wait_until,
)


class Hears:
    """Keeps what legs tell."""

    hears = (LegBegan, LegEnded)

    def __init__(self) -> None:
        self.told: list[Happening] = []

    def hear(self, happening: Happening) -> None:
        self.told.append(happening)

    @property
    def began(self) -> list[LegBegan]:
        return [each for each in self.told if isinstance(each, LegBegan)]

    @property
    def decoded(self) -> list[LegEnded]:
        return [each for each in self.told if isinstance(each, LegEnded) and each.phase is Phase.DECODE]


def model_of(service: Service) -> LatencyModel:
    model = service.app[SERVICE].latency
    assert model is not None
    return model


def fitted(service: Service) -> dict[tuple[str, str], Fitted]:
    return {(each.kind, each.role): each for each in model_of(service).fitted()}


async def stream(service: Service, seed: int, **members: Any) -> None:
    answer = await service.complete(prose(30 + seed % 7 * 20, seed), stream=True, max_tokens=24, **members)
    assert answer.status == 200
    assert answer.events[-1] == "[DONE]"


async def test_prefill_transfers_and_steps_are_learned_from_streams() -> None:
    heard = Hears()
    async with fleet(
        1, 1, policy=POLICIES["least_ms"](), bypass_tokens=0, consumers=[heard], stand_in=UNHURRIED
    ) as pair:
        for seed in range(12):
            await stream(pair.service, seed)
        await pair.service.settled()
        found = fitted(pair.service)
        assert {*found} == {("prefill", "prefill"), ("step", "decode"), ("transfer", "decode")}
        prefill, decode = pair.engines.prefill[0].address, pair.engines.decode[0].address
        assert model_of(pair.service).handshake_ms(prefill, decode) == 0
    assert all(each.pulled_from == prefill for each in heard.began)
    counted = [each.generated for each in heard.decoded if each.generated is not None]
    assert counted
    assert all(0 < tokens <= 24 for tokens in counted)  # those that came with the first are not told apart
    for began, ended in zip(heard.began, heard.decoded, strict=True):
        assert began.at == ended.first_token_at
        assert began.began_at < began.at < ended.ended_at


async def test_an_instance_that_does_both_teaches_prefill_and_steps() -> None:
    async with fleet(0, 0, 1, policy=POLICIES["least_ms"](), stand_in=UNHURRIED) as one:
        await asyncio.gather(*(stream(one.service, seed) for seed in range(12)))
        await stream(one.service, 12)  # those that were computed in one step are told with what follows
        await one.service.settled()
        assert {*fitted(one.service)} == {("prefill", "both"), ("step", "both")}


async def test_unary_answers_teach_no_steps() -> None:
    async with fleet(1, 1, policy=POLICIES["least_ms"](), bypass_tokens=0) as pair:
        for seed in range(12):
            await pair.service.complete(prose(40, seed))
        await pair.service.settled()
        assert {*fitted(pair.service)} == {("prefill", "prefill")}


async def test_engines_are_asked_what_runs_there_and_what_is_not_ours_is_told_apart() -> None:
    async with fleet(0, 0, 1, policy=POLICIES["least_ms"](), stand_in=UNHURRIED, scrape_s=0.05) as one:
        (instance,) = one.service.fleet
        await wait_until(lambda: instance.gauges is not None, "an answer")
        async with asyncio.TaskGroup() as group:
            group.create_task(one.service.complete(prose(40), max_tokens=100))
            await wait_until(lambda: instance.gauges is not None and instance.gauges.requests == 1)
            assert instance.gauges is not None
            assert (instance.gauges.own, instance.gauges.foreign) == (1, 0)
            assert instance.gauges.kv_use > 0
        async with asyncio.TaskGroup() as group:  # an engine counts each answer to each prompt
            prompts = [prose(40, 1), prose(40, 2)]
            group.create_task(one.service.complete(prompts, n=2, temperature=1, max_tokens=100))
            await wait_until(lambda: instance.gauges is not None and instance.gauges.requests == 4)
            assert (instance.gauges.own, instance.gauges.foreign) == (4, 0)
        theirs = {"model": "tiny", "prompt": prose(40), "max_tokens": 100}
        url = f"http://{instance.address}"
        async with asyncio.TaskGroup() as group:
            group.create_task(ask(one.service.session, url, "/v1/completions", theirs))
            await wait_until(lambda: instance.gauges is not None and instance.gauges.foreign == 1)
        await wait_until(lambda: instance.gauges is not None and instance.gauges.requests == 0)


@pytest.mark.parametrize(("policy", "scrape_s"), [("round_robin", 1.0), ("least_ms", 0.0)])
async def test_nobody_asks_what_nobody_reads(policy: str, scrape_s: float) -> None:
    heard = Hears()
    async with fleet(
        1, 1, policy=POLICIES[policy](), bypass_tokens=0, scrape_s=scrape_s, consumers=[heard]
    ) as pair:
        service = pair.service.app[SERVICE]
        assert service.scrapes is None
        assert (service.latency is None) is (policy == "round_robin")
        await stream(pair.service, 1)
        await pair.service.settled()
    assert bool(heard.began) is (policy == "least_ms")
    (decoded,) = heard.decoded
    assert (decoded.first_token_at is not None) is (policy == "least_ms")


async def test_another_process_at_an_address_has_to_shake_hands_again() -> None:
    async with fleet(
        1, 1, policy=POLICIES["least_ms"](), bypass_tokens=0, latency_profile="tiny-cpu"
    ) as pair:
        await stream(pair.service, 1)
        await pair.service.settled()
        prefill, decode = (pair.engines.prefill[0].address, pair.engines.decode[0].address)
        model = model_of(pair.service)
        assert model.handshake_ms(prefill, decode) == 0
        await pair.engines.decode[0].stop()
        await wait_until(lambda: model.handshake_ms(prefill, decode) > 0, "the news of its end")


async def test_what_was_learned_is_shown_and_kept_for_the_next_process(tmp_path: pathlib.Path) -> None:
    async with engines(1, 1) as made:
        config = made.config(state=State(state_dir=tmp_path / "state"), bypass_tokens=0)
        async with kvproxy(config, POLICIES["least_ms"]()) as service:
            for seed in range(12):
                await stream(service, seed)
            await service.settled()
            before = await shown(service)
            assert before.restored is False
            prefill = next(each for each in before.fitted if each.kind == "prefill")
            assert prefill.observations >= 10
            assert prefill.error_p50 is not None
            assert {*prefill.coefficients} == {"a", "b", "c", "overhead"}
            assert {*prefill.factors} == {made.prefill[0].address}
            assert await service.metric(
                "kvproxy_latency_observations_total", kind="prefill", role="prefill"
            ) == pytest.approx(prefill.observations)
            assert (
                await service.metric(
                    "kvproxy_latency_coefficient_ms", kind="step", role="decode", coefficient="s0"
                )
                > 0
            )
            assert await service.metric("kvproxy_latency_factor", kind="prefill") > 0
        file = tmp_path / "state" / "learned.tiny.json"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        async with kvproxy(config, POLICIES["least_ms"]()) as service:
            after = await shown(service)
            assert after.restored is True
            for now, then in zip(after.fitted, before.fitted, strict=True):
                assert (now.kind, now.observations) == (then.kind, then.observations)
                assert now.coefficients == pytest.approx(then.coefficients)
        another = assemble(msgspec.structs.replace(config, model="another", policy="least_ms"))
        assert another.learned is not None
        assert not another.learned.restored
        assert another.directory is not None
        another.directory.close()
        for damage in (b"", b"{", b'{"version": 1}', b"[" * 100_000, file.read_bytes()[:-10]):
            file.write_bytes(damage)
            async with kvproxy(config, POLICIES["least_ms"]()) as service:
                anew = await shown(service)
                assert (anew.restored, anew.fitted) == (False, [])
        assert [*file.parent.glob("learned.tiny.json.broken-*")]


async def test_a_policy_that_reads_no_latency_shows_and_keeps_none(tmp_path: pathlib.Path) -> None:
    async with fleet(
        1, 1, policy=POLICIES["round_robin"](), state=State(state_dir=tmp_path / "state")
    ) as pair:
        assert (await pair.service.ask("/status")).json["latency"] is None
        assert b"kvproxy_latency" not in (await pair.service.ask("/metrics")).body
    assert not [*(tmp_path / "state").glob("learned.*")]


async def test_a_disk_that_takes_nothing_more_stops_no_request(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(StateDirectory, "write_learned", full)
    state = State(state_dir=tmp_path / "state", state_interval_s=0.05)
    async with fleet(1, 1, policy=POLICIES["least_ms"](), bypass_tokens=0, state=state) as pair:
        for seed in range(4):
            await stream(pair.service, seed)
        words = "what was learned of the engines' speed cannot be written: No space left on device"
        await wait_until(lambda: words in caplog.messages)
        await stream(pair.service, 5)
    assert caplog.messages.count(words) == 1


async def test_a_profile_that_is_none_is_told_at_the_start(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "engine.toml"
    file.write_text('source = "here"\na = -1.0\n')
    for profile, words in (("fast", "give one of unknown"), (str(file), "is no profile")):
        with pytest.raises(ConfigError, match=f"--latency-profile.*{words}"):
            assemble(Config(model="tiny", latency_profile=profile, policy="least_ms"))


async def shown(service: Service) -> LatencyShown:
    answer = await service.ask("/status")
    found = msgspec.convert(answer.json["latency"], LatencyShown)
    assert found is not None
    return found
