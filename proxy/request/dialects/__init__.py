"""A generating route is one file here: what its requests and its answers are made of is known to its dialect.

Others know the members that all of vLLM's routes share (`model`, `priority`, `cache_salt`, transfer params),
and `serving.lists` puts answers to a list of completions together.

To add one, write a `Dialect` and name it in DIALECTS, or give it to `create_app`.
"""

from proxy.request.dialects.base import Dialect, Failure, PromptMembers, Shape, Usage
from proxy.request.dialects.chat import Chat
from proxy.request.dialects.completions import Completions

CHAT = Chat()
COMPLETIONS = Completions()

DIALECTS: tuple[Dialect, ...] = (CHAT, COMPLETIONS)
"""What is served unless others are given."""

TOKENIZED: tuple[Dialect, ...] = (CHAT, COMPLETIONS)
"""The dialects that an engine's `/tokenize` knows; `Dialect.prompt` puts others in their words."""

__all__ = [
    "CHAT",
    "COMPLETIONS",
    "DIALECTS",
    "TOKENIZED",
    "Chat",
    "Completions",
    "Dialect",
    "Failure",
    "PromptMembers",
    "Shape",
    "Usage",
]
