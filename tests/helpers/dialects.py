"""The generating routes as tests ask them: for each a body, what its answers say, and how its streams end.

A promise that depends on the dialect is parametrised by `SPOKEN`; another is shown with one of them.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest

from proxy.request.dialects import CHAT, COMPLETIONS, MESSAGES, Dialect
from proxy.request.sse import events


class Spoken(NamedTuple):
    """A dialect in the hands of a test."""

    dialect: Dialect
    asked: Callable[[str], dict[str, Any]]
    """The members that ask about a text."""
    limit: str
    """The member that limits the answer."""
    end: bytes
    """How the last event of a complete stream begins."""
    piece: Callable[[Mapping[str, Any]], str]
    """The text in a whole answer, or in an event."""
    unlimited: Mapping[str, Any]
    """Members with which an answer goes on to its limit."""

    @property
    def path(self) -> str:
        return self.dialect.path

    def body(self, text: str, tokens: int = 8, **members: Any) -> dict[str, Any]:
        """A request for an answer of at most so many tokens."""
        return {"model": "tiny", "temperature": 0, self.limit: tokens} | self.asked(text) | members

    def datas(self, stream: bytes) -> list[bytes]:
        """The data of the events in a stream that may have been cut between two events."""
        return [data for _, data in events(stream) if data]

    def text(self, answer: bytes) -> str:
        """What was generated, streamed or not."""
        if answer.startswith(b"{"):
            return self.piece(json.loads(answer))
        return "".join(self.piece(json.loads(d)) for d in self.datas(answer) if d != b"[DONE]")

    def is_complete(self, stream: bytes) -> bool:
        """Whether a stream has its end."""
        last = stream.rstrip(b"\n").rpartition(b"\n\n")[2]
        return last.startswith(self.end)


def _of_choices(answer: Mapping[str, Any]) -> str:
    said = []
    for choice in answer.get("choices", ()):
        message = choice.get("delta") or choice.get("message") or {}
        said.append(choice.get("text") or message.get("content") or "")
    return "".join(said)


def _of_a_message(answer: Mapping[str, Any]) -> str:
    delta = str((answer.get("delta") or {}).get("text", ""))
    return delta + "".join(block["text"] for block in answer.get("content", ()))


SPOKEN = (
    Spoken(
        COMPLETIONS,
        lambda text: {"prompt": text},
        "max_tokens",
        b"data: [DONE]",
        _of_choices,
        {"ignore_eos": True},
    ),
    Spoken(
        CHAT,
        lambda text: {"messages": [{"role": "user", "content": text}]},
        "max_tokens",
        b"data: [DONE]",
        _of_choices,
        {"ignore_eos": True},
    ),
    Spoken(
        MESSAGES,
        lambda text: {"messages": [{"role": "user", "content": text}]},
        "max_tokens",
        b'event: message_stop\ndata: {"type":"message_stop"',
        _of_a_message,
        {},
    ),
)

each_dialect = pytest.mark.parametrize("spoken", SPOKEN, ids=lambda spoken: spoken.dialect.name)
