"""What is kept on disk for the next process, and where."""

import pathlib
from typing import Annotated

from proxy.config.settings import SECONDS, Section, Setting


class State(Section, frozen=True, kw_only=True):
    """Snapshots of what the engines have cached."""

    state_dir: Annotated[
        pathlib.Path | None,
        Setting(
            "--state-dir",
            "DIR",
            "keep what is known of the engines' caches and what /instances/* changed there, so that a"
            " restart loses nothing; with --kv-events off the latter only; a directory of this kvproxy's"
            " own, made if it does not exist",
            more="[After a restart](operating.md#kvproxy-restarts)."
            " Without it a restart knows what engines replay.",
        ),
    ] = None
    state_interval_s: Annotated[
        float,
        Setting("--state-interval", SECONDS, "how often what changed is written there", above=0),
    ] = 30.0
    """Seconds between two snapshots. The engine's replay buffer must reach back to the last one: vLLM's 10
    000 batches are 100 s of an engine that makes 100 steps a second, and the time without a kvproxy is a part
    of that."""
