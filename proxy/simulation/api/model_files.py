"""Invariant: the files of the stand-in's model, tokenizer and chat template, describe what the stand-in does.

They are for tests that tokenize with the model's own files, as a real engine's directory has them (`--root`).
"""

import json
import pathlib
from importlib.resources import files

from proxy.simulation.engine.tokenizer import SPECIAL, alphabet

# A turn is "<|turn|>role", a line break, the content and "<|end|>": as `chat.render` has it, and the tiny
# test model.
_CHAT_TEMPLATE = """\
{%- if tools %}{{ '<|turn|>tools\\n' + (tools | tojson) + '<|end|>\\n' }}{% endif -%}
{%- for message in messages -%}
{{ '<|turn|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}{{ message['content'] }}
{%- elif message['content'] -%}
{%- for part in message['content'] %}
{%- if part['type'] == 'text' %}{{ part['text'] }}{% elif part['type'] == 'image' %}{{ '<|pad|>' }}{% endif -%}
{% endfor -%}
{%- endif -%}
{%- if message['tool_calls'] %}{{ message['tool_calls'] | tojson }}{% endif -%}
{{ '<|end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|turn|>assistant\\n' }}{% endif -%}
"""


def tokenizer_json() -> str:
    """The stand-in's tokenizer in the form of the `tokenizers` library."""
    lines = (files("proxy.simulation") / "data" / "merges.txt").read_text("utf-8").splitlines()
    merges = [line.split(" ") for line in lines]
    pieces = [*SPECIAL, *sorted(alphabet().values()), *map("".join, merges)]
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [{"id": number, "content": name} | token for name, number in SPECIAL.items()],
            "pre_tokenizer": byte_level,
            "decoder": byte_level,
            "model": {"type": "BPE", "vocab": {piece: n for n, piece in enumerate(pieces)}, "merges": merges},
        }
    )


def write_model(directory: pathlib.Path) -> None:
    """Write the files of a model's directory that concern its tokenizer."""
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<|pad|>",
        "eos_token": "<|end|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": _CHAT_TEMPLATE,
    }
    (directory / "tokenizer.json").write_text(tokenizer_json(), "utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
