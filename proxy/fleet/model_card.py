"""A model card is one name that an instance serves: its model, or a LoRA adapter of it."""

from collections.abc import Mapping
from typing import Any

import msgspec


class ModelCard(msgspec.Struct, frozen=True):
    """An entry of `/v1/models`."""

    id: str
    """Its name in requests."""
    parent: str | None = None
    """The model that an adapter belongs to; None for a model."""
    root: str | None = None
    """Where the engine has its files."""
    max_model_len: int | None = None
    """The tokens a prompt and its answer may have together; None if the engine does not tell."""
    entry: Mapping[str, Any] = {}
    """The whole entry as the engine gave it, for kvproxy's own `/v1/models`."""
