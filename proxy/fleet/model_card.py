"""One name that an instance serves: its model, or a LoRA adapter of it."""

from collections.abc import Mapping
from typing import Any

import msgspec


class ModelCard(msgspec.Struct, frozen=True):
    """An entry of `/v1/models`."""

    id: str
    """What requests call it."""
    parent: str | None = None
    """The model it adapts; None for a model."""
    root: str | None = None
    """Where the engine has its files."""
    max_model_len: int | None = None
    """The tokens a prompt and its answer may have together; None if the engine does not tell."""
    told: Mapping[str, Any] = {}
    """The entry as it came, for whoever asks kvproxy what is served."""
