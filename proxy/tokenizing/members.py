"""A member of a request counts for its prompt only if an engine may read it so: what no engine knows shapes
nothing.

Each member of vLLM 0.32's request classes (`ChatCompletionRequest`, `CompletionRequest`) has its place: those
that shape a prompt in the dialect's `prompt_members`, those that do so in no dialect and those that never do
here. vLLM also takes any other member, and ignores it. A later release may know more: its own schema says so,
and a member that cannot be placed makes the prompt unknown.
"""

import functools
import re
from collections import OrderedDict
from collections.abc import Callable, Collection

import msgspec

from proxy.request.body import Body
from proxy.request.dialects import Dialect

TRUNCATING = frozenset({"truncate_prompt_tokens", "truncation_side"})
"""Members that shorten the prompt after it was tokenized. /tokenize knows nothing of them."""

_NEUTRAL = frozenset(
    """
    model stream stream_options max_tokens max_completion_tokens min_tokens n best_of temperature top_p top_k
    min_p
    seed stop stop_token_ids include_stop_str_in_output ignore_eos presence_penalty frequency_penalty
    repetition_penalty length_penalty logit_bias logprobs top_logprobs prompt_logprobs logprob_token_ids
    allowed_token_ids bad_words response_format structured_outputs parallel_tool_calls skip_special_tokens
    spaces_between_special_tokens echo priority session_id return_tokens_as_token_ids return_token_ids
    return_token_offsets return_prompt_text include_reasoning thinking_token_budget repetition_detection
    stream_interval watermarking routed_experts_prompt_start mm_payload return_mm_kwargs
    vllm_xargs cache_salt use_beam_search request_id kv_transfer_params ec_transfer_params
    user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention
    """.split()  # noqa: SIM905  # a list of these is a page long
)
"""Members that shape what is generated, how it is reported or who asked, never the prompt. vLLM ignores the
last row altogether; OpenAI clients send it."""

_NAMES = 64
"""The number of names, of members that no engine knows, by which kinds are distinguished: clients choose
them. All other names count as one more."""
_NAMES_WAITING = 1024
"""The number of further names that are remembered until they come again: a name in every request then gets a
place among the `_NAMES`; one that is made up anew each time never does, so its prompts stay of one kind that
can be distrusted."""
_NAMES_OF_A_KIND = 8
"""A request with more of these names is of one kind with all such requests."""
_OTHER, _MANY = "another", "many"
_NAMES_SHOWN = 32
_NAME_CHARACTERS = 48
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*").fullmatch
"""Matches what looks like a member's name and may be shown; anything else could be part of a prompt that was
sent in the wrong place."""

Knows = Callable[[Dialect, str], bool]
"""Whether some engine's own schema has a member of that name."""


class MemberNames:
    """The names chosen by clients that kinds tell apart: those used last, bounded in number and length."""

    def __init__(self) -> None:
        self._apart: OrderedDict[str, None] = OrderedDict()
        self._waiting: OrderedDict[str, None] = OrderedDict()

    def apart(self, names: Collection[str]) -> tuple[str, ...]:
        """The names, sorted; one word for all that are not told apart, or for all if they are too long."""
        if len(names) > _NAMES_OF_A_KIND:
            return (_MANY,)
        return tuple(sorted({self._one(name) for name in names}))

    def _one(self, name: str) -> str:
        if len(name) > _NAME_CHARACTERS or not _PLAIN(name):
            return _OTHER
        if name not in self._apart and len(self._apart) >= _NAMES:
            if name not in self._waiting:
                _use(self._waiting, name, _NAMES_WAITING)
                return _OTHER
            del self._waiting[name]
        _use(self._apart, name, _NAMES)
        return name


def _use(names: OrderedDict[str, None], name: str, most: int) -> None:
    """Put a name in as the last one used; the one used longest ago makes room."""
    names[name] = None
    names.move_to_end(name)
    if len(names) > most:
        names.popitem(last=False)


def shown(names: Collection[str]) -> tuple[str, ...]:
    """Names chosen by a client, sorted, as they may be shown: plain ones, cut if they are long, and not too
    many.
    """
    plain = sorted(name for name in names if _PLAIN(name))
    fitting = [name if len(name) <= _NAME_CHARACTERS else f"{name[:_NAME_CHARACTERS]}..." for name in plain]
    if len(fitting) > _NAMES_SHOWN:
        fitting[_NAMES_SHOWN:] = [f"{len(plain) - _NAMES_SHOWN} more"]
    return (*fitting, _OTHER) if len(plain) < len(names) else tuple(fitting)


class Members(msgspec.Struct, frozen=True):
    """What the members of a request are to its prompt."""

    shaping: frozenset[str]
    """Members that make the prompt in a known way."""
    rarely: frozenset[str]
    """Members that make the prompt only at few engines."""
    unknown: tuple[str, ...]
    """Members that make the prompt, or may, in a way that is not known: names that are known here, or in an
    engine's schema."""
    ignored: tuple[str, ...]
    """Members that no engine is known to know: their names as they may be shown."""
    apart: tuple[str, ...]
    """The names of these as far as kinds tell them apart."""


NO_MEMBERS = Members(frozenset(), frozenset(), (), (), ())


def members_of(body: Body, dialect: Dialect, knows: Knows, names: MemberNames) -> Members:
    """Sort the members of a request. A member that is null counts as absent."""
    members = dialect.prompt_members
    given = frozenset(
        [
            name
            for name in body.names()
            if (name not in _NEUTRAL or name in members.rarely) and body.gives(name)
        ]
    )
    known = _known(dialect)
    if given <= known:
        return _of_known(dialect, given)
    rest = given - known
    unknown = {name for name in rest if name in members.unknowable or knows(dialect, name)}
    ignored = rest - unknown
    return msgspec.structs.replace(
        _of_known(dialect, given - rest),
        unknown=tuple(sorted(unknown)),
        ignored=shown(ignored),
        apart=names.apart(ignored),
    )


@functools.lru_cache
def _known(dialect: Dialect) -> frozenset[str]:
    members = dialect.prompt_members
    return members.asked | members.variables | members.rarely | TRUNCATING


@functools.lru_cache(maxsize=256)  # requests of one client have the same members again and again
def _of_known(dialect: Dialect, given: frozenset[str]) -> Members:
    rarely = dialect.prompt_members.rarely
    return Members(given - rarely, given & rarely, (), (), ())


@functools.lru_cache(maxsize=256)
def kind_of(name: str, shaping: frozenset[str], rarely: frozenset[str], apart: tuple[str, ...]) -> str:
    """The kind of prompts of a dialect that are made in the same way; there is a bounded number of kinds."""
    made = f"{name}({','.join(sorted(shaping))})"
    if rarely:
        made += f" with {','.join(sorted(rarely))}"
    return made + f" beside {','.join(sorted(apart))}" if apart else made
