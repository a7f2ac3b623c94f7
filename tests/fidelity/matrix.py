"""Every cell of the matrix is a request that a plain engine answers, and says how kvproxy has to serve it.

Pure data: `test_matrix.py` asks all of it, `page.py` writes docs/fidelity.md of it.
"""

import dataclasses
import enum
from collections.abc import Iterator, Mapping
from typing import Any

from scripts.workshop.live.words import prose

Members = Mapping[str, Any]
NONE: Members = {}


class Served(enum.StrEnum):
    """How a cell is served; its value is the word of the page."""

    LEGS = "two legs"
    WHOLE = "one leg"
    REFUSED = "refused"
    WORDED = "refused, other words"
    """kvproxy refuses it before an engine sees it: the same status and code, in words of its own."""


REFUSALS = (Served.REFUSED, Served.WORDED)


@dataclasses.dataclass(frozen=True)
class Route:
    """A generating route: what every request to it has."""

    name: str
    path: str
    base: Members
    prompt: str
    """The member that is made of text, a new one for each cell."""
    way: str = "text"
    """How it is made: of `Made.how`."""

    def body(self, text: str, members: Members, *, stream: bool) -> dict[str, Any]:
        """A request whose prompt nobody else asks. A member that is a `Made` is made of the text."""
        body = {**self.base, self.prompt: Made(self.way), **members}
        if stream:
            body["stream"] = True
        return {name: value.of(text) if isinstance(value, Made) else value for name, value in body.items()}


@dataclasses.dataclass(frozen=True)
class Made:
    """A member that is made of the text of its cell."""

    how: str

    def of(self, text: str) -> Any:
        """The member's value."""
        ids = [300 + (sum(text.encode()) + 7 * k) % 2000 for k in range(70)]
        made: dict[str, Any] = {
            "text": text,
            "one turn": [{"role": "user", "content": text}],
            "ids": ids,
            "id lists": [ids, ids[5:], ids[10:60]],
            "texts": [text, f"another {text}", f"a third {text}"],
            "one text": [text],
            "one id list": [ids],
            "turns": [
                {"role": "system", "content": text},
                {"role": "user", "content": [{"type": "text", "text": "in parts"}]},
                {"role": "assistant", "content": "an answer"},
                {"role": "user", "content": "and a question"},
            ],
            "items": [
                {"role": "user", "content": [{"type": "input_text", "text": text}]},
                {"role": "user", "content": "and a question"},
            ],
            "blocks": [
                {"role": "user", "content": [{"type": "text", "text": text}]},
                {"role": "assistant", "content": "an answer"},
                {"role": "user", "content": "and a question"},
            ],
            "unfinished": [{"role": "user", "content": text}, {"role": "assistant", "content": "It begins"}],
        }
        return made[self.how]


_GREEDY: Members = {"model": "tiny", "temperature": 0, "max_tokens": 8}
CHAT = Route("chat", "/v1/chat/completions", _GREEDY, "messages", "one turn")
COMPLETIONS = Route("completions", "/v1/completions", _GREEDY, "prompt")
RESPONSES = Route(
    "responses", "/v1/responses", {"model": "tiny", "temperature": 0, "max_output_tokens": 8}, "input"
)
MESSAGES = Route("messages", "/v1/messages", _GREEDY, "messages", "one turn")
ROUTES = (CHAT, COMPLETIONS, RESPONSES, MESSAGES)


@dataclasses.dataclass(frozen=True)
class Feature:
    """What a request asks for: its members on each route that has it, and how it is served."""

    name: str
    chat: Members | None = None
    completions: Members | None = None
    responses: Members | None = None
    messages: Members | None = None
    unary: Served = Served.LEGS
    stream: Served = Served.LEGS
    prompts: int = 1
    """The number of prompts, each of which has a hold of its own."""
    why: str = ""
    """Why it is not served by two legs."""
    unstreamed: str = ""
    """The one route, if there is one, on which engines refuse it in streams."""

    def members(self, route: Route) -> Members | None:
        """The members of a request to `route`; None if the route has no such feature."""
        found: Members | None = getattr(self, route.name)
        return found


def _both(name: str, members: Members, **more: Any) -> Feature:
    return Feature(name, members, members, **more)


_SAMPLED: Members = {"temperature": 0.9, "seed": 17}
_STOPS = list(range(300, 2300))
_SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
_FUNCTION = {"name": "look", "description": "Looks something up.", "parameters": _SCHEMA}
_TOOLS: Members = {"tools": [{"type": "function", "function": _FUNCTION}], "max_tokens": 60}
_CALL = '<tool_call>\n{"name": "look", "arguments": {"ok": true}}\n</tool_call>'
_NAMED = {"type": "function", "function": {"name": "look"}}
_FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": _SCHEMA}}

_ALONE = "for the log probabilities of the prompt the decode engine would compute it again"
_ALONE_OR_NONE = f"{_ALONE}; engines refuse it in streams"
_NOTHING = "there is nothing for a decode engine to add"
_BEAMS = "a beam search makes several sequences, of which one would be handed over; engines refuse streamed completions of it"
_STREAMED = "engines take it in streams only"

