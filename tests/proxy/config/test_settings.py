"""Flag, environment and file set the same settings, in this order of precedence, and an error names the place
where a wrong value was set.
"""

import pathlib
import re
import tomllib
from typing import Any

import pytest

from proxy.cli import reference
from proxy.cli.flags import read_arguments, read_config
from proxy.cli.flags.commands import SETTINGS
from proxy.cli.main import main
from proxy.config import Config, WhenNoPrefill
from proxy.config.settings import Declared, check
from proxy.errors import ConfigError
from proxy.phases import Role
from proxy.scheduling.policies import POLICIES
from proxy.simulation.replay.run import Setup

ROOT = pathlib.Path(__file__).resolve().parents[3]
PAIR = ["serve", "-m", "tiny", "-p", "a:1", "-d", "b:1"]
FILE = """\
model = "llama"
prefill = ["p:1", "p:2"]
decode = "d:1"
queue-timeout = 10
port = 8001
when-no-prefill = "decode"
kv-events = "off"
decision-headers = true
tier-cost = {CPU = 0.3}
state-dir = "/somewhere"
"""


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "kvproxy.toml"
    path.write_text(FILE)
    return path


def test_a_file_alone_is_enough(file: pathlib.Path) -> None:
    config = read_config(["serve", "--config", str(file)])
    assert config.model == "llama"
    assert [(spec.address, spec.role) for spec in config.instances] == [
        ("p:1", Role.PREFILL),
        ("p:2", Role.PREFILL),
        ("d:1", Role.DECODE),
    ]
    assert (config.port, config.admission.queue_timeout_s) == (8001, 10.0)
    assert config.admission.when_no_prefill is WhenNoPrefill.DECODE
    assert (config.kv_events, config.decision_headers) == (False, True)
    assert config.tier_costs == {"CPU": 0.3}
    assert config.state.state_dir == pathlib.Path("/somewhere")


