"""A list of prompts gets the answer that one engine would give, though each prompt has legs of its own."""

from proxy.serving.lists.serving import serve_list
from proxy.serving.lists.split import MAX_PROMPTS

__all__ = ["MAX_PROMPTS", "serve_list"]
