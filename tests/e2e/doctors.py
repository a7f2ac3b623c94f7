"""`kvproxy doctor` as a user runs it, and what it complained of."""

import json
import pathlib
import subprocess
from collections.abc import Sequence
from typing import Any

from scripts.workshop.live.proxy import KVPROXY
from tests.fleets import LEASE_S, MODEL

LIMIT_S = 120
"""Real engines on two busy cores take seconds for a first hand-over."""


def doctor(
    prefill: Sequence[str], decode: Sequence[str], log: pathlib.Path, flags: Sequence[str] = ()
) -> tuple[int, Any]:
    """Run the command; its exit code, and what it printed."""
    words = [str(KVPROXY), "doctor", "--model", MODEL, "--kv-lease-s", str(LEASE_S), "--json", *flags]
    words += ["--timeout", str(LIMIT_S), "--prefill", *prefill, "--decode", *decode]
    with log.open("ab") as errors:
        ended = subprocess.run(
            words, stdout=subprocess.PIPE, stderr=errors, timeout=LIMIT_S + 60, check=False
        )
    return ended.returncode, json.loads(ended.stdout)


def not_passed(report: Any) -> list[Any]:
    subjects = [*report["instances"], *report["pairs"], report]
    found = [f for subject in subjects for f in subject.get("findings", subject.get("fleet"))]
    return [finding for finding in found if finding["status"] != "pass"]