def test_flags_win_over_the_environment_and_that_over_the_file(
    file: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVPROXY_CONFIG", str(file))
    assert read_config(["serve"]).admission.queue_timeout_s == 10
    monkeypatch.setenv("KVPROXY_QUEUE_TIMEOUT", "20")
    assert read_config(["serve"]).admission.queue_timeout_s == 20
    assert read_config(["serve", "--queue-timeout", "40"]).admission.queue_timeout_s == 40
    monkeypatch.setenv("KVPROXY_QUEUE_TIMEOUT", " ")
    assert read_config(["serve"]).admission.queue_timeout_s == 10
    monkeypatch.delenv("KVPROXY_CONFIG")
    assert read_config(PAIR).admission.queue_timeout_s == Config(model="x").admission.queue_timeout_s


@pytest.mark.parametrize(
    ("said", "tokens"), [('"auto"', None), ('"off"', 0), ("0", 0), ("4096", 4096), ('"4096"', 4096)]
)
def test_a_number_may_also_be_a_word(
    said: str, tokens: int | None, file: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    word = said.strip('"')
    assert read_config([*PAIR, "--bypass", word]).bypass_tokens == tokens
    file.write_text(f"{FILE}bypass = {said}\n")
    assert read_config(["serve", "--config", str(file)]).bypass_tokens == tokens
    monkeypatch.setenv("KVPROXY_BYPASS", word)
    assert read_config([*PAIR]).bypass_tokens == tokens


def test_engines_of_one_role_are_replaced_and_those_of_others_stay(file: pathlib.Path) -> None:
    config = read_config(["serve", "--config", str(file), "-p", "other:1"])
    assert [spec.address for spec in config.instances] == ["other:1", "d:1"]


def test_what_a_file_switches_on_a_flag_switches_off(file: pathlib.Path) -> None:
    words = ["serve", "--config", str(file), "--no-decision-headers", "--kv-events", "auto"]
    config = read_config(words)
    assert (config.decision_headers, config.kv_events) == (False, True)


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [
        ("KVPROXY_PREFILL", "x:1 [::1]:2", lambda c: [s.address for s in c.instances if s.role == "prefill"]),
        ("KVPROXY_DECISION_HEADERS", "Yes", lambda c: c.decision_headers),
        ("KVPROXY_KV_EVENTS", "off", lambda c: c.kv_events),
        ("KVPROXY_MAX_QUEUE", "7", lambda c: c.admission.max_queue),
        ("KVPROXY_MAX_CLIENT_PRIORITY", "-3", lambda c: c.admission.max_client_priority),
        ("KVPROXY_STATE_DIR", "/x", lambda c: c.state.state_dir),
        ("KVPROXY_ALLOWED_ORIGINS", '["https://a.example", "null"]', lambda c: list(c.cors.allowed_origins)),
        ("KVPROXY_TIER_COST", "CPU=0.1 X=1", lambda c: dict(c.tier_costs)),
        ("KVPROXY_LOG_LEVEL", "debug", lambda c: c.log_level),
    ],
)
def test_the_environment_tells_every_kind_of_value(
    name: str, text: str, read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {
        "KVPROXY_PREFILL": ["x:1", "[::1]:2"],
        "KVPROXY_DECISION_HEADERS": True,
        "KVPROXY_KV_EVENTS": False,
        "KVPROXY_MAX_QUEUE": 7,
        "KVPROXY_MAX_CLIENT_PRIORITY": -3,
        "KVPROXY_STATE_DIR": pathlib.Path("/x"),
        "KVPROXY_ALLOWED_ORIGINS": ["https://a.example", "null"],
        "KVPROXY_TIER_COST": {"CPU": 0.1, "X": 1},
        "KVPROXY_LOG_LEVEL": "debug",
    }
    monkeypatch.setenv(name, text)
    assert read(read_config(["serve", "-m", "tiny", "-d", "d:1", "--both", "h:1"])) == expected[name]


@pytest.mark.parametrize(("name", "field"), [("KVPROXY_PORT", "port"), ("KVPROXY_ADMIN_PORT", "admin_port")])
def test_what_kubernetes_says_of_a_service_of_this_name_is_no_port(
    name: str, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "tcp://10.0.0.1:8000")
    config = read_config(PAIR)
    assert (config.port, config.security.admin_port) == (8000, None)
    monkeypatch.setenv(name, "8123")
    config = read_config(PAIR)
    assert 8123 in {config.port, config.security.admin_port}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("KVPROXY_QUEUE_TIMEOT", ": is KVPROXY_QUEUE_TIMEOUT meant?"),
        ("KVPROXY_CONFIGS", ": is KVPROXY_CONFIG meant?"),
        ("KVPROXY_ADMIN_API_KEY", ": is ADMIN_API_KEY meant?"),
        ("KVPROXY_PORTS", ": is KVPROXY_PORT meant?"),
        ("KVPROXY_FLAVOUR_OF_THE_DAY", ""),
    ],
)
def test_a_misspelt_name_is_told_of_with_the_closest_setting_and_without_its_value(
    name: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "hush")
    assert read_arguments(PAIR).doubts == [
        f"{name} in the environment is no setting, and is not looked at{meant}"
    ]


