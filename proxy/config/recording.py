"""What is recorded of the traffic and of decisions, and how much of it is kept."""

import pathlib
from typing import Annotated

from proxy.config.settings import COUNT, FILE, MIB, SHARE, Section, Setting


class Recordings(Section, frozen=True, kw_only=True):
    """A recording of the traffic, to be replayed, and a log of decisions."""

    record: Annotated[
        pathlib.Path | None,
        Setting(
            "--record",
            FILE,
            "write a line for each request: when it came, its lengths, salted ids of its blocks and session;"
            " nothing that can be read",
            more="[What it has](traces.md#recording).",
        ),
    ] = None
    record_mb: Annotated[
        int,
        Setting("--record-mb", MIB, "begin another file when it has so many MiB", least=1, most=1 << 20),
    ] = 64
    record_files: Annotated[
        int,
        Setting(
            "--record-files",
            COUNT,
            "how many files are kept; the oldest one goes",
            least=1,
            most=100_000,
        ),
    ] = 16
    decision_log: Annotated[
        pathlib.Path | None,
        Setting(
            "--decision-log",
            FILE,
            "write a line for each decision once its request has ended: what it was made of, and what came of"
            " it; no prompts",
            more="[What it has](policies.md#the-decision-log).",
        ),
    ] = None
    decision_log_share: Annotated[
        float,
        Setting("--decision-log-share", SHARE, "log so many of all decisions, at random", above=0, most=1),
    ] = 1.0
    decision_log_mb: Annotated[
        int,
        Setting(
            "--decision-log-mb", MIB, "begin another file when it has so many MiB", least=1, most=1 << 20
        ),
    ] = 64
    decision_log_files: Annotated[
        int,
        Setting(
            "--decision-log-files",
            COUNT,
            "how many of these files are kept; the oldest one goes",
            least=1,
            most=100_000,
        ),
    ] = 4
