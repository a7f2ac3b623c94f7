"""What a choice of tools does to the prompt is learned from engines' own counts, not assumed.

`/tokenize` knows no `tool_choice`. `/v1/messages/count_tokens`, which vLLM always has, renders a chat as it
is rendered to be answered, choice included, and gives its length. A prompt is rendered the same with every
choice, unless an engine was started with `--exclude-tools-when-tool-choice-none`, or its model is told of the
choice (Kimi K3).
"""

import enum
from collections.abc import Iterable, Mapping

import msgspec


class Choice(enum.StrEnum):
    """A `tool_choice` other than `auto`, which is also the meaning of an absent one."""

    NONE = "none"
    REQUIRED = "required"
    NAMED = "named"
    """An object that names a function."""


class Tools(enum.Enum):
    """What becomes of the tools in a prompt."""

    SHOWN = enum.auto()
    """They are there as with `auto`."""
    LEFT_OUT = enum.auto()
    UNCLEAR = enum.auto()
    """Something else, or not the same on all engines."""


COUNT_PATH = "/v1/messages/count_tokens"

_TOOL = {
    "name": "weather",
    "description": "The weather in a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
_MESSAGES = [{"role": "user", "content": "Hello"}]
_AUTO, _BARE = "auto", "no tools"
_CHOICES: Mapping[str, str] = {
    _AUTO: "auto",
    Choice.NONE: "none",
    Choice.REQUIRED: "any",
    Choice.NAMED: "tool",
}


def questions(model: str) -> dict[str, bytes]:
    """The bodies for `COUNT_PATH`."""
    asked = {
        name: {
            "tools": [_TOOL],
            "tool_choice": {"type": kind} | ({"name": "weather"} if kind == "tool" else {}),
        }
        for name, kind in _CHOICES.items()
    } | {_BARE: {}}
    return {
        name: msgspec.json.encode({"model": model, "messages": _MESSAGES} | members)
        for name, members in asked.items()
    }


def judge(counts: Mapping[str, int | None]) -> dict[Choice, Tools]:
    """What an engine's answers to `questions` show: lengths in tokens, None for a refusal.

    The result has no choice that was refused: an engine without a parser for calls refuses such chats as
    well.
    """
    auto, bare = counts.get(_AUTO), counts.get(_BARE)
    found: dict[Choice, Tools] = {}
    for choice in Choice:
        length = counts.get(choice)
        if length is None or bare is None:
            continue
        if length == auto or (auto is None and length > bare):
            found[choice] = Tools.SHOWN
        else:
            found[choice] = Tools.LEFT_OUT if length == bare else Tools.UNCLEAR
    return found


def together(found: Iterable[Tools]) -> Tools:
    """The result for a prompt that any of several engines may render."""
    said = set(found)
    if not said:
        return Tools.SHOWN
    return said.pop() if len(said) == 1 else Tools.UNCLEAR
