"""What a rank is predicted to do is the sum of its running claims at any moment, and nothing once they have
ended.

Prompts are computed one after the other, in the order of their claims. The one at the head is under way since
it came to the head; so much of it as has passed since then counts as done, but no other: how far an engine
really is shows only in the first tokens that it sends. Where these are not seen, because the answer comes as
a whole, a prompt counts as computed when it should be, and when a later one is.

Times are seconds of any one monotonic clock, passed in. Each verb and each question takes constant time.
"""

from collections import deque


class Computing:
    """A prompt that is to be computed."""

    __slots__ = ("over", "told", "work_ms")

    def __init__(self, work_ms: float, *, told: bool) -> None:
        """`work_ms`: how long that is predicted to take alone; `told`: whether its end will be seen."""
        self.work_ms = work_ms
        self.told = told
        self.over = False


class Work:
    """What is predicted of one rank."""

    __slots__ = ("_began_sum_s", "_queue", "_since_s", "_work_ms", "prompt_tokens", "streams")

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
        self._began_sum_s = 0.0
        """When they began, added up."""

    # -- prompts ------------------------------------------------------------------------------------------

    def computes(self, work_ms: float, now_s: float, *, told: bool = True) -> Computing:
        """A prompt is to be computed from now on."""
        self._advance(now_s)
        if not self._queue:
            self._since_s = now_s
        computing = Computing(work_ms, told=told)
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
        self._remove(computing, now_s)

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
        if not queue:
            self._work_ms = 0.0

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

    def streams_from(self, prompt_tokens: int, began_s: float) -> None:
        """An answer behind so long a prompt is generated from now on."""
        self.streams += 1
        self.prompt_tokens += prompt_tokens
        self._began_sum_s += began_s

    def streams_no_more(self, prompt_tokens: int, began_s: float) -> None:
        """An answer that began then is over."""
        self.streams -= 1
        self.prompt_tokens -= prompt_tokens
        self._began_sum_s = self._began_sum_s - began_s if self.streams else 0.0

    def generated_s(self, now_s: float) -> float:
        """How long these answers have been generated by now, added up."""
        return max(self.streams * now_s - self._began_sum_s, 0.0)
