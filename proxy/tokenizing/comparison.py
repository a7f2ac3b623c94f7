"""How the tokenizer in this process and an engine are asked the same questions, so that their answers can be
compared.
"""

import asyncio
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from proxy.errors import ConfigError
from proxy.tokenizing.local.files import TOKENIZER_FILE, find_model, read_model
from proxy.tokenizing.local.tokenizer import LocalTokenizer
from proxy.tokenizing.parity import questions
from proxy.upstream.engine_api.asking import Asker, read
from proxy.upstream.engine_api.tokens import read_tokens, tokenize

CHECK_TIMEOUT_S = 10.0
"""Seconds for the answer to one question; an engine may be busy starting."""

Answers = dict[str, list[list[int] | None]]
"""The token ids by kind of prompt, in the order of `questions`; None for a question that is refused."""


async def ask_tokens(
    engines: Asker, instance: str, body: bytes, timeout_s: float = CHECK_TIMEOUT_S
) -> list[int] | None:
    """An engine's answer to a `/tokenize` question; None if it refuses it. Raises LegError."""
    answer = await tokenize(engines, instance, body, timeout_s)
    return None if answer is None else read(instance, read_tokens, answer).tolist()


def bodies(special: Iterable[str], model: str) -> dict[str, list[bytes]]:
    """The awkward questions of each kind, as bodies of `/tokenize`."""
    return {
        kind: [_body(question, model) for question in asked] for kind, asked in questions(special).items()
    }


def _body(question: Mapping[str, Any], model: str) -> bytes:
    return msgspec.json.encode(dict(question) | {"model": model})


def configured_tokenizer(name: str) -> LocalTokenizer | None:
    """The tokenizer that `--tokenizer` names; None for `auto` and `engines`. Raises ConfigError."""
    if name in {"auto", "engines"}:
        return None
    directory = find_model(name)
    try:
        return _load(directory)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--tokenizer {name} cannot be used: {error}") from None


async def tokenizer_at(root: str) -> LocalTokenizer | None:
    """The tokenizer in a directory; None if there is none that can be read here. Raises OSError and
    ValueError.
    """
    directory = pathlib.Path(root)
    if not directory.is_absolute() or not (directory / TOKENIZER_FILE).is_file():
        return None
    return await asyncio.to_thread(_load, directory)


def _load(directory: pathlib.Path) -> LocalTokenizer:
    return LocalTokenizer(read_model(directory))
