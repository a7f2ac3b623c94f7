"""Ask an engine or a proxy something and keep all of the answer, streamed or not, in one shape."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import aiohttp

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
Body = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back. A streamed answer is `complete` when its end was announced, any other when it was
    read.
    """

    status: int
    headers: Mapping[str, str]
    text: str
    usage: Body
    body: bytes
    complete: bool = True
    choices: tuple[str, ...] = ()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def prompt_tokens(self) -> int:
        return int(self.usage["prompt_tokens"])

    @property
    def reported(self) -> int:
        """Prompt tokens that the engine says came from its cache."""
        details = self.usage.get("prompt_tokens_details") or {}
        return int(details.get("cached_tokens") or 0)

    @property
    def predicted(self) -> int | None:
        """Prompt tokens that kvproxy expected to be cached (--decision-headers)."""
        value = self.headers.get("X-Kvproxy-Cached-Tokens")
        return None if value is None else int(value)

    @property
    def prefill(self) -> str:
        return self.headers.get("X-Kvproxy-Prefill", "")

    @property
    def decode(self) -> str:
        return self.headers.get("X-Kvproxy-Decode", "")


async def ask(
    session: aiohttp.ClientSession, url: str, path: str, body: Body, headers: Mapping[str, str] | None = None
) -> Answer:
    """POST `body` and read the answer to its end; a stream that is cut raises aiohttp.ClientPayloadError."""
    async with session.post(url + path, json=body, headers=headers) as response:
        return read_answer(response.status, response.headers, await response.read())


def read_answer(status: int, headers: Mapping[str, str], raw: bytes) -> Answer:
    """The answer in a response that was read to its end."""
    streamed = headers.get("Content-Type", "").startswith("text/event-stream")
    parts = _streamed(raw) if streamed else _whole(raw)
    return Answer(status, headers, *parts)


def _whole(raw: bytes) -> tuple[str, Body, bytes, bool, tuple[str, ...]]:
    try:
        body = json.loads(raw)
    except ValueError:
        return "", {}, raw, True, ()
    if not isinstance(body, dict):
        return "", {}, raw, True, ()
    texts = tuple(_text(choice, "message") for choice in body.get("choices") or [])
    return "".join(texts[:1]), body.get("usage") or {}, raw, True, texts


def _streamed(raw: bytes) -> tuple[str, Body, bytes, bool, tuple[str, ...]]:
    texts: dict[int, str] = {}
    usage: Body = {}
    last = b""
    for event in raw.split(b"\n\n"):
        data = event.removeprefix(b"data: ").strip()
        if not data:
            continue
        last = data
        if data == b"[DONE]":
            continue
        chunk = json.loads(data)
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices") or []:
            texts[choice["index"]] = texts.get(choice["index"], "") + _text(choice, "delta")
    ordered = tuple(texts[index] for index in sorted(texts))
    return "".join(ordered[:1]), usage, raw, last == b"[DONE]", ordered


def _text(choice: Body, part: str) -> str:
    if "text" in choice:
        return choice["text"] or ""
    return (choice.get(part) or {}).get("content") or ""