_STOP: Members = {"stop": ["e", "a"], "max_tokens": 30}
_ALPHA: Members = {"model": "alpha"}
_SALT: Members = {"cache_salt": "salt"}
_ONE: Members = {"max_tokens": 1}
FEATURES = (
    Feature("plain", NONE, NONE, NONE, NONE),
    Feature("one token", _ONE, _ONE, {"max_output_tokens": 1}, _ONE),
    Feature(
        "instructions, or a system prompt", None, None, {"instructions": "Be brief."}, {"system": "Be brief."}
    ),
    Feature("max_completion_tokens", {"max_completion_tokens": 5}),
    Feature(
        "a conversation, content in parts",
        {"messages": Made("turns")},
        responses={"input": Made("items")},
        messages={"messages": Made("blocks")},
    ),
    Feature("tools, tool_choice none", {**_TOOLS, "tool_choice": "none", "max_tokens": 8}),
    Feature("tools, tool_choice auto", {**_TOOLS, "max_tokens": 8}),
    Feature("a tool is called, tool_choice auto", {**_TOOLS, "structured_outputs": {"choice": [_CALL]}}),
    Feature("tools, tool_choice required", {**_TOOLS, "tool_choice": "required"}),
    Feature("tools, tool_choice named", {**_TOOLS, "tool_choice": _NAMED}),
    _both("response_format json_schema", {"response_format": _FORMAT, "max_tokens": 60}),
    _both(
        "structured_outputs choice", {"structured_outputs": {"choice": ["yes, of course"]}, "max_tokens": 60}
    ),
    _both("response_format json_object", {"response_format": {"type": "json_object"}}),
    Feature(
        "reasoning: include_reasoning, reasoning_effort",
        {"include_reasoning": True, "reasoning_effort": "low"},
    ),
    Feature("logprobs", {"logprobs": True}, {"logprobs": 1}),
    Feature("top_logprobs", {"logprobs": True, "top_logprobs": 3}, {"logprobs": 3}),
    Feature("logprobs, no alternatives", None, {"logprobs": 0}),
    _both(
        "prompt_logprobs",
        {"prompt_logprobs": 1},
        unary=Served.WHOLE,
        stream=Served.REFUSED,
        why=_ALONE_OR_NONE,
    ),
    Feature("echo", None, {"echo": True}),
    Feature(
        "echo, max_tokens 0",
        None,
        {"echo": True, "max_tokens": 0},
        unary=Served.WHOLE,
        stream=Served.WHOLE,
        why=_NOTHING,
    ),
    Feature(
        "echo with logprobs",
        None,
        {"echo": True, "logprobs": 1},
        unary=Served.WHOLE,
        stream=Served.WHOLE,
        why=_ALONE,
    ),
    _both("n", {"n": 2, **_SAMPLED}),
    _both("best_of", {"best_of": 2}),
    _both(
        "use_beam_search",
        {"use_beam_search": True, "n": 2},
        unary=Served.WHOLE,
        stream=Served.WHOLE,
        why=_BEAMS,
        unstreamed="completions",
    ),
    Feature("stop", _STOP, _STOP, None, {"stop_sequences": ["e", "a"], "max_tokens": 30}),
    _both(
        "stop, kept in the answer", {"stop": ["e", "a"], "max_tokens": 30, "include_stop_str_in_output": True}
    ),
    _both("stop_token_ids", {"stop_token_ids": _STOPS, "max_tokens": 30}),
    _both("min_tokens", {"min_tokens": 4, "stop_token_ids": _STOPS, "max_tokens": 30}),
    _both("logit_bias", {"logit_bias": {"400": 100}}),
    _both("allowed_token_ids", {"allowed_token_ids": [400, 401, 402]}),
    _both("bad_words", {"bad_words": ["the"]}),
    _both("penalties", {"presence_penalty": 1.5, "frequency_penalty": 0.5, "repetition_penalty": 1.2}),
    _both("seed", {**_SAMPLED, "top_p": 0.9, "top_k": 50, "min_p": 0.01}),
    Feature("top_p, top_k", None, None, {"top_p": 0.9, "top_k": 50}, {"top_p": 0.9, "top_k": 50}),
    Feature("metadata", None, None, {"metadata": {"a": "b"}}, {"metadata": {"user_id": "somebody"}}),
    Feature("store true, at engines that store nothing", None, None, {"store": True}),
    Feature("store false", None, None, {"store": False}),
    _both(
        "stream_options with usage",
        {"stream_options": {"include_usage": True}},
        unary=Served.WORDED,
        why=_STREAMED,
    ),
    _both(
        "stream_options with usage in each event",
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        unary=Served.WORDED,
        why=_STREAMED,
    ),
    _both(
        "stream_options without usage",
        {"stream_options": {"include_usage": False}},
        unary=Served.WORDED,
        why=_STREAMED,
    ),
    _both("return_token_ids", {"return_token_ids": True}),
    _both("ignore_eos", {"ignore_eos": True, "logit_bias": {"2": 100}}),
    _both("the end at once", {"logit_bias": {"2": 100}}),
    Feature("a prompt of token ids", None, {"prompt": Made("ids")}),
    Feature("a list of one text", None, {"prompt": Made("one text")}),
    Feature("a list of one list of token ids", None, {"prompt": Made("one id list")}),
    # No log probabilities of prompts in lists: they kill a vLLM 0.32 CPU engine that has adapters (bgmv_shrink).
    Feature("a list of texts", None, {"prompt": Made("texts")}, prompts=3),
    Feature(
        "a list of lists of token ids",
        None,
        {"prompt": Made("id lists"), "return_token_ids": True},
        prompts=3,
    ),
    Feature("a list of texts, n", None, {"prompt": Made("texts"), "n": 2, **_SAMPLED}, prompts=3),
    Feature("a list of texts, echo", None, {"prompt": Made("texts"), "echo": True}, prompts=3),
    Feature("a list of texts, logprobs", None, {"prompt": Made("texts"), "logprobs": 2}, prompts=3),
    Feature("LoRA", _ALPHA, _ALPHA, _ALPHA, _ALPHA),
    Feature("cache_salt", _SALT, _SALT, _SALT),
    _both("truncate_prompt_tokens", {"truncate_prompt_tokens": 50}),
    Feature(
        "continue_final_message",
        {"messages": Made("unfinished"), "continue_final_message": True, "add_generation_prompt": False},
    ),
    Feature("add_generation_prompt false", {"add_generation_prompt": False}),
    _both("priority", {"priority": 3}),
    _both("user, request_id", {"user": "somebody", "request_id": "named-by-the-client"}),
    _both("members that nobody knows", {"no_such_member": [1, {"a": None}]}),
    _both("skip_special_tokens false", {"skip_special_tokens": False}),
    # Refusals: of the routes' own rules, in the engine's words.
    _both("a wrong type", {"max_tokens": "many"}, unary=Served.WORDED, stream=Served.WORDED, why="no number"),
    _both(
        "a value out of range",
        {"temperature": -1},
        unary=Served.REFUSED,
        stream=Served.REFUSED,
        why="out of range",
    ),
    _both(
        "an unknown model",
        {"model": "no-such-model"},
        unary=Served.WORDED,
        stream=Served.WORDED,
        why="not served",
    ),
    Feature(
        "suffix",
        None,
        {"suffix": "the end"},
        unary=Served.REFUSED,
        stream=Served.REFUSED,
        why="not of this model",
    ),
)


