"""A generating route is one file here: its dialect knows what its requests and its answers are made of.

Other rooms know the members that all of vLLM's routes share (`model`, `priority`, `cache_salt`, transfer
params), and `serving.lists` puts answers to a list of completions together.

To add a route, write a `Dialect` and name it in DIALECTS, or give it to `create_app`.
"""

from proxy.request.dialects.base import UNAUTHORIZED, Dialect, Failure, PromptMembers, Shape, Usage
from proxy.request.dialects.chat import Chat
from proxy.request.dialects.completions import Completions
from proxy.request.dialects.generate import Generate
from proxy.request.dialects.messages import Messages
from proxy.request.dialects.responses import Responses

CHAT = Chat()
COMPLETIONS = Completions()
GENERATE = Generate(COMPLETIONS)
MESSAGES = Messages(CHAT)
RESPONSES = Responses(CHAT)

DIALECTS: tuple[Dialect, ...] = (CHAT, COMPLETIONS, RESPONSES, MESSAGES, GENERATE)
"""The dialects that are served unless others are given."""

TOKENIZED: tuple[Dialect, ...] = (CHAT, COMPLETIONS)
"""The dialects that an engine's `/tokenize` knows; `Dialect.prompt` translates others into them."""

__all__ = [
    "CHAT",
    "COMPLETIONS",
    "DIALECTS",
    "GENERATE",
    "MESSAGES",
    "RESPONSES",
    "TOKENIZED",
    "UNAUTHORIZED",
    "Chat",
    "Completions",
    "Dialect",
    "Failure",
    "Generate",
    "Messages",
    "PromptMembers",
    "Responses",
    "Shape",
    "Usage",
]
