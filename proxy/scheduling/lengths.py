"""A leg goes only to an instance whose context holds it, and a request that fits nowhere is refused in vLLM's
words before anything is computed.

An engine's context (`max_model_len`) holds the prompt and at least one token of the answer. Engines refuse a
client's limit on the answer that is larger than the context. A limit that merely exceeds what the prompt
leaves is silently reduced by the engine; so such a request goes to a context that holds all of it, if there
is one.
"""

import math
from collections.abc import Collection, Iterable

from proxy.errors import BadRequestError
from proxy.fleet import Fleet, Instance
from proxy.phases import Phase, Role
from proxy.scheduling.question import Question


class Need:
    """The context that the legs of one request need, in tokens."""

    def __init__(
        self,
        fleet: Fleet,
        model: str,
        prompt: int | None,
        answer: int,
        limited_by: str | None,
        *,
        whole: bool,
    ) -> None:
        """`prompt`: its length, None if unknown; `answer`: how long the answer may become; `limited_by`: the
        member of the request that says so, None if it does not; `whole`: one instance serves it all.
        """
        self._fleet = fleet
        self._model = model
        self._prompt = prompt
        self._answer = answer
        self._limited_by = limited_by
        self._whole = whole
        self._prefill = 0 if prompt is None else prompt + 1
        self._least = max(self._prefill, answer if limited_by else 0)
        """A decode engine with a shorter context refuses the request."""
        self._wanted = _wanted_tokens(prompt, answer, limited_by)
        self._decode: float | None = None

    def fits(self, instance: Instance) -> bool:
        """Whether the instance's context holds the leg that it would get."""
        length = instance.max_model_len
        if length >= self._wanted:
            return True
        if instance.role is Role.PREFILL:
            return length >= self._prefill
        if self._decode is None:
            # If no engine holds all that is wanted, those do that hold as much as any.
            self._decode = max(self._least, min(self._wanted, self._longest_answer(_known(self._listing()))))
        return length >= self._decode

    def refusal(self) -> BadRequestError | None:
        """The error that vLLM gives for a request that no instance, up or not, can hold; None if one may."""
        instances = [i for i in self._fleet if not i.model_cards or self._model in i.models]
        longest = self._longest_answer(instances)
        if not instances or longest >= self._least:
            return None
        most = longest_context(instances, alone=self._whole)
        answerable = max((i.max_model_len for i in instances if i.takes(Phase.DECODE)), default=math.inf)
        if self._limited_by and self._answer > (longest if longest > 0 else answerable):
            limit = longest if longest > 0 else answerable
            return _refused(
                f"{self._limited_by}={self._answer} cannot be greater than max_model_len={limit}. "
                "Please request fewer output tokens.",
                self._limited_by,
                self._answer,
            )
        if self._prompt is None or most is None or self._prompt < most:
            return None
        if self._prompt == most:
            return _refused("max_tokens must be at least 1, got 0.", "max_tokens", 0)
        return too_many_tokens(most, self._prompt)

    def of_its_kind(self) -> tuple[float, float]:
        """The shortest contexts in the fleet that hold its legs, prefill and decode. Requests with the same
        ones fit into the same instances.
        """
        lengths = {instance.max_model_len for instance in self._fleet}
        return (
            min((n for n in lengths if n >= self._prefill), default=math.inf),
            min((n for n in lengths if n >= self._wanted), default=math.inf),
        )

    def _listing(self) -> list[Instance]:
        return [instance for instance in self._fleet if self._model in instance.models]

    def _longest_answer(self, instances: Iterable[Instance]) -> float:
        """The longest context of the instances that could answer the request; 0 if there is none."""
        several = [i for i in instances if i.max_model_len >= self._prefill]
        answering = [i for i in several if i.takes(Phase.DECODE)]
        if not self._whole and not any(i.role is Role.PREFILL for i in several):
            answering = [i for i in answering if i.role is Role.BOTH]
        return max((i.max_model_len for i in answering), default=0)


def _wanted_tokens(prompt: int | None, answer: int, limited_by: str | None) -> int:
    if prompt is None:
        return answer if limited_by else 0
    return prompt + max(1, answer)


def wanted_tokens(question: Question) -> int:
    """A context of this length holds any leg of a request."""
    return _wanted_tokens(question.prompt_tokens, question.answer_tokens, question.limited_by)


def need_of(fleet: Fleet, question: Question) -> Need:
    """The `Need` of a question."""
    return Need(
        fleet,
        question.model,
        question.prompt_tokens,
        question.answer_tokens,
        question.limited_by,
        whole=question.whole,
    )


def longest_context(instances: Collection[Instance], *, alone: bool = False) -> float | None:
    """The longest context a request can have: that of an instance that does both, or the shorter one of a
    prefill and a decode instance. None if no instances can serve a request.

    `alone`: decode instances serve requests by themselves.
    """
    longest = {role: max((i.max_model_len for i in instances if i.role is role), default=0) for role in Role}
    decode = max(longest[Role.DECODE], longest[Role.BOTH])
    if alone:
        return decode or None
    return max(longest[Role.BOTH], min(longest[Role.PREFILL], decode)) or None


def too_many_tokens(context: float, tokens: int) -> BadRequestError:
    """The error that vLLM gives for a prompt longer than the context. In a text it counts only one token too
    many.
    """
    least = "at least " if tokens == context + 1 else ""
    return _refused(
        f"This model's maximum context length is {context} tokens. However, your prompt contains {least}"
        f"{tokens} input tokens, which exceeds this limit even without any output tokens. Please reduce the "
        "length of the input prompt.",
        "input_tokens",
        tokens,
    )


def too_many_characters(context: int, characters: int, characters_a_token: int) -> BadRequestError:
    """The error that vLLM gives for a text with more characters than can fit, before it counts tokens."""
    return _refused(
        f"This model's maximum context length is {context} tokens. However, your prompt contains "
        f"{characters} characters (more than {context * characters_a_token} characters, which is the upper "
        f"bound for {context} input tokens). Please reduce the length of the input prompt.",
        "input_text",
        characters,
    )


def _known(instances: Iterable[Instance]) -> list[Instance]:
    return [instance for instance in instances if instance.model_cards]


def _refused(message: str, param: str, value: int) -> BadRequestError:
    return BadRequestError(f"{message} (parameter={param}, value={value})", param=param, reason="too_long")
