"""A prompt whose tokens are not needed is only measured: its ids are counted, and its text counts by its
bytes.

Pure. A prompt that may be something else is looked into as any prompt is: one with images and sounds, whose
bytes say nothing of their tokens, and a text that may be longer than any context.
"""

import re

from proxy.request.dialects.completions import PromptShape, prompt_shape
from proxy.request.generation import GenerationRequest
from proxy.request.json_pieces import PIECE_BYTES, matches, slices
from proxy.tokenizing.local.bounds import Bounds

_MEDIA_MARKS = re.compile(rb'_(?:url|audio)"')
"""The ends of the names of parts with images, sounds and videos: `image_url`, `input_audio` and the like."""
_LONGEST_MARK = len(b'_audio"')


def ids_given(request: GenerationRequest) -> int | None:
    """The number of token ids that a request gives as its prompt; None if it gives no such prompt."""
    dialect, body = request.dialect, request.body
    if "prompt" not in dialect.long_members or body.given(dialect.prompt_members.unknowable):
        return None
    view = body.view("prompt")
    if view is None or bytes(view[:1]) != b"[" or prompt_shape(body)[0] is not PromptShape.IDS:
        return None
    return 1 + sum(part.count(b",") for part in slices(view, PIECE_BYTES))


def is_to_be_looked_into(request: GenerationRequest, bounds: Bounds) -> bool:
    """Whether a prompt that is given as text may weigh something else than its bytes say."""
    if request.body.size_bytes > bounds.max_characters:
        return True
    messages = request.body.view("messages")
    return messages is not None and matches(messages, _MEDIA_MARKS, _LONGEST_MARK)
