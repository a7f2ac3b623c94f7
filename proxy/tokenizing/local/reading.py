"""A value is read as engines read JSON, by Python's own decoder, and a long one does not stop other
threads.
"""

import json
from typing import Any

from proxy.request.body import Body
from proxy.request.json_pieces import Buffer, decoded_text, joined
from proxy.request.outline import LARGE_BODY_BYTES, LARGE_TEXT_BYTES, outline, signs_of


def loads(text: Buffer) -> Any:
    """As `json.loads`; long texts in it are decoded part by part, unless all of it takes a millisecond.

    Raises ValueError.
    """
    if len(text) <= LARGE_BODY_BYTES:
        return json.loads(bytes(text))
    if len(text) <= LARGE_TEXT_BYTES:
        whole = bytes(text)
        signs = signs_of(whole)
        if signs is not None and not signs.is_flat:  # what makes it long is text
            return json.loads(whole)
    alone = joined([b'{"a":', memoryview(text), b"}"])
    body = Body.of_outline(alone, outline(alone))
    return _restored(json.loads(body.short("a")), body)


def _restored(value: Any, body: Body) -> Any:
    if isinstance(value, str):
        text = body.marked(value)
        return value if text is None else decoded_text(text)
    if isinstance(value, list):
        return [_restored(item, body) for item in value]
    if isinstance(value, dict):
        return {_restored(name, body): _restored(item, body) for name, item in value.items()}
    return value
