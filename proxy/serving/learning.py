"""What an engine says of a prompt it computed is compared once with what kvproxy thought of it.

Its count of the prompt's tokens tells whether prompts of that kind can be trusted, its cached tokens whether
the index was right, and its name which process of the engine answered.
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
"""Of the answer of an engine that serves a request whole: reading one for its usage takes 0.02 ms."""


class Learnt(NamedTuple):
    """What became of a prediction; None where it was not known, or the engine does not say."""

    prompt_tokens: int | None
    """As the engine counted them."""
    predicted: int | None
    """Cached tokens by the index, of a prompt that both counted alike."""
    reported: int | None
    """Cached tokens by the engine, of what the index was asked for."""


class Learning:
    """Told of every leg that computed a prompt and was answered."""

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
        """A prefill leg was answered, and its hold has the answer."""
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
        """One instance served a request; its usage is read from a whole answer, a stream goes by unread."""
        if placed.comparison is None:
            return
        told = Usage()
        if isinstance(reply.body, bytes) and len(reply.body) <= MAX_READ_BYTES:
            with suppress(ValueError):
                told = dialect.usage(reply.body)
        differ = self._differs(placed, told.prompt_tokens)
        placed.comparison.answered(told.cached_tokens, self._clock(), tokens_differ=differ)

    def _differs(self, placed: Placed, prompt_tokens: int | None) -> bool:
        """Whether the engine counted the prompt otherwise; prompts of its kind are distrusted then."""
        ours = placed.question.prompt_tokens
        if ours is None or prompt_tokens is None or ours == prompt_tokens:
            return False
        self._tell(CountsDiffered(placed.prefill.instance))
        self._tokenizer.distrust(placed.kind)
        return True
