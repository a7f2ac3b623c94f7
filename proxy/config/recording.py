"""What is recorded of the traffic, and how much of it is kept."""

import pathlib
from typing import Annotated

from proxy.config.settings import COUNT, FILE, MIB, Section, Setting


class Recordings(Section, frozen=True, kw_only=True):
    """A recording of the traffic, to be replayed."""

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