def test_a_missing_setting_is_told_of_with_what_its_name_may_have_been(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KVPROXY_MODLE", "tiny")
    with pytest.raises(SystemExit):
        read_arguments(["serve", "-p", "a:1", "-d", "b:1"])
    assert "required: -m/--model; KVPROXY_MODLE in the environment" in capsys.readouterr().err


KUBERNETES = """\
KVPROXY_PORT=tcp://10.0.0.1:8000
KVPROXY_PORT_8000_TCP=tcp://10.0.0.1:8000
KVPROXY_PORT_8000_TCP_ADDR=10.0.0.1
KVPROXY_PORT_8000_TCP_PORT=8000
KVPROXY_PORT_8000_TCP_PROTO=tcp
KVPROXY_SERVICE_HOST=10.0.0.1
KVPROXY_SERVICE_PORT=8000
KVPROXY_SERVICE_PORT_HTTP=8000
KVPROXY_ADMIN_PORT=tcp://10.0.0.2:9000
KVPROXY_ADMIN_PORT_9000_TCP_PORT=9000
KVPROXY_ADMIN_SERVICE_HOST=10.0.0.2
KVPROXY_DECODE_PORT=udp://10.0.0.3:1
"""


def test_what_kubernetes_says_of_services_breaks_nothing_and_is_not_told_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for line in KUBERNETES.splitlines():
        monkeypatch.setenv(*line.split("="))
    arguments = read_arguments(PAIR)
    assert (arguments.config.port, arguments.config.security.admin_port) == (8000, None)
    assert arguments.doubts == []


def test_settings_and_what_scripts_are_told_are_not_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KVPROXY_QUEUE_TIMEOUT", "KVPROXY_VLLM_ENV", "KVPROXY_PYTHON"):
        monkeypatch.setenv(name, "3")
    assert read_arguments(PAIR).doubts == []


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("queue-timeout = 0", "--queue-timeout must be more than 0 seconds (set by queue-timeout in {file})"),
        ('queue-timeout = "30"', "--queue-timeout: '30' is not a number of seconds (set by queue-timeout in"),
        ("max-queue = 1.5", "--max-queue: 1.5 is not a whole number"),
        ("max-queue = true", "--max-queue: True is not a whole number"),
        ("bypass = true", "--bypass: True is not auto, off or a whole number"),
        ('bypass = "on"', "--bypass: 'on' is not auto, off or a whole number"),
        ("bypass = -1", "--bypass must be at least 0, not -1"),
        ("decision-headers = 1", "--decision-headers: 1 is not true or false"),
        ("model = 3", "--model: 3 is not text"),
        ("prefill = [1]", "--prefill: [1] is no list of texts"),
        ('prefill = ["nonsense"]', "--prefill 'nonsense': write HOST:PORT"),
        ('connector = "magic"', "--connector: 'magic' is none of nixl, shared (set by connector in {file})"),
        ('when-no-prefill = "hope"', "--when-no-prefill: 'hope' is none of wait, decode, fail"),
        ("tier-cost = {GPU = 0.5}", "--tier-cost 'GPU=0.5': engines compute from GPU"),
        ('tls-cert = "/x"', "--tls-cert and --tls-key are given together or not at all (set by tls-cert in"),
        (
            "queue_timeout = 30",
            "--config {file}: there is no setting 'queue_timeout': is queue-timeout meant?",
        ),
        ("[overload]\nmax-queue = 3", "there is no setting 'overload': settings stand in no table"),
        ("admin-api-key = 'x'", "there is no setting 'admin-api-key'"),
        ("= 3", "--config {file} is not TOML"),
        (f"max-queue = 1{'0' * 400}", "--max-queue: the number is too large (set by max-queue in {file})"),
        (f"queue-timeout = 0x{'f' * 6000}", "--queue-timeout: the number is too large"),
        (f"max-queue = 1{'0' * 5000}", "--config {file} is not TOML"),
        (f"max-queue = {'[' * 5000}", "--config {file} is not TOML"),
    ],
)
def test_an_error_says_where_in_a_file_it_is(
    said: str, words: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "kvproxy.toml"
    file.write_text(said)
    flags = ["-m", "x"] if "model" not in said else []
    flags += ["-p", "a:1"] if "prefill =" not in said else []
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--config", str(file), *flags, "-d", "b:1"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words.format(file=file) in line


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("KVPROXY_QUEUE_TIMEOUT", "soon", "--queue-timeout: 'soon' is not a number of seconds"),
        ("KVPROXY_QUEUE_TIMEOUT", "-1", "--queue-timeout must be more than 0 seconds"),
        ("KVPROXY_RETRY_BUDGET", "2", "--retry-budget must be a share from 0 to 1, not 2"),
        ("KVPROXY_DECISION_HEADERS", "maybe", "--decision-headers: 'maybe' is neither true nor false"),
        ("KVPROXY_CONNECTOR", "magic", "--connector: 'magic' is none of nixl, shared"),
        ("KVPROXY_MAX_QUEUE", "1" + "0" * 400, "--max-queue: the number is too large"),
        ("KVPROXY_TIER_COST", "\udcff=x", "--tier-cost"),
        ("KVPROXY_POLICY", "best", "--policy"),
        ("KVPROXY_STATE_DIR", "/dev/null", "--state-dir /dev/null"),
        ("KVPROXY_ENGINE_API_KEY_FILE", "/nowhere", "--engine-api-key-file /nowhere: No such file"),
    ],
)
def test_an_error_names_the_environment_it_is_from(
    name: str, text: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(SystemExit) as ended:
        main(PAIR)
    assert ended.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kvproxy: ")]
    assert words in said[0]
    assert f"(set by {name})" in said[0]


def test_the_usual_policy_is_the_first_that_is_named_and_that_of_simulated_fleets() -> None:
    assert read_config(PAIR).policy == next(iter(POLICIES)) == Setup().policy == "least_ms"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [row] = [line for line in readme.splitlines() if line.startswith("| `--policy` |")]
    assert row.startswith("| `--policy` | `least_ms`, ")
    assert row.endswith("| `least_ms` |")


def test_a_file_that_is_not_there_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match=r"^--config .*none\.toml: No such file or directory$"):
        read_config([*PAIR, "--config", str(tmp_path / "none.toml")])


