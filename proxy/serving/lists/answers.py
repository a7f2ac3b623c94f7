"""An answer to a list of prompts holds every choice that the engines gave, in the order of the prompts,
unchanged but for its index.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from proxy.serving.lists.usage import summed


class _Answer(msgspec.Struct):
    choices: list[dict[str, msgspec.Raw]]
    usage: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(_Answer).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_index = msgspec.json.Decoder(int).decode
_encode = msgspec.json.Encoder().encode

NULL = msgspec.Raw(b"null")


def renumbered(choice: Mapping[str, msgspec.Raw], first_index: int) -> dict[str, msgspec.Raw]:
    """A choice of one prompt with its index in the answer to all; `first_index`: that of its prompt's first
    choice.

    Raises ValueError (msgspec's errors are such) if it has no integer index.
    """
    if "index" not in choice:
        raise ValueError("a choice without an index")
    index = _decode_index(choice["index"]) + first_index
    return {**choice, "index": msgspec.Raw(b"%d" % index)}


class AnswerMerger:
    """Puts the unstreamed answers to the prompts of a list together, in whatever order they come."""

    def __init__(self, sequences: int) -> None:
        """`sequences`: how many choices each prompt has (`n`)."""
        self._sequences = sequences
        self._frame: dict[str, msgspec.Raw] = {}
        self._choices: dict[int, list[msgspec.Raw]] = {}
        self._usages: dict[int, dict[str, Any] | None] = {}

    def add(self, part: int, body: bytes) -> None:
        """Add the answer to the prompt with the number `part`. Raises ValueError if it is no completion."""
        try:
            answer = _decode(body)
            first_index = part * self._sequences
            self._choices[part] = [
                msgspec.Raw(_encode(renumbered(choice, first_index))) for choice in answer.choices
            ]
            self._usages[part] = answer.usage
            if part == 0:
                self._frame = _decode_members(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"not an answer to a completion: {error}") from None

    def merged(self) -> bytes:
        """The answer to all prompts: the choices of all within the members of the first prompt's answer."""
        put: dict[str, Any] = {
            "choices": [choice for part in sorted(self._choices) for choice in self._choices[part]]
        }
        if "usage" in self._frame:
            usages = [usage for part in sorted(self._usages) if (usage := self._usages[part]) is not None]
            put["usage"] = summed(usages) if len(usages) == len(self._usages) else NULL
        if "metrics" in self._frame:
            put["metrics"] = NULL  # timings of one prompt; an engine gives none for a list
        return _encode({**self._frame, **put})
