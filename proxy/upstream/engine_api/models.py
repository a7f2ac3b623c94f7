"""An engine lists in `/v1/models` its model, under one name or several, and its LoRA adapters."""

from typing import Any

import msgspec

from proxy.fleet import ModelCard
from proxy.upstream.engine_api.asking import Question, UnreadableError, decode

MAX_MODELS = 4096
"""The most models that one engine may list, adapters included; a longer list is an error."""

_PATH = "/v1/models"


class _Listed(msgspec.Struct):
    data: list[dict[str, Any]]


class _Named(msgspec.Struct):
    id: str
    parent: str | None = None


def _read(data: bytes) -> list[ModelCard]:
    otherwise = f"its {_PATH} is not a list of models"
    cards = decode(_PATH, data, _Listed, otherwise).data
    if len(cards) > MAX_MODELS:
        raise UnreadableError(f"its {_PATH} lists more than {MAX_MODELS} models")
    try:
        return [_card(card) for card in cards]
    except msgspec.ValidationError:
        raise UnreadableError(otherwise) from None


def _card(listed: dict[str, Any]) -> ModelCard:
    named = msgspec.convert(listed, _Named)
    root, length = listed.get("root"), listed.get("max_model_len")
    return ModelCard(
        id=named.id,
        parent=named.parent,
        root=root if isinstance(root, str) else None,
        max_model_len=length if isinstance(length, int) else None,
        entry=listed,
    )


MODELS: Question[list[ModelCard]] = Question(_PATH, _read)
