"""Two answers are equal if nothing differs but what must: ids, times, and whose connection it was.

Pure: `seen` makes of an answer what a client sees of it, and leaves that out.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import aiohttp

OWN_HEADERS = frozenset(
    {"date", "server", "connection", "keep-alive", "content-length", "transfer-encoding", "vary"}
)
"""Headers of a connection, not of an answer; the length of a body that is compared says nothing more. `vary`
is of CORS, which is kvproxy's own."""
ADDED = frozenset({"cache-control", "x-accel-buffering"})
"""What kvproxy adds to streams, so that nothing on the way to the client holds them back."""
OWN_VALUES = frozenset({"x-request-id"})
"""Headers whose values are ids: only that they are there is compared."""
IDS = frozenset({"id", "created", "created_at", "completed_at", "system_fingerprint", "item_id"})
"""The fingerprint is that of an engine's settings, which prefill and decode engines have others of."""


class Told(NamedTuple):
    """An answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes


async def told(session: aiohttp.ClientSession, url: str, body: Mapping[str, Any]) -> Told:
    """POST `body`; a stream that is cut raises aiohttp.ClientPayloadError."""
    async with session.post(url, json=body) as response:
        return Told(response.status, response.headers, await response.read())


def seen(answer: Told, *, joined: bool) -> dict[str, Any]:
    """What a client sees: the status, headers, and the events of a stream or the JSON of another answer.

    `joined`: how many tokens stand in one event depends on time: real engines put together what their
    front end has not yet taken. The events of a choice are joined where nothing but that tells them apart.
    """
    if answer.headers.get("Content-Type", "").startswith("text/event-stream"):
        events = [_event(event) for event in answer.body.decode().split("\n\n")]
        body: Any = _joined(events) if joined else events
    else:
        body = _without_ids(json.loads(answer.body))
    return {"status": answer.status, "headers": _headers(answer.headers), "body": body}


def _headers(headers: Mapping[str, str]) -> dict[str, str]:
    named = {name.lower(): value for name, value in headers.items()}
    return {
        name: "some id" if name in OWN_VALUES else value
        for name, value in sorted(named.items())
        if name not in OWN_HEADERS | ADDED and not name.startswith("x-kvproxy-")
    }


def _event(event: str) -> Any:
    """An event: its lines, with their JSON read."""
    lines = []
    for line in event.split("\n"):
        field, _, value = line.partition(": ")
        lines.append([field, _without_ids(json.loads(value)) if value.startswith("{") else value])
    return lines


def _without_ids(value: Any, name: str = "") -> Any:
    """Members stay in their order. Log probabilities of engines that computed in batches of other sizes
    differ in the last digits.
    """
    if isinstance(value, dict):
        return {key: _without_ids(one, key) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_ids(one) for one in value]
    if name in IDS and value is not None:
        return f"some {type(value).__name__}"
    return round(value, 2) if isinstance(value, float) else value


def _joined(events: Iterable[Any]) -> list[Any]:
    """The events with those of each choice together, and as few of them as say the same."""
    first: list[Any] = []
    of_choices: dict[int, list[Any]] = {}
    last: list[Any] = []
    for event in events:
        index = _choice_index(event)
        if index is None:
            so_far = last if of_choices else first
            if so_far and _is_more(so_far[-1], event):
                before, data = so_far.pop()[-1][1], event[-1][1]
                data["delta"] = _more(before["delta"], data["delta"])
            so_far.append([*event[:-1], [event[-1][0], _unnumbered(event[-1][1])]])
            continue
        so_far = of_choices.setdefault(index, [])
        if so_far and _goes_on(so_far[-1], event):
            so_far[-1] = [["data", _added(so_far[-1][0][1], event[0][1])]]
        else:
            so_far.append(event)
    return first + [event for index in sorted(of_choices) for event in of_choices[index]] + last


def _is_more(before: Any, event: Any) -> bool:
    """Whether a named event brings more of what the one before it brought."""
    return (
        len(event) > 1
        and before[0] == event[0]
        and isinstance(event[-1][1], dict)
        and "delta" in event[-1][1]
        and event[0][1] in {"response.output_text.delta", "content_block_delta"}
    )


def _more(before: Any, delta: Any) -> Any:
    if isinstance(delta, str):
        return before + delta
    return delta | {"text": before["text"] + delta["text"]}


def _unnumbered(data: Any) -> Any:
    """Data without its place among events, of which there may be fewer."""
    return {k: v for k, v in data.items() if k != "sequence_number"} if isinstance(data, dict) else data


def _choice_index(event: Any) -> int | None:
    data = event[0][1] if len(event) == 1 else None
    choices = data.get("choices") if isinstance(data, dict) else None
    return choices[0]["index"] if choices else None


def _goes_on(before: Any, event: Any) -> bool:
    """Whether `event` only adds to the text of the one before it."""
    one, other = before[0][1]["choices"][0], event[0][1]["choices"][0]
    if one["finish_reason"] is not None or one.get("prompt_token_ids") or "role" in one.get("delta", {}):
        return False
    return list(one.get("delta", {})) == list(other.get("delta", {}))


def _added(before: Any, after: Any, name: str = "") -> Any:
    """The event `after` with the texts and lists of the one before it put in front of its own."""
    if name == "usage":
        return after
    if isinstance(before, dict) and isinstance(after, dict):
        return {key: _added(before.get(key), value, key) for key, value in after.items()}
    if name == "tool_calls" and isinstance(before, list) and isinstance(after, list):
        return [_added(one, other) for one, other in zip(before, after, strict=True)]
    if isinstance(before, list) and isinstance(after, list):
        if name == "choices":
            return [_added(one, other) for one, other in zip(before, after, strict=True)]
        return before + after
    if name in {"content", "text", "reasoning", "arguments"} and isinstance(before, str):
        return before + (after or "")
    return after


class Difference(NamedTuple):
    """A member of two answers that is not the same."""

    where: str
    got: Any
    expected: Any


def differences(got: Any, expected: Any, where: str = "answer") -> list[Difference]:
    """What is not the same. Members are to be in the same order."""
    if isinstance(got, dict) and isinstance(expected, dict) and list(got) == list(expected):
        return [found for key in got for found in differences(got[key], expected[key], f"{where}.{key}")]
    if isinstance(got, list) and isinstance(expected, list) and len(got) == len(expected):
        pairs = enumerate(zip(got, expected, strict=True))
        return [found for index, pair in pairs for found in differences(*pair, f"{where}[{index}]")]
    return [] if got == expected else [Difference(where, got, expected)]
