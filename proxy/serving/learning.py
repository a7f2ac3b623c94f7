"""What an engine reports of a prompt is compared once with what kvproxy predicted of it.

The prompt's token count shows whether kvproxy tokenizes prompts of that kind correctly, the cached tokens
whether the index was right, and the engine id which process of the engine answered.

The truth meter (`caches/accuracy.py`) is fed from here and is no consumer of happenings: a comparison belongs
to its attempt, which opens it as the leg is sent and ends it, and decisions depend on its result. It is
settled in the turn in which the engine's report was read; a consumer may fail without harm, this may not.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from proxy.fleet import Fleet
from proxy.happenings import CountsDiffered, Tell
from proxy.request.dialects import Dialect, Usage
from proxy.serving.exchange import Reply
from proxy.serving.placed import Placed
from proxy.serving.ports import Tokenizer, Watch

MAX_READ_BYTES = 64 << 10
"""The largest whole answer that is read for its usage where one instance serves a request; it takes
0.02 ms."""


class Learnt(NamedTuple):
    """What one leg showed, in tokens; None where nothing was predicted, or the engine does not report it."""

    prompt_tokens: int | None
    """The engine's count of the prompt."""
    predicted: int | None
    """The cached tokens that the index predicted; None if the engine counted the prompt otherwise."""
    reported: int | None
    """The cached tokens that the engine reports, of the part of the prompt that the index was asked about."""


class Learning:
    """Compares each answered leg that computed a prompt with its prediction."""

    def __init__(
        self,
        fleet: Fleet,
        tokenizer: Tokenizer,
        watch: Watch,
        tell: Tell,
        clock: Callable[[], float],
    ) -> None:
        self._fleet = fleet
        self._tokenizer = tokenizer
        self._watch = watch
        self._tell = tell
        self._clock = clock

    def prefilled(self, placed: Placed) -> Learnt:
        """A prefill leg was answered; its custody already has the answer (`placed.custody.handoff`)."""
        handoff, chosen, comparison = placed.custody.handoff, placed.prefill, placed.comparison
        predicted = chosen.cached_tokens
        if self._differs(placed, handoff.prompt_tokens):
            predicted = None
        if comparison is not None:
            differ = self._tokenizer.is_distrusted(placed.kind)
            comparison.answered(handoff.cached_tokens, self._clock(), tokens_differ=differ)
        reported = handoff.cached_tokens
        if placed.question.prefix_only and comparison is not None and reported is not None:
            reported = comparison.reported * comparison.block_size  # nothing was predicted of what follows
        instance = self._fleet.get(chosen.instance)
        if instance is not None and handoff.engine_id is not None:
            self._watch.process_seen(instance, chosen.rank, handoff.engine_id)
        return Learnt(handoff.prompt_tokens, predicted, reported)

    def served_whole(self, placed: Placed, reply: Reply, dialect: Dialect) -> None:
        """One instance served a whole request. Its usage is read from a whole answer, not from a stream."""
        if placed.comparison is None:
            return
        usage = Usage()
        if isinstance(reply.body, bytes) and len(reply.body) <= MAX_READ_BYTES:
            with suppress(ValueError):
                usage = dialect.usage(reply.body)
        differ = self._differs(placed, usage.prompt_tokens)
        placed.comparison.answered(usage.cached_tokens, self._clock(), tokens_differ=differ)

    def _differs(self, placed: Placed, prompt_tokens: int | None) -> bool:
        """Whether the engine's token count differs from ours; if so, prompts of this kind are distrusted."""
        ours = placed.question.prompt_tokens
        if ours is None or prompt_tokens is None or ours == prompt_tokens:
            return False
        self._tell(CountsDiffered(placed.prefill.instance))
        self._tokenizer.distrust(placed.kind)
        return True
