"""What outlives the process, and where."""

import pathlib

import msgspec

from proxy.config.checks import check_seconds


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Snapshots of what the engines have cached."""

    state_dir: pathlib.Path | None = None
    """A directory of this kvproxy's own; None: it starts from what the engines replay."""
    state_interval_s: float = 30.0
    """How old a snapshot may be. The engine's replay buffer must reach back to it: vLLM's 10 000 batches are 100 s
    of an engine that makes 100 steps a second, and being down takes a part of that."""

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        check_seconds("--state-interval", self.state_interval_s)
