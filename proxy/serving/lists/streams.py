"""A stream for a list of prompts holds the events of all prompts under one id, with one usage and one end.

Pure: the engines' events go in, those for the client come out.
"""

from typing import Any

import msgspec

from proxy.request.dialects.choices import DONE
from proxy.request.sse import KEEP_ALIVE, event_of
from proxy.serving.lists.answers import renumbered
from proxy.serving.lists.usage import summed

_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_choices = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_decode_usage = msgspec.json.Decoder(dict[str, Any] | None).decode
_encode = msgspec.json.Encoder().encode

# Members that all chunks of a stream must share: those of the first prompt's stream.
_OF_THE_FIRST = ("id", "created")


class StreamMerger:
    """Turns the events of each prompt's stream into those of the one stream for all."""

    def __init__(self, prompts: int, sequences: int) -> None:
        """`sequences`: how many choices each prompt has (`n`)."""
        self._prompts = prompts
        self._sequences = sequences
        self._common: dict[str, msgspec.Raw] = {}
        self._frame: dict[str, msgspec.Raw] = {}
        self._usages: dict[int, dict[str, Any]] = {}

    def begin(self, first: bytes) -> None:
        """Take the id of the whole stream from an event of the first prompt. Raises ValueError."""
        members = _members(first)
        self._common = {name: members[name] for name in _OF_THE_FIRST if name in members}

    def chunk(self, part: int, data: bytes) -> bytes:
        """The event for the client that a prompt's event with `data` becomes; empty if it waits for the end.

        Raises ValueError if it is not an event of a completion.
        """
        if not data:
            return KEEP_ALIVE
        members = _members(data)
        try:
            choices = _decode_choices(members.get("choices", b"[]"))
            if not choices and (usage := _decode_usage(members.get("usage", b"null"))) is not None:
                self._usages[part] = usage
                if part == 0:
                    self._frame = {name: raw for name, raw in members.items() if name != "metrics"}
                return b""
            put = {"choices": [renumbered(choice, part * self._sequences) for choice in choices]}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"not an event of a completion: {error}") from None
        return event_of(_encode(members | self._common | put))

    def end(self) -> bytes:
        """The last events of the stream: the usage, if every engine reported it, and the end."""
        closing = b""
        if len(self._usages) == self._prompts:
            usage = summed([self._usages[part] for part in range(self._prompts)])
            closing = event_of(_encode(self._frame | self._common | {"usage": usage}))
        return closing + event_of(DONE)


def _members(data: bytes) -> dict[str, msgspec.Raw]:
    try:
        return _decode_members(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"an event that is no JSON object: {error}") from None
