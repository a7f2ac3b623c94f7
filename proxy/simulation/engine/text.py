"""Invariant: the next token depends only on what the KV says, the choice's salt and the vocabulary.

Two engines that hold the same KV say the same, so comparing a prefill/decode answer with a plain one compares
what they *hold*. The second half of the file is the other end of the engine: tokens become text, piece by
piece, and stop strings are found without ever sending half of one.
"""

import codecs
from collections.abc import Sequence

from proxy.simulation.engine.request import Sampling
from proxy.simulation.engine.tokenizer import Tokenizer

_MASK = (1 << 64) - 1


def mix(value: int) -> int:
    """Scatter the bits of a number (the finaliser of splitmix64, which is in the public domain)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


class Voice:
    """Chooses tokens. With `eos_every` N an answer ends by itself after N tokens on average, 0 never."""

    def __init__(self, vocabulary: Sequence[int], eos: int, eos_every: int = 0) -> None:
        self._vocabulary = vocabulary
        self.eos = eos
        self._eos_every = eos_every

    def next_token(self, state: int, sampling: Sampling, generated: int) -> int:
        """The token after a context; `generated` tokens were chosen before it."""
        if sampling.script:
            return sampling.script[generated] if generated < len(sampling.script) else self.eos
        dice = mix(state ^ sampling.salt)
        may_end = not sampling.ignore_eos and generated >= sampling.min_tokens
        if sampling.favourite is not None and (may_end or sampling.favourite != self.eos):
            return sampling.favourite
        if may_end and self._eos_every and mix(dice) % self._eos_every == 0:
            return self.eos
        choices = sampling.allowed_token_ids or self._vocabulary
        return choices[dice % len(choices)]

    def logprob(self, state: int, rank: int) -> float:
        """A plausible log probability of the token with that rank; the chosen token has rank 1."""
        return -0.25 * rank - (mix(state) % 1000) / 1000


class OutputText:
    """The text of one choice, which grows by tokens and ends at the first stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), *, keep_stop: bool = False) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._keep_stop = keep_stop
        self._held_back = max((len(s) for s in stop), default=1) - 1 if stop and not keep_stop else 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._sent = 0
        self.text = ""

    def add(self, token: int, *, check_stop: bool = True) -> str | None:
        """Append a token's text. Returns the stop string that ends the text now, if any does."""
        before = len(self.text)
        self.text += self._decoder.decode(self._tokenizer.token_bytes(token))
        if not self._stop or not check_stop:
            return None
        found = [(i, s) for s in self._stop if (i := self.text.find(s, max(before - len(s) + 1, 0))) >= 0]
        if not found:
            return None
        index, stop = min(found)
        self.text = self.text[: index + len(stop) if self._keep_stop else index]
        return stop

    def finish(self, *, stopped: bool) -> None:
        """There are no more tokens: an incomplete character becomes a replacement mark, unless a stop string
        cut it off.
        """
        if not stopped:
            self.text += self._decoder.decode(b"", final=True)
        self._held_back = 0

    def delta(self) -> str:
        """The text that may be sent and was not yet. Text that could begin a stop string waits."""
        end = max(len(self.text) - self._held_back, self._sent)
        piece, self._sent = self.text[self._sent : end], end
        return piece
