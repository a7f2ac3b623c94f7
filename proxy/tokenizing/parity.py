"""The tokenizer in this process is used for a kind of prompt only where it has agreed with the engines about
that kind.

Each engine that comes up is asked the same awkward questions. A kind that an engine renders differently is
rendered by engines from then on, until that engine is gone.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from proxy.logs import quoted

log = logging.getLogger(__name__)

_AWKWARD = "It's naïve: e\u0301 ﬁ 漢字 한국어 العربية 👩‍👩‍👧\r\n\n  1234 a  b\tc.\u00a0"
_SYSTEM = {"role": "system", "content": "You are brief.\n"}
_HELLO = {"role": "user", "content": " Hello "}
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'The weather in a "city" <&>',
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]
_CALLING = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "call_123456",
            "type": "function",
            "function": {"name": "weather", "arguments": '{"city": "Zürich"}'},
        }
    ],
}
_PARTS = [
    " one ",
    {"type": "input_text", "text": "two\n"},
    {"type": "output_text", "text": "three"},
    {"type": "refusal", "refusal": "no"},
    {"type": "thinking", "thinking": "so"},
    {"type": "text", "text": "four"},
]
_RESULT = {"role": "tool", "tool_call_id": "call_123456", "content": "sunny"}


def questions(special: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """The questions of each kind; `special`: names of special tokens, which a text may contain as well."""
    written = "a" + " b".join(special) + "c"
    answer = {"role": "assistant", "content": f"Yes, {_AWKWARD}"}
    chats = (
        [_HELLO],
        [_SYSTEM, _HELLO, answer, {"role": "user", "content": _AWKWARD}],
        [{"role": "user", "content": written}],
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": [{"type": "text", "text": text} for text in ("one", "", "two")]}],
    )
    completions: list[dict[str, Any]] = [{"prompt": text} for text in ("Hello", _AWKWARD, written, "", " ")]
    return {
        "completion": [*completions, {"prompt": _AWKWARD, "add_special_tokens": False}],
        "chat": [
            *({"messages": messages} for messages in chats),
            {"messages": [_HELLO], "add_generation_prompt": False},
            {"messages": [_HELLO], "add_special_tokens": True},
        ],
        "tools": [
            {"messages": [_HELLO], "tools": _TOOLS},
            {"messages": [_HELLO, _CALLING, _RESULT], "tools": _TOOLS},
            {"messages": [_HELLO, _CALLING, _RESULT]},
        ],
        "text parts": [
            {"messages": [{"role": role, "content": _PARTS}, _HELLO]}
            for role in ("system", "user", "assistant")
        ],
        "documents": [_variables(documents=[{"title": "One", "text": _AWKWARD}])],
        "reasoning_effort": [_variables(reasoning_effort="low", enable_thinking=True)],
        "chat_template_kwargs": [_variables(enable_thinking=False, thinking=True)],
        "continue_final_message": [
            {
                "messages": [_HELLO, {"role": "assistant", "content": "It is "}],
                "continue_final_message": True,
                "add_generation_prompt": False,
            }
        ],
        "developer": [{"messages": [{"role": "developer", "content": "Be brief."}, _SYSTEM, _HELLO]}],
        "reasoning": [{"messages": [_HELLO, answer | {"reasoning": "so"}, _HELLO, answer, _HELLO]}],
    }


def _variables(**variables: Any) -> dict[str, Any]:
    return {"messages": [_SYSTEM, _HELLO], "chat_template_kwargs": variables}


KINDS = frozenset(questions(()))
"""All kinds of questions, which prompts may need agreement about."""


class Difference(NamedTuple):
    """Where an engine's tokens first differ from those here; None for an end, or if one of both refuses."""

    at: int
    ours: int | None
    theirs: int | None


class Findings(msgspec.Struct):
    """What one engine's answers for one model show."""

    off: dict[str, Difference]
    """The kinds that the engine renders differently."""


def difference(ours: "list[int] | None", theirs: "list[int] | None") -> Difference | None:
    """How an engine's answer differs from the one here; None if it does not, or if there is none here."""
    theirs = theirs or []  # an engine that refuses an empty prompt agrees that it is empty
    if ours is None or ours == theirs:
        return None
    at = next(
        (n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
    )
    return Difference(at, _item(ours, at), _item(theirs, at))


def _item(tokens: list[int], at: int) -> int | None:
    return tokens[at] if at < len(tokens) else None


class Parity:
    """What all engines have shown, by engine and model."""

    def __init__(self) -> None:
        self._findings: dict[tuple[str, str], Findings] = {}
        self._agreed: dict[tuple[str, frozenset[str]], bool] = {}
        """What follows from the findings, for each model that was asked about and each set of kinds."""
        self._warned: set[str] = set()

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._findings

    def keep(self, keys: set[tuple[str, str]]) -> None:
        """Forget all other engines, which are gone or down: another may come up at their address."""
        self._findings = {key: found for key, found in self._findings.items() if key in keys}
        self._agreed.clear()

    def learn(self, instance: str, model: str, off: Mapping[str, Difference]) -> None:
        """Take what an engine showed; the first difference of a kind is logged."""
        self._findings[instance, model] = Findings(dict(off))
        self._agreed.clear()
        for kind, found in off.items():
            if kind not in self._warned:
                self._warned.add(kind)
                log.warning(
                    "%s renders %s prompts of %s otherwise than the tokenizer here does (token %d: %s here, "
                    "%s there): engines are asked about them",
                    instance,
                    kind,
                    quoted(model),
                    found.at,
                    _word(found.ours),
                    _word(found.theirs),
                )

    def agreed(self, model: str, needs: frozenset[str]) -> bool:
        """Whether some engine was asked about the model, and no engine differs in what is needed."""
        agreed = self._agreed.get((model, needs))
        if agreed is None:
            if not any(asked == model for _, asked in self._findings):
                return False  # clients name models: such a one is not remembered
            agreed = not any(needs & found.off.keys() for found in self._findings.values())
            self._agreed[model, needs] = agreed
        return agreed

    @property
    def off(self) -> dict[str, str]:
        """The kinds that engines render, each with an engine that differs in it."""
        return {kind: instance for (instance, _), found in self._findings.items() for kind in found.off}

    @property
    def checked(self) -> list[str]:
        """The engines that were asked."""
        return sorted({instance for instance, _ in self._findings})


def _word(token: int | None) -> str:
    return "none" if token is None else str(token)
