"""LiteLLM, unchanged but for its base URL.

Prints a line of JSON for each URL. Usage: python -m tests.fidelity.clients.litellm_client URL URL [--free]
With --free nothing is asked that a grammar forces: a model that was never trained comes to no end there.
"""

import asyncio
import json
import sys
from typing import Any

import litellm

from tests.fidelity.clients.openai_client import LOOK, TALK


def main(base_url: str, runner: asyncio.Runner, *, forced: bool) -> dict[str, Any]:
    """What the client was told."""
    told: Any = {"api_base": base_url, "api_key": "none", "temperature": 0, "max_retries": 0, "timeout": 60}
    chat: Any = told | {"model": "hosted_vllm/tiny", "messages": TALK, "max_tokens": 12}
    answer = litellm.completion(**chat)
    pieces = list(litellm.completion(**chat, stream=True, stream_options={"include_usage": True}))
    text = litellm.text_completion(
        model="text-completion-openai/tiny", prompt="Once upon a time", max_tokens=12, **told
    )
    later = runner.run(litellm.acompletion(**chat))
    return {
        "chat": answer.choices[0].message.content,
        "usage": [answer.usage.prompt_tokens, answer.usage.completion_tokens],
        "streamed": "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices),
        "streamed usage": [
            piece.usage.completion_tokens for piece in pieces if getattr(piece, "usage", None)
        ],
        "forced": tools(chat) if forced else [],
        "text": text.choices[0].text,
        "async": later.choices[0].message.content,
        "error": refused(chat | {"model": "hosted_vllm/no-such-model"}),
    }


def tools(chat: Any) -> Any:
    """A call that must be made."""
    called = litellm.completion(**(chat | {"max_tokens": 60}), tools=[LOOK], tool_choice="required")
    return [(c.function.name, c.function.arguments) for c in called.choices[0].message.tool_calls]


def refused(chat: Any) -> str:
    """The client's own error."""
    try:
        litellm.completion(**chat)
    except litellm.exceptions.NotFoundError as error:
        return type(error).__name__
    return "nothing was wrong"


if __name__ == "__main__":
    with asyncio.Runner() as one_loop:  # which the client keeps its connections for
        for url in sys.argv[1:3]:
            print(json.dumps(main(f"{url}/v1", one_loop, forced="--free" not in sys.argv)))
