"""What a rank is predicted to do is the sum of its running claims at any moment, and nothing once they have
ended.

Prompts are computed one after the other, in the order of their claims. The one at the head is under way since
it came to the head; so much of it as has passed since then counts as done, but no other: how far an engine
really is shows only in the first tokens that it sends. Where these are not seen, because the answer comes as
a whole, a prompt counts as computed when it should be, and when a later one is.

An answer takes its place beside the others from its claim on, since it will run there; its context grows only
from its first token on.

Times are seconds of any one monotonic clock, passed in. Each verb and each question takes constant time.
"""

import math
from collections import deque


class Answer:
    """The answer of a leg that is generated, or is about to be; or its answers."""

    __slots__ = ("began_s", "prompt_tokens", "sequences")

    def __init__(self, prompt_tokens: int, sequences: int) -> None:
        """`prompt_tokens`: behind all of them together."""
        self.prompt_tokens = prompt_tokens
        self.sequences = sequences
        self.began_s: float | None = None
        """When its first token came; None before."""


class Computing:
    """A prompt that is to be computed."""

    __slots__ = ("answer", "over", "told", "work_ms")

    def __init__(self, work_ms: float, answer: Answer | None, *, told: bool) -> None:
        """`work_ms`: how long that is predicted to take alone; `answer`: what the same leg generates then;
        `told`: whether its end will be seen.
        """
        self.work_ms = work_ms
        self.answer = answer
        self.told = told
        self.over = False


class Work:
    """What is predicted of one rank."""

    __slots__ = (
        "_began_sum_s",
        "_generating",
        "_queue",
        "_since_s",
        "_work_ms",
        "prompt_tokens",
        "streams",
    )

    def __init__(self) -> None:
        self._queue: deque[Computing] = deque()
        self._work_ms = 0.0
        """Of all in the queue that are not over."""
        self._since_s = 0.0
        """Since when the head of the queue is under way."""
        self.streams = 0
        """How many answers are generated, or are about to be."""
        self.prompt_tokens = 0
        """The prompts' tokens of these."""
        self._generating = 0
        """How many of these have begun."""
        self._began_sum_s = 0.0
        """When these began, added up."""

    # -- prompts ------------------------------------------------------------------------------------------

    def computes(
        self, work_ms: float, now_s: float, *, told: bool = True, answer: Answer | None = None
    ) -> Computing:
        """A prompt is to be computed from now on, and then `answer` generated behind it."""
        self._advance(now_s)
        if not self._queue:
            self._since_s = now_s
        computing = Computing(work_ms, answer, told=told)
        self._queue.append(computing)
        self._work_ms += work_ms
        return computing

    def computed(self, computing: Computing, now_s: float) -> None:
        """A prompt is computed, so those before it whose end nobody sees are as well. A second call does
        nothing.
        """
        if computing.over:
            return
        self._advance(now_s)
        while (head := self._queue[0]) is not computing and not head.told:
            self._pop()
            self._since_s = now_s
            self._answers(head, now_s)
        self._remove(computing, now_s)
        self._answers(computing, now_s)

    def left(self, computing: Computing, now_s: float) -> None:
        """A prompt will not be computed, or nobody has seen whether it was. A second call does nothing."""
        self._advance(now_s)
        if not computing.over:
            self._remove(computing, now_s)

    def wait_ms(self, now_s: float) -> float:
        """How long until all of them are computed, as far as is predicted."""
        queue = self._queue
        if not queue:
            return 0.0
        if not queue[0].told:
            self._advance(now_s)
            if not queue:
                return 0.0
        return max(self._work_ms - min(1000 * (now_s - self._since_s), queue[0].work_ms), 0.0)

    @property
    def waiting(self) -> int:
        """How many prompts are in the queue, at most."""
        return len(self._queue)

    def _advance(self, now_s: float) -> None:
        """Prompts whose end nobody sees are over when they should be."""
        queue = self._queue
        while queue and not (head := queue[0]).told:
            end_s = self._since_s + head.work_ms / 1000
            if end_s > now_s:
                break
            self._pop()
            self._since_s = end_s
            self._answers(head, end_s)
        if not queue:
            self._work_ms = 0.0

    def _answers(self, computing: Computing, at_s: float) -> None:
        if computing.answer is not None:
            self.generates(computing.answer, at_s)

    def _remove(self, computing: Computing, now_s: float) -> None:
        queue = self._queue
        if queue[0] is computing:
            self._pop()
            self._since_s = now_s
        else:
            computing.over = True
            self._work_ms -= computing.work_ms
        if not queue:
            self._work_ms = 0.0

    def _pop(self) -> None:
        """The head is over; so the next that is not comes to the head."""
        queue = self._queue
        head = queue.popleft()
        head.over = True
        self._work_ms -= head.work_ms
        while queue and queue[0].over:
            queue.popleft()

    # -- answers ------------------------------------------------------------------------------------------

    def takes(self, prompt_tokens: int, sequences: int = 1) -> Answer:
        """An answer behind so long a prompt is about to be generated, or several behind so much together."""
        self.streams += sequences
        self.prompt_tokens += prompt_tokens
        return Answer(prompt_tokens, sequences)

    def generates(self, answer: Answer, at_s: float) -> None:
        """Its first token came then. A second call does nothing, nor one after its end."""
        if answer.began_s is None:
            answer.began_s = at_s
            self._generating += answer.sequences
            self._began_sum_s += answer.sequences * at_s

    def answered(self, answer: Answer) -> None:
        """An answer is over, or does not come; once."""
        self.streams -= answer.sequences
        self.prompt_tokens -= answer.prompt_tokens
        if answer.began_s is None:
            answer.began_s = math.inf
        else:
            self._generating -= answer.sequences
            began_sum_s = self._began_sum_s - answer.sequences * answer.began_s
            self._began_sum_s = began_sum_s if self._generating else 0.0

    def generated_s(self, now_s: float) -> float:
        """How long these answers have been generated by now, added up."""
        return max(self._generating * now_s - self._began_sum_s, 0.0)