@dataclasses.dataclass(frozen=True)
class Other:
    """What is not a plain engine's, and why."""

    member: str
    """The end of the member's path."""
    where: str
    why: str


_GIVEN = (
    "it is what the answering engine added to its cache: 0 at a decode engine, which was given the blocks"
)
CREATED = {
    "chat": (Other("usage.prompt_tokens_details.created_cache_tokens", "chats by two legs", _GIVEN),),
    "responses": (Other("usage.input_tokens_details.cache_write_tokens", "responses by two legs", _GIVEN),),
    "messages": (
        Other("usage.cache_creation_input_tokens", "messages by two legs", _GIVEN),
        Other(
            "usage.input_tokens",
            "messages by two legs",
            "vLLM takes off what it added to its cache; the two together are a plain engine's",
        ),
    ),
}
OF_LISTS = Other(
    "usage.prompt_tokens_details.cached_tokens",
    "lists of several prompts",
    "kvproxy adds up the cached tokens of all prompts, of which a plain engine tells the last one's",
)
OTHERS = (*(other for others in CREATED.values() for other in others), OF_LISTS)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell."""

    route: Route
    feature: Feature
    stream: bool

    @property
    def served(self) -> Served:
        """How it is served."""
        if self.stream and self.feature.unstreamed == self.route.name:
            return Served.REFUSED
        return self.feature.stream if self.stream else self.feature.unary

    @property
    def name(self) -> str:
        """What it is called in a test's name."""
        return f"{self.route.name}-{'stream' if self.stream else 'unary'}-{self.feature.name}"

    @property
    def others(self) -> tuple[Other, ...]:
        """What is not a plain engine's in its answer."""
        if self.served is not Served.LEGS:
            return ()
        return (OF_LISTS,) if self.feature.prompts > 1 else CREATED.get(self.route.name, ())

    @property
    def body(self) -> dict[str, Any]:
        """The request."""
        members = self.feature.members(self.route)
        assert members is not None
        return self.route.body(prose(60, self.name), members, stream=self.stream)


def cells() -> Iterator[Cell]:
    """All of them."""
    for route in ROUTES:
        for feature in FEATURES:
            if feature.members(route) is not None:
                yield from (Cell(route, feature, stream) for stream in (False, True))
