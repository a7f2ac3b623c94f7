"""With --salt-by-client no client finds in a cache what another's prompts left there, and each still finds
its own.
"""

import logging
import pathlib
from collections import Counter
from typing import Any

import pytest

from proxy.config import Security, State
from proxy.connectors.nixl import REFUSED_MODEL
from proxy.edge.access.client_salts import read_own_salt
from proxy.edge.app_keys import SALTS
from proxy.errors import BadRequestError
from proxy.simulation.engine.latency import PROFILES
from proxy.simulation.live.faults import Fault
from tests.helpers.service import ADMIN_KEY, UNHURRIED, Answer, Engines, Service, engines, fleet, kvproxy

KEYS = "alice sk-alice\nalice sk-alice-2\nbob sk-bob\nann@team sk-ann\nben@team sk-ben\nteam sk-team\n"
SECRET = "a secret of this test, of 32 bytes and more"
PROMPT = list(range(100, 220))
CACHED = 112
"""The full blocks of PROMPT."""


@pytest.fixture
def key_file(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "keys"
    file.write_text(KEYS)
    file.chmod(0o600)
    return file


@pytest.fixture
def salted(key_file: pathlib.Path) -> Security:
    return Security(api_key_file=key_file, salt_by_client=True)


async def complete(service: Service, key: str, prompt: Any = PROMPT, **members: Any) -> Answer:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 4, "temperature": 0} | members
    answer = await service.ask("/v1/completions", body, Authorization=f"Bearer sk-{key}")
    await service.settled()
    return answer


COMPLETIONS = "/v1/completions"


def sent(made: Engines) -> list[str]:
    """The salts of all legs, in no order. What has blocks given back is refused by its model, and has no
    prompt."""
    bodies = [seen.json() for engine in made.all for seen in engine.seen if seen.path == COMPLETIONS]
    return [body["cache_salt"] for body in bodies if body["model"] != REFUSED_MODEL]


def told(answer: Answer) -> tuple[int, int]:
    """The cached tokens that were predicted and those that were reported."""
    assert answer.status == 200
    usage = answer.json["usage"]["prompt_tokens_details"]
    return int(answer.headers["X-Kvproxy-Cached-Tokens"]), int(usage["cached_tokens"] if usage else 0)


# ---- what clients can tell --------------------------------------------------------------------------------


async def test_without_salts_a_right_guess_is_told_from_a_wrong_one(key_file: pathlib.Path) -> None:
    security = Security(api_key_file=key_file)
    async with fleet(1, 1, stand_in=UNHURRIED, security=security, decision_headers=True) as pair:
        assert told(await complete(pair.service, "alice")) == (0, 0)
        assert told(await complete(pair.service, "bob")) == (CACHED, CACHED)


async def test_no_client_learns_what_another_asked_and_each_finds_its_own(
    salted: Security,
) -> None:
    async with fleet(1, 1, stand_in=UNHURRIED, security=salted, decision_headers=True) as pair:
        for key in ("alice", "bob", "ann", "team"):
            assert told(await complete(pair.service, key)) == (0, 0)
        for key in (
            "alice",
            "alice-2",
            "bob",
            "ann",
            "ben",
            "team",
        ):  # a second key of the name, one of the group
            assert told(await complete(pair.service, key)) == (CACHED, CACHED)
        assert told(await complete(pair.service, "bob", cache_salt="s")) == (0, 0)
        assert told(await complete(pair.service, "alice", cache_salt="s")) == (0, 0)
        assert told(await complete(pair.service, "alice", cache_salt="s")) == (CACHED, CACHED)
        assert told(await complete(pair.service, "alice", cache_salt=None)) == (CACHED, CACHED)


async def test_a_client_that_sends_the_salt_of_another_finds_nothing(salted: Security) -> None:
    async with fleet(1, 1, stand_in=UNHURRIED, security=salted, decision_headers=True) as pair:
        assert told(await complete(pair.service, "alice")) == (0, 0)
        (alices,) = set(sent(pair.engines))
        assert told(await complete(pair.service, "bob", cache_salt=alices)) == (0, 0)


@pytest.mark.parametrize(
    ("sizes", "prompt", "members", "legs"),
    [
        ((1, 1, 0), PROMPT, {}, 2),
        ((1, 1, 0), PROMPT, {"stream": True}, 2),
        ((1, 1, 0), "a text", {"cache_salt": "own"}, 2),
        ((1, 1, 0), ["a text", "another"], {}, 4),
        (
            (1, 1, 0),
            [PROMPT, PROMPT[1:]],
            {"cache_salt": "own", "n": 2, "temperature": 1},
            6,  # blocks are fetched once before several answers begin
        ),
        ((1, 1, 0), ["1", 2], {}, 1),
        ((1, 1, 0), "a text", {"use_beam_search": True, "n": 2}, 1),
        ((0, 0, 1), PROMPT, {}, 1),
        ((0, 0, 1), ["a text", "another"], {}, 1),
    ],
)
async def test_every_leg_carries_the_same_salt_and_never_the_clients(
    sizes: tuple[int, int, int], prompt: Any, members: dict[str, Any], legs: int, salted: Security
) -> None:
    async with fleet(*sizes, kv_events=False, security=salted) as pair:
        await complete(pair.service, "alice", prompt, **members)
        expected = pair.service.app[SALTS].of("alice", members.get("cache_salt"))
        assert Counter(sent(pair.engines)) == {expected: legs}


async def test_retries_carry_the_salt_too(salted: Security) -> None:
    async with fleet(2, 1, kv_events=False, security=salted) as pair:
        for engine in (pair.engines.prefill[0], pair.engines.decode[0]):
            engine.faults.add(Fault(kind="status", path=COMPLETIONS, times=1, status=500))
        for number in range(3):
            await complete(pair.service, "alice", [*PROMPT, number])
        assert len(sent(pair.engines)) > 6
        assert set(sent(pair.engines)) == {pair.service.app[SALTS].of("alice", None)}


