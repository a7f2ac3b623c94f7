"""What a model's directory says of its tokenizer is read as transformers reads it, never from the network."""

import json
import os
import pathlib
from typing import Any

import msgspec

from proxy.errors import ConfigError

TOKENIZER_FILE = "tokenizer.json"
_CONFIG_FILE = "tokenizer_config.json"
_SPECIAL_TOKENS_FILE = "special_tokens_map.json"  # of models saved before transformers 4.34
_TEMPLATE_FILE = "chat_template.jinja"
_TEMPLATE_FOLDER = "additional_chat_templates"


class ModelFiles(msgspec.Struct, frozen=True):
    """A tokenizer's description, settings and chat templates."""

    directory: pathlib.Path
    tokenizer_json: str
    config: dict[str, Any]
    templates: dict[str, str]
    """By name; `default` is for every chat, `tool_use` for those with tools."""
    special_tokens: dict[str, Any]
    """The tokens that templates know as `bos_token` and so on: each a text, or an object with it as
    `content`."""
    extra_tokens: list[Any]
    """Special tokens without a name, in the same form."""


def find_model(name: str) -> pathlib.Path:
    """The directory of a model: the one of that path, or what the Hugging Face cache has of that name.

    Raises ConfigError if neither has a tokenizer.
    """
    directory = pathlib.Path(name).expanduser()
    if (directory / TOKENIZER_FILE).is_file():
        return directory
    if directory.is_dir():
        raise ConfigError(f"--tokenizer {name} has no {TOKENIZER_FILE}")
    cached = None if directory.is_absolute() else _in_cache(name)
    if cached is None:
        raise ConfigError(
            f"--tokenizer {name} is neither a directory nor a model in the Hugging Face cache"
            " (nothing is downloaded)"
        )
    return cached


def _in_cache(name: str) -> pathlib.Path | None:
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415  # a quarter of a second, rarely needed
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415

    try:
        found = try_to_load_from_cache(name, TOKENIZER_FILE)
    except HFValidationError:  # not a name at all
        return None
    return pathlib.Path(found).parent if isinstance(found, str | os.PathLike) else None


def read_model(directory: pathlib.Path) -> ModelFiles:
    """Read what a directory has. Raises OSError and ValueError."""
    config = _read_object(directory / _CONFIG_FILE)
    older = {} if "added_tokens_decoder" in config else _read_object(directory / _SPECIAL_TOKENS_FILE)
    settings = config | older
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    return ModelFiles(
        directory=directory,
        tokenizer_json=(directory / TOKENIZER_FILE).read_text("utf-8"),
        config=config,
        templates=_templates(directory, config),
        special_tokens=_named_tokens(settings | (extra if isinstance(extra, dict) else {})),
        extra_tokens=extra if isinstance(extra, list) else [],
    )


def _read_object(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = json.loads(path.read_text("utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} is not a JSON object")  # noqa: TRY004  # what is wrong is a value in a file
    return value


def _named_tokens(config: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in config.items()
        if name.endswith("_token")
        and isinstance(value.get("content") if isinstance(value, dict) else value, str)
    }


def _templates(directory: pathlib.Path, config: dict[str, Any]) -> dict[str, str]:
    """The templates; files of their own come before those in the settings."""
    found = {path.stem: path for path in sorted((directory / _TEMPLATE_FOLDER).glob("*.jinja"))}
    if (path := directory / _TEMPLATE_FILE).is_file():
        found["default"] = path
    if found:
        return {name: path.read_text("utf-8") for name, path in found.items()}
    match config.get("chat_template"):
        case str(text):
            return {"default": text}
        case list(named):
            return {str(one["name"]): str(one["template"]) for one in named}
        case dict(named):
            return {str(name): str(template) for name, template in named.items()}
        case _:
            return {}
