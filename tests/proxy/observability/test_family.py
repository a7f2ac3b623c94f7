"""A family's declaration is what `/metrics` and docs/metrics.md say of it."""

import pathlib
import re

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from kvevents import Reason
from proxy.caches.tallies import Cause, Outcome
from proxy.cli import reference
from proxy.cli.flags.commands import SETTINGS
from proxy.fleet.circuit import Circuit
from proxy.happenings import Checked, EventDropped
from proxy.observability.family import Family, counted, distribution, gauge
from proxy.observability.metrics import GROUPS
from proxy.observability.reference import line
from proxy.observability.series import counter, histogram
from proxy.serving.legs.leg import Reason as LegReason
from proxy.watching.checks import Finding

PAGE = pathlib.Path(__file__).parents[3] / "docs" / "metrics.md"


def test_the_page_is_what_is_declared(tmp_path: pathlib.Path) -> None:
    reference.main(["--check", str(PAGE)])
    other = tmp_path / "metrics.md"
    other.write_text(PAGE.read_text(encoding="utf-8").replace("| gauge |", "| counter |"), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"run python -m proxy\.cli\.reference"):
        reference.main(["--check", str(other)])
    reference.main([str(other)])
    assert other.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


def test_the_page_names_no_flag_that_is_not() -> None:
    named = set(re.findall(r"`(--[a-z-]+)", PAGE.read_text(encoding="utf-8")))
    assert len(named) > 5
    assert named <= {declared.setting.flag for declared in SETTINGS}


@pytest.mark.parametrize(
    ("declared", "row"),
    [
        (gauge("waiting", "Those that wait."), "| `kvproxy_waiting` | gauge |  | count | Those that wait. |"),
        (
            counted("blocks", "Blocks.", ("tier",), words={"tier": {"GPU": "", "CPU": "a|b"}}),
            r"| `kvproxy_blocks_total` | counter | `tier` | blocks | Blocks. `tier`: `GPU`, `CPU` (a\|b). |",
        ),
        (
            distribution("age_seconds", "Its age.", more="See [there](x.md)."),
            "| `kvproxy_age_seconds` | histogram |  | seconds | Its age. See [there](x.md). |",
        ),
        (
            counter("checks", "Checks.", Checked, "finding", per_instance=True).family,
            "| `kvproxy_checks_total` | counter | `instance`, `finding` | count | Checks. |",
        ),
        (
            histogram("lost", "Events lost.", EventDropped, of="count").family,
            "| `kvproxy_lost` | histogram |  | count | Events lost. |",
        ),
    ],
)
def test_a_line_of_the_page(declared: Family, row: str) -> None:
    assert line(declared) == row


def test_words_for_a_label_it_has_not_are_refused() -> None:
    with pytest.raises(ValueError, match="blocks: words for tier"):
        counted("blocks", "Blocks.", ("rank",), words={"tier": {"GPU": ""}})
    with pytest.raises(ValueError, match="checks: words for why"):
        counter("checks", "Checks.", Checked, "finding", words={"why": {}})


def test_a_registered_gauge_is_served_under_its_name_and_help() -> None:
    registry = CollectorRegistry()
    gauge("waiting", "Those that wait.", ("peer",)).registered_gauge(registry).labels("clients").set(3)
    assert generate_latest(registry).decode() == (
        "# HELP kvproxy_waiting Those that wait.\n"
        "# TYPE kvproxy_waiting gauge\n"
        'kvproxy_waiting{peer="clients"} 3.0\n'
    )


@pytest.mark.parametrize(
    ("name", "label", "values"),
    [
        ("kv_events_dropped", "reason", Reason),
        ("retries", "reason", LegReason),
        ("checks", "finding", Finding),
        ("circuit_state", "state", Circuit),
        ("prediction_misses", "cause", Cause),
        ("prediction_legs", "outcome", Outcome),
    ],
)
def test_every_value_there_can_be_is_on_the_page(name: str, label: str, values: type[str]) -> None:
    (family,) = (family for group in GROUPS for family in group.families if family.name == name)
    assert list(family.words[label]) == list(values)  # type: ignore[call-overload]  # an enumeration
