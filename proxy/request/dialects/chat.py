"""`/v1/chat/completions`: a conversation, answered for as long as the context has room."""

from collections.abc import Mapping
from typing import ClassVar

from proxy.request.dialects.openai import OpenAiDialect

MAX_MESSAGES = 1 << 14
"""Of one chat. OpenAI takes 2048; a context of a million tokens holds some 100 000 of the shortest."""
MAX_TOOLS = 4096
"""Of one chat; OpenAI takes 128."""


class Chat(OpenAiDialect):
    """The dialect of chats."""

    name = "chat_completions"
    path = "/v1/chat/completions"
    noun = "a chat"
    known_by = "messages"
    default_answer_tokens = None
    most_items: ClassVar[Mapping[str, int]] = {"messages": MAX_MESSAGES, "tools": MAX_TOOLS}
    limits = ("max_completion_tokens", "max_tokens")
    null_n_is_one = True
