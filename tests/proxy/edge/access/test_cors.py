"""Browsers get the CORS headers that vLLM's framework would send, on clients' paths and on no others."""

import json
import pathlib
from typing import Any

import pytest
from multidict import CIMultiDict

from proxy.cli.flags.reading import read_config
from proxy.config import Cors
from proxy.config.cors import read_words
from proxy.edge.access.cors import EXPOSED, METHOD, ORIGIN, CorsRules, is_preflight
from proxy.errors import ConfigError

APP = "https://app.example"
RECORDED = json.loads((pathlib.Path(__file__).parent / "data" / "cors_1_10.json").read_text("utf-8"))


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda r: " ".join(map(str, r["settings"].values())))
def test_answers_are_those_of_starlette(recorded: dict[str, Any]) -> None:
    rules = CorsRules(Cors(**recorded["settings"]))
    for method, headers, vary, expected in recorded["cases"]:
        asked = CIMultiDict(headers)
        if is_preflight(method, asked):
            said = rules.preflight(asked)
            status, text, told = said.status, said.text, lower(said.headers)
        else:
            told = lower(rules.simple(asked.get(ORIGIN), vary))
            exposed = told.pop("access-control-expose-headers", None)
            assert exposed == (", ".join(EXPOSED) if ORIGIN in asked else None)
            status, text = 204, ""
        assert {"status": status, "text": text, "headers": told} == expected, (method, headers)


def lower(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def test_bytes_that_are_no_text_are_never_repeated() -> None:
    rules = CorsRules(Cors(allowed_origins=["*"], allow_credentials=True))
    for odd in ("https://\udcff", "https://caf\u00e9.example", "x" * 5000):
        assert "Access-Control-Allow-Origin" not in rules.simple(odd)
        asked = {ORIGIN: APP, METHOD: "POST", "Access-Control-Request-Headers": odd}
        said = rules.preflight(asked)
        assert (said.status, "Access-Control-Allow-Headers" in said.headers) == (400, False)


def test_an_answer_varies_by_origin_once() -> None:
    rules = CorsRules(Cors(allowed_origins=[APP]))
    assert rules.simple(None, "Accept-Encoding, origin")["Vary"] == "Accept-Encoding, origin"


FLAGS = ["serve", "-m", "tiny", "--both", "h:1"]


# -- the settings -------------------------------------------------------------------------------------------


def test_lists_are_words_or_json_as_vllm_takes_them() -> None:
    config = read_config(
        [*FLAGS, "--allowed-origins", APP, '["https://b.example", "null"]', "--allow-credentials"]
    )
    assert config.cors.allowed_origins == (APP, "https://b.example", "null")
    assert (config.cors.allow_credentials, config.cors.allowed_methods) == (True, ("*",))
    config = read_config(
        [*FLAGS, "--allowed-origins", '["*"]', "--allowed-methods", '["GET"]', "--allowed-headers", "a", "b"]
    )
    assert config.cors == Cors(allowed_origins=("*",), allowed_methods=("GET",), allowed_headers=("a", "b"))
    assert read_config(FLAGS).cors == Cors() == Cors(allowed_origins=())  # vLLM's default: none
    assert read_words("--x", ['"*"']) == ("*",)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--allowed-origins", "https://app.example/"], "without a path"),
        (["--allowed-origins", "app.example"], "not an origin"),
        (["--allowed-origins", "https://*.app.example"], "not an origin"),
        (["--allowed-origins", "HTTPS://app.example"], "not an origin"),
        (["--allowed-origins", "https://App.example"], "in small letters"),
        (["--allowed-origins", "https://b.example:443"], "write https://b.example, without"),
        (["--allowed-origins", "http://[::1]:80"], "write http://[::1], without"),
        (["--allowed-origins", "http://b.example:"], "write http://b.example, without"),
        (["--allowed-origins", "https://a.example,https://b.example"], "not an origin"),
        (["--allowed-origins", '["*"'], "JSON list"),
        (["--allowed-origins", "[1]"], "JSON list"),
        (["--allowed-origins", "*", "--allowed-methods", "GET POST"], "not the name of a method"),
        (["--allowed-origins", "*", "--allowed-headers", "a:b"], "not the name of a header"),
        (["--allow-credentials"], "--allowed-origins"),
    ],
)
def test_origins_that_would_never_match_are_refused(flags: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=r".") as raised:
        read_config([*FLAGS, *flags])
    assert words in str(raised.value)


@pytest.mark.parametrize(
    "origin",
    [
        "https://b.example:8443",
        "https://b.example:80",
        "http://b.example:443",
        "http://[::1]",
        "app://-",
        "null",
    ],
)
def test_origins_that_browsers_send_are_taken(origin: str) -> None:
    assert read_config([*FLAGS, "--allowed-origins", origin]).cors.allowed_origins == (origin,)
