"""A prompt whose tokens are not needed is only measured: its ids are counted, and its text counts by its
bytes.

Pure. A prompt that may be something else is looked into as any prompt is: one with images and sounds, whose
bytes say nothing of their tokens, and a text that may be longer than any context.
"""

from proxy.request.dialects.completions import PromptShape, prompt_shape
from proxy.request.generation import GenerationRequest
from proxy.request.json_pieces import PIECE_BYTES, contains, slices
from proxy.tokenizing.local.bounds import Bounds

MEDIA_BYTES = 64 << 10
"""The size of a body below which images do not matter: by its bytes it weighs 16 000 tokens at most."""

_MEDIA_MARK = b'"data'
"""The beginning of a data URL of an image or a video, and of the name of the member that holds a sound. Media
that are named by other URLs weigh little by their bytes."""


def ids_given(request: GenerationRequest) -> int | None:
    """The number of token ids that a request gives as its prompt; None if it gives no such prompt."""
    body = request.body
    view = body.view("prompt")
    if view is None or bytes(view[:1]) != b"[" or prompt_shape(body)[0] is not PromptShape.IDS:
        return None
    return 1 + sum(part.count(b",") for part in slices(view, PIECE_BYTES))


def is_to_be_looked_into(request: GenerationRequest, bounds: Bounds) -> bool:
    """Whether a prompt that is given as text may weigh something else than its bytes say."""
    size_bytes = request.body.size_bytes
    if size_bytes > bounds.max_characters:
        return True
    messages = request.body.view("messages") if size_bytes > MEDIA_BYTES else None
    return messages is not None and contains(messages, _MEDIA_MARK)
