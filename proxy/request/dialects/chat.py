"""`/v1/chat/completions`: a conversation, answered for as long as the context has room."""

from collections.abc import Mapping
from typing import Any, ClassVar

from proxy.request.dialects.base import PromptMembers
from proxy.request.dialects.openai import OpenAiDialect

MAX_MESSAGES = 1 << 14
"""The most messages of a chat. OpenAI takes 2048; a context of a million tokens holds some 100 000 of the
shortest."""
MAX_TOOLS = 4096
"""The most tools of a chat; OpenAI takes 128."""


class Chat(OpenAiDialect):
    """The dialect of chats."""

    name = "chat_completions"
    path = "/v1/chat/completions"
    noun = "a chat"
    known_by = "messages"
    summary = "Answer a conversation"
    request_schema: ClassVar[Mapping[str, Any]] = {"$ref": "#/components/schemas/ChatRequest"}
    default_answer_tokens = None
    max_items: ClassVar[Mapping[str, int]] = {"messages": MAX_MESSAGES, "tools": MAX_TOOLS}
    prompt_members = PromptMembers(
        asked=frozenset(
            {
                "messages",
                "tools",
                "add_generation_prompt",
                "continue_final_message",
                "add_special_tokens",
                "chat_template",
                "chat_template_kwargs",
            }
        ),
        variables=frozenset({"documents", "reasoning_effort"}),
        # One renderer of vLLM's (Kimi K3) shows the first two to the model, an engine may leave out tools
        # that must not be called, and the last two shape images and sound, but no text.
        rarely=frozenset({"response_format", "tool_choice", "mm_processor_kwargs", "media_io_kwargs"}),
    )
    limits = ("max_completion_tokens", "max_tokens")
    null_n_is_one = True
