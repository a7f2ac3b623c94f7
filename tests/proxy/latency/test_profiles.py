"""A profile is what is believed at first: of the stand-in, what the stand-in takes."""

import pathlib

import pytest

from proxy.errors import ConfigError
from proxy.latency.model import LatencyModel
from proxy.latency.profiles import (
    PROFILES,
    UNKNOWN,
    EngineSize,
    Profile,
    ProfileFile,
    load_profile,
    read_profile,
    written,
)
from proxy.simulation.engine import latency as stand_in


@pytest.mark.parametrize("name", PROFILES)
def test_each_has_a_source(name: str) -> None:
    assert len(PROFILES[name].source) > 40


def test_the_stand_in_is_predicted_as_it_is() -> None:
    model = LatencyModel(PROFILES["tiny-cpu"])
    truth = stand_in.PROFILES["tiny-cpu"]
    assert model.prefill_ms("a", 700, 2000) == pytest.approx(truth.step_s([(700, 2000)], 0, 0, 0) * 1000)
    assert model.step_ms("a", 7, 2000) == pytest.approx(truth.step_s([], 7, 2000, 0) * 1000)
    assert model.transfer_ms("a", "b", 500) == pytest.approx(truth.transfer_s(500, first=False) * 1000)
    assert model.handshake_ms("a", "b") == pytest.approx(
        (truth.transfer_s(500, first=True) - truth.transfer_s(500, first=False)) * 1000
    )


def test_the_replay_is_predicted_as_it_is() -> None:
    """Prefill to the digit, for prompts that have nothing cached; decode steps by a straight line."""
    model = LatencyModel(PROFILES["dynamo-replay"])
    truth = stand_in.PROFILES["dynamo-replay"]
    for tokens in (1, 512, 8192):
        assert model.prefill_ms("a", tokens, tokens) == pytest.approx(
            truth.step_s([(tokens, tokens)], 0, 0, 0) * 1000
        )
    for usage in (0.1, 0.3, 0.5, 0.7, 0.9):
        tokens = round(usage * 1048576)
        assert model.step_ms("a", 8, tokens) == pytest.approx(
            truth.step_s([], 8, tokens, usage) * 1000, rel=0.25
        )


def test_of_an_unknown_engine_waiting_tokens_and_cached_tokens_decide() -> None:
    """As least load with affinity: a token costs the same in whatever prompt, and no pair is shunned."""
    model = LatencyModel(PROFILES[UNKNOWN])
    fixed = model.prefill_ms("a", 0, 0)
    each = model.prefill_ms("a", 1, 1) - fixed
    for uncached, prompt in ((100, 100), (100, 90_000), (8000, 90_000)):
        assert model.prefill_ms("a", uncached, prompt) - fixed == pytest.approx(each * uncached)
    assert model.handshake_ms("a", "b") == 0
    assert model.transfer_ms("a", "b", 8000) < model.prefill_ms("a", 8000, 8000) / 10


@pytest.mark.parametrize(
    "figure", [{"b": 0.0}, {"s0": 0.0}, {"a": -1.0}, {"c": float("nan")}, {"chunk_tokens": 0}]
)
def test_a_profile_that_predicts_nothing_is_refused(figure: dict[str, float]) -> None:
    figures = {"a": 1.0, "b": 1.0, "c": 0.0, "transfer": 1.0, "transfer_per_token": 0.0, "handshake": 0.0}
    with pytest.raises(ValueError, match=r"coefficient|needs"):
        Profile(source="a test", s1=0.0, s2=0.0, **{"s0": 1.0} | figures | figure)  # type: ignore[arg-type]  # one is an int


def a_file() -> ProfileFile:
    return ProfileFile(
        source='said "so" on 2026-11-30: vLLM 0.32.0, a\\b, \x7f, \u00e4',
        a=12.5, b=0.0152, c=4.2e-07, overhead=3.0, chunk_tokens=2048, transfer=1.0,
        transfer_per_token=1e-03, handshake=150.0, s0=5.0, s1=0.2, s2=2.7e-05,
        engine=EngineSize(block_size=16, blocks=5000, max_sequences=64),
    )  # fmt: skip


def test_a_profile_is_read_as_it_was_written(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "profile.toml"
    path.write_text(written(a_file()), encoding="utf-8")
    assert load_profile(str(path)) == read_profile(path, "--profile", ()) == a_file()


def test_a_profile_has_a_name_or_a_file() -> None:
    assert load_profile("tiny-cpu") is PROFILES["tiny-cpu"]
    with pytest.raises(ConfigError, match=r"--latency-profile 'fast' is not known: give one of unknown, "):
        load_profile("fast")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("b = 0.0152", "b = 0.0"), "is no profile: a profile needs b, s0"),
        (("b = 0.0152", "b = 'much'"), r"is no profile: Expected `float`, got `str` - at `\$.b`"),
        (("b = 0.0152\n", ""), "is no profile: .*missing required field `b`"),
        (("b = 0.0152", "b = 0.0152\nbb = 1"), "is no profile: .*unknown field `bb`"),
        (("blocks = 5000", "blocks = 0"), "is no profile: block_size, blocks and max_sequences"),
        (("blocks = 5000", "blocks = "), "is not TOML: "),
    ],
)
def test_a_file_that_is_no_profile_is_refused(
    change: tuple[str, str], said: str, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "profile.toml"
    path.write_text(written(a_file()).replace(*change), encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        read_profile(path, "--profile", ())


def test_a_folder_is_no_profile(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match=r"--profile .*: Is a directory"):
        read_profile(tmp_path, "--profile", ())


def test_an_engine_of_a_profile_takes_what_is_believed_of_it() -> None:
    profile, model = a_file(), LatencyModel(a_file())
    engine = stand_in.Linear.of(profile)
    assert 1000 * engine.step_s([(700, 2000)], 0, 0, 0) == pytest.approx(model.prefill_ms("a", 700, 2000))
    assert 1000 * engine.step_s([], 7, 2000, 0) == pytest.approx(model.step_ms("a", 7, 2000))
    assert 1000 * engine.transfer_s(500, first=False) == pytest.approx(model.transfer_ms("a", "b", 500))
    assert 1000 * engine.transfer_s(0, first=True) == pytest.approx(model.handshake_ms("a", "b"))


def test_the_page_shows_a_profile_that_can_be_read(tmp_path: pathlib.Path) -> None:
    page = (pathlib.Path(__file__).parents[3] / "docs" / "latency.md").read_text(encoding="utf-8")
    path = tmp_path / "profile.toml"
    path.write_text(page.split("```toml\n")[1].split("```")[0], encoding="utf-8")
    assert read_profile(path, "--profile", ()).engine == EngineSize(
        block_size=16, blocks=5000, max_sequences=256
    )