def test_the_doctor_reads_the_same_file_and_keeps_its_own_level(file: pathlib.Path) -> None:
    served, looked_at = (read_arguments([name, "--config", str(file)]).config for name in ("serve", "doctor"))
    assert looked_at.instances == served.instances
    assert (served.log_level, looked_at.log_level) == ("info", "error")


def test_a_model_is_still_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_config(["serve", "-p", "a:1", "-d", "b:1"])
    told = "kvproxy: the following arguments are required: -m/--model (see kvproxy serve --help)\n"
    assert capsys.readouterr().err == told


# -- the declarations ----------------------------------------------------------------------------------------


def test_no_two_settings_have_a_name_in_common() -> None:
    for names in (
        [declared.key for declared in SETTINGS if declared.key],
        [declared.environment for declared in SETTINGS],
        [declared.setting.short for declared in SETTINGS if declared.setting.short],
    ):
        assert len(names) == len(set(names))


@pytest.mark.parametrize("declared", SETTINGS, ids=lambda declared: declared.name)
def test_every_setting_stands_under_a_heading_and_has_a_valid_default(declared: Declared) -> None:
    assert declared.group
    if declared.setting.flag != "--model" and declared.default is not None:
        check(declared.setting, declared.default)


@pytest.mark.parametrize(
    "declared", [declared for declared in SETTINGS if declared.kind in {int, float}], ids=lambda d: d.name
)
def test_every_number_has_limits(declared: Declared) -> None:
    setting = declared.setting
    limited = (setting.above, setting.least, setting.check) != (None, None, None)
    assert limited, f"{declared.name} may be anything"


# -- the reference -------------------------------------------------------------------------------------------


def test_the_reference_is_what_is_declared(tmp_path: pathlib.Path) -> None:
    page = ROOT / "docs" / "settings.md"
    reference.main(["--check", str(page)])
    other = tmp_path / "settings.md"
    other.write_text(page.read_text(encoding="utf-8").replace("1024", "1025"), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"run python -m proxy\.cli\.reference"):
        reference.main(["--check", str(other)])
    reference.main([str(other)])
    assert other.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")


def test_the_routes_are_those_that_are_served() -> None:
    reference.main(["--check", str(ROOT / "docs" / "routes.md")])


def test_a_page_of_another_name_is_refused(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        reference.main([str(tmp_path / "flags.md")])
    assert "flags.md is none of settings.md, metrics.md, routes.md" in capsys.readouterr().err


def test_the_references_example_is_a_configuration(tmp_path: pathlib.Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "settings.md").read_text(), re.DOTALL)
    assert len(tomllib.loads(example)) > 4
    file = tmp_path / "kvproxy.toml"
    file.write_text(example)
    assert len(read_config(["serve", "--config", str(file)]).instances) == 4


@pytest.mark.parametrize(
    "link", sorted({link for d in SETTINGS for link in re.findall(r"\]\((\S+?)\)", d.setting.more)})
)
def test_the_references_links_lead_somewhere(link: str) -> None:
    name, _, anchor = link.partition("#")
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    headings = [
        re.sub(r"[^\w -]", "", h).lower().replace(" ", "-")
        for h in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    ]
    assert not anchor or anchor in headings


def test_readme_and_manual_name_no_flag_that_is_none() -> None:
    flags = {declared.setting.flag for declared in SETTINGS} | {"--config", "--json", "--timeout"}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [row.split("|")[1] for row in readme.splitlines() if row.startswith(("| `--", "| `-m", "| `-p"))]
    named = set(re.findall(r"`(?:-\w, )?(--[a-z-]+)`", " ".join(rows)))
    assert named, "the table of flags is gone"
    assert named <= flags
