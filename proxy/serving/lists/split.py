"""A request for a list of prompts becomes one request for each prompt, whose bodies differ in the prompt
alone.
"""

import msgspec

from proxy.errors import BadRequestError
from proxy.request.generation import GenerationRequest
from proxy.request.json_pieces import joined

MAX_PROMPTS = 128
"""The most prompts in one list: each costs two legs at once, and no client should occupy a whole fleet."""

MAX_COPIED_BYTES = 64 << 20
"""The most bytes that the other members of the body may take once every prompt has a copy of them: as many as
the largest body has by default. Without a limit 60 MB of schema and 128 prompts would be 8 GB."""


def split(request: GenerationRequest) -> list[GenerationRequest]:
    """One request for each prompt of a list, in order. Raises BadRequestError if there are too many."""
    if request.prompt_count > MAX_PROMPTS:
        raise BadRequestError(
            (
                f"prompt is a list of {request.prompt_count} prompts: at most {MAX_PROMPTS} are taken in "
                "one request"
            ),
            param="prompt",
        )
    prompts = request.body.raw_items("prompt")
    shared_bytes = max(0, request.body.size_bytes - sum(memoryview(prompt).nbytes for prompt in prompts))
    if shared_bytes * len(prompts) > MAX_COPIED_BYTES:
        raise BadRequestError(
            f"{len(prompts)} prompts in one request, each with the {shared_bytes} bytes of the other members,"
            " are too much: send fewer in one request",
            param="prompt",
        )
    return [_part(request, prompt, shared_bytes) for prompt in prompts]


def _part(request: GenerationRequest, prompt: msgspec.Raw, shared_bytes: int) -> GenerationRequest:
    # Still a list, of one item: engines read and refuse an item of a list otherwise than a plain prompt.
    alone = msgspec.Raw(joined([b"[", memoryview(prompt), b"]"]))
    body = request.body.changed({"prompt": alone}, size_bytes=shared_bytes + memoryview(prompt).nbytes)
    return msgspec.structs.replace(request, body=body, prompt_count=1)
