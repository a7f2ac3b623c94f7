"""The directory of a model whose tokenizer is the stand-ins', as `/v1/models` of an engine may name one."""

import json
import pathlib
from typing import Any

from proxy.simulation.api.model_files import write_model


def write_tiny_model(
    directory: pathlib.Path, *, config: dict[str, Any] | None = None, template: str | None = None
) -> pathlib.Path:
    """Write it; `config` replaces the settings, and `template` stands in a file of its own."""
    write_model(directory)
    if config is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    if template is not None:
        (directory / "chat_template.jinja").write_text(template, "utf-8")
    return directory