EMPTY = "Parameter 'cache_salt' must be a non-empty string if provided. (parameter=cache_salt)"
UNFIT = (
    "Parameter 'cache_salt' must be at most 128 characters and must not contain '@', '/', '\\\\', or NUL."
    " (parameter=cache_salt)"
)


@pytest.mark.parametrize(
    ("salt", "message"),
    [
        *[(salt, EMPTY) for salt in ("", 5, False, ["s"], {"s": 1}, {"s": "x" * 4096})],
        *[(salt, UNFIT) for salt in ("a/b", "a@b", "a\\b", "a\0b", "x" * 129, "x" * 4096)],
    ],
)
async def test_a_salt_that_engines_refuse_gets_the_same_words_with_and_without_salts(
    salt: Any, message: str, salted: Security, key_file: pathlib.Path
) -> None:
    answers = []
    async with engines(1, 1) as made:
        for security in (salted, Security(api_key_file=key_file)):
            async with kvproxy(made.config(kv_events=False, security=security)) as service:
                answers.append(await complete(service, "alice", cache_salt=salt))
    error = {"message": message, "type": "BadRequestError", "param": "cache_salt", "code": 400}
    assert [(answer.status, answer.json) for answer in answers] == [(400, {"error": error})] * 2


async def test_an_answer_that_is_an_error_tells_nothing_of_caches(key_file: pathlib.Path) -> None:
    """It leaves nothing in the cache, so it could be asked again and again."""
    security = Security(api_key_file=key_file)
    async with fleet(1, 1, stand_in=UNHURRIED, security=security, decision_headers=True) as pair:
        assert told(await complete(pair.service, "alice")) == (0, 0)
        answer = await complete(pair.service, "bob", temperature=-1)
        assert answer.status == 400
        assert "X-Kvproxy-Prefill" in answer.headers
        assert "X-Kvproxy-Cached-Tokens" not in answer.headers


# ---- the secret, and what is asked of operators -----------------------------------------------------------


async def test_salts_outlive_a_restart_where_there_is_a_state_directory(
    salted: Security, tmp_path: pathlib.Path
) -> None:
    async with engines(1, 1, profile=PROFILES["tiny-cpu"]) as made:
        config = made.config(
            security=salted,
            decision_headers=True,
            state=State(state_dir=tmp_path / "state", state_interval_s=60),
        )
        async with kvproxy(config) as service:
            assert told(await complete(service, "alice")) == (0, 0)
        async with kvproxy(config) as service:
            assert told(await complete(service, "bob")) == (0, 0)
            assert told(await complete(service, "alice")) == (CACHED, CACHED)


async def test_replicas_with_one_secret_share_and_others_do_not(
    salted: Security, key_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    shared = Security(api_key_file=key_file, salt_by_client=True, salt_file=file)
    async with engines(1, 1, profile=PROFILES["tiny-cpu"]) as made:
        for security, cached in ((shared, 0), (shared, CACHED), (salted, 0), (salted, 0)):
            async with kvproxy(made.config(security=security, decision_headers=True)) as service:
                assert told(await complete(service, "alice")) == (cached, cached)


async def test_an_operator_explains_a_prompt_as_a_client_of_its_choice(salted: Security) -> None:
    async with fleet(1, 1, stand_in=UNHURRIED, security=salted, decision_headers=True) as pair:
        assert told(await complete(pair.service, "alice")) == (0, 0)
        assert told(await complete(pair.service, "ann", cache_salt="s")) == (0, 0)
        for client, own, cached in (
            ("alice", {}, CACHED),
            ("bob", {}, 0),
            ("ben", {"cache_salt": "s"}, CACHED),
            ("ben", {}, 0),
        ):
            answer = await pair.service.ask(
                f"/explain?client={client}", {"prompt": PROMPT} | own, X_API_Key=ADMIN_KEY
            )
            assert [c["cached_tokens"] for c in answer.json["prefill"]["candidates"]] == [cached]
        for query in ("", "?client=nobody", "?client=", "?client=sk-alice"):
            answer = await pair.service.ask(f"/explain{query}", {"prompt": PROMPT}, X_API_Key=ADMIN_KEY)
            assert (answer.status, answer.json["error"]["param"]) == (400, "client")


async def test_neither_salts_nor_their_secret_are_logged(
    key_file: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    file.chmod(0o600)
    security = Security(api_key_file=key_file, salt_by_client=True, salt_file=file)
    with caplog.at_level(logging.DEBUG):
        async with fleet(1, 1, kv_events=False, security=security) as pair:
            assert (await complete(pair.service, "alice", cache_salt="own words")).status == 200
            salt = pair.service.app[SALTS].of("alice", "own words")
            metrics = (await pair.service.ask("/metrics")).body.decode()
    for secret in (SECRET, salt, "own words"):
        assert secret not in caplog.text + metrics


@pytest.mark.parametrize("raw", [b'"\\q"', b'"a\nb"', b'"\\ud800"', b'"\\u12"', b'"\xff"'])
async def test_a_salt_that_is_no_string_is_refused(raw: bytes, salted: Security) -> None:
    async with fleet(1, 1, kv_events=False, security=salted) as pair:
        body = b'{"model": "tiny", "prompt": "x", "max_tokens": 1, "cache_salt": ' + raw + b"}"
        answer = await pair.service.ask("/v1/completions", body, Authorization="Bearer sk-alice")
        assert answer.status == 400
        assert not sent(pair.engines)
    with pytest.raises(BadRequestError, match="not valid JSON"):
        read_own_salt(raw)
