"""A prompt's tokens come from the model's tokenizer in this process or from an engine, or are unknown: never
guessed.
"""

import asyncio
import contextlib
import functools
import logging
import threading
from array import array
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import msgspec

from kvevents import Prompt
from proxy.fair_queue import ANONYMOUS
from proxy.fleet import Fleet
from proxy.happenings import PromptKnown, Tell
from proxy.headers import Headers
from proxy.logs import News, listed, quoted
from proxy.request.dialects import TOKENIZED
from proxy.request.generation import GenerationRequest
from proxy.request.outline import LARGE_BODY_BYTES
from proxy.tasks import TaskOwner
from proxy.tokenizing.distrust import Distrust
from proxy.tokenizing.engines import DEADLINE_S, EngineTokenizer
from proxy.tokenizing.fields import (
    MEDIA_TOKENS,
    Ask,
    Given,
    Truncation,
    Unknowable,
    as_tokenized,
    read_prompt,
    sort_members,
)
from proxy.tokenizing.learning import LEARNING_WAITS, Learning, LearningWaits
from proxy.tokenizing.local.bounds import LIMITS, Bounds, Excess, Limits
from proxy.tokenizing.local.tokenizer import (
    LocalTokenizer,
    NotExactError,
    TooLongError,
)
from proxy.tokenizing.measuring import ids_given, is_to_be_looked_into
from proxy.tokenizing.members import NO_MEMBERS, TRUNCATING, Members
from proxy.tokenizing.shown import AnswersShown, TokenizerShown, TokenPath
from proxy.tokenizing.why_unknown import WhyUnknown
from proxy.upstream.engine_api.asking import Asker

log = logging.getLogger(__name__)

T = TypeVar("T")

_LOCALLY = " by --tokenizer"
_COMPLETION = frozenset({"completion"})

TEXT_COPIES = 8
"""The memory that a question takes is this many times its text: the question, what a template gets of it, the
text that it makes, its pieces and their tokens. The library's objects for one slice come on top, some 20 MB
in all (`pieces.MAX_PIECE_BYTES`)."""


def _nothing() -> None:
    """Does nothing, where no memory was taken."""


class Tokenized(msgspec.Struct, frozen=True):
    """The prompt of a request as engines see it, or why it is not known."""

    prompt: Prompt | None
    kind: str
    why_unknown: WhyUnknown | None = None
    prefix_only: bool = False
    """Whether `prompt` is only its beginning: it is known up to its first image or sound."""
    estimated_tokens: int | None = None
    """Its length, if something better than the body's size shows it."""
    members: Members = NO_MEMBERS
    """What the request's members are to its prompt."""
    excess: Excess | None = None
    """By how much it is longer than any context; None if it may fit."""


UNREAD = Tokenized(None, "")
"""Of a prompt that nobody has looked at."""


class Lease(Protocol):
    """Memory that is held until `end`."""

    def hold(self, size_bytes: int) -> bool:
        """Hold so many bytes from now on. Returns False if there are not so many."""
        ...

    def end(self) -> None:
        """Give the memory back."""
        ...


class Memory(Protocol):
    """The memory that all requests share."""

    def lease(self, client: Hashable) -> Lease:
        """A lease of a client that holds nothing yet."""
        ...


class PromptTokenizer:
    """Finds the tokens of prompts. `start` begins to learn about engines when they come up; MUST be closed in
    the end.
    """

    def __init__(
        self,
        fleet: Fleet,
        client: Asker,
        *,
        clock: Callable[[], float],
        local: LocalTokenizer | None = None,
        look_for_local: bool = False,
        deadline_s: float = DEADLINE_S,
        tell: Tell = lambda _: None,
        memory: Memory | None = None,
        limits: Limits = LIMITS,
        learning_waits: LearningWaits = LEARNING_WAITS,
    ) -> None:
        """`local`: the model's own tokenizer; with `look_for_local` one is looked for where engines say it
        is.

        `memory`: where long prompts take what they need while they are tokenized. `limits`: how much is read
        of any. `learning_waits`: how long engines have for what is learned from them.
        """
        self._limits = limits
        self._memory = memory
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="prompts")
        self._fleet = fleet
        self._client = client
        self._clock = clock
        self._deadline_s = deadline_s
        self._tell = tell
        self._tasks = TaskOwner("tokens")
        self._engines = EngineTokenizer(
            fleet, client, self._tasks, deadline_s=deadline_s, reader=self._reader, clock=clock
        )
        self._learning = Learning(
            fleet, client, self._tasks, local=local, look_for_local=look_for_local, waits=learning_waits
        )
        self._parity = self._learning.parity
        self._facts = self._learning.facts
        self._distrust = Distrust(clock)
        self._told_unknown, self._told_ignored = News(clock), News(clock)

    # -- requests -----------------------------------------------------------------------------------------

    async def tokenize(
        self, request: GenerationRequest, headers: Headers, client: str = ANONYMOUS
    ) -> Tokenized:
        """The prompt of a client's request; `headers`: those that a leg of it would have. Raises nothing."""
        bounds = self._bounds(request.model)
        how = await self._read(request, bounds, client)
        self._look_into(how.members, how.kind)
        found = await self._found(how, request, headers, bounds, client)
        media = how.media if isinstance(how, Ask) else 0
        estimate = how.estimated_tokens if isinstance(how, Ask) and media else None
        if isinstance(found, WhyUnknown | Excess):
            why, excess = (found, None) if isinstance(found, WhyUnknown) else (WhyUnknown.TOO_LONG, found)
            return Tokenized(
                None, how.kind, why, estimated_tokens=estimate, members=how.members, excess=excess
            )
        kind, by, token_ids = found
        salt = request.body.value("cache_salt")
        if estimate is not None:
            estimate = max(estimate, len(token_ids) + media * MEDIA_TOKENS)
        self._tell(PromptKnown(by))
        lora_name = request.model if self._fleet.is_adapter(request.model) else None
        prompt = Prompt(token_ids=token_ids, lora_name=lora_name, cache_salt=salt)
        return Tokenized(prompt, kind, prefix_only=media > 0, estimated_tokens=estimate, members=how.members)

    async def measure(self, request: GenerationRequest, client: str = ANONYMOUS) -> Tokenized:
        """The estimated size of a prompt whose tokens are not needed; no engine is asked. Raises nothing."""
        bounds = self._bounds(request.model)
        shortened = bool(request.body.given(TRUNCATING))
        if (count := ids_given(request)) is not None:
            excess = bounds.of_ids(count) or (None if shortened else bounds.of_tokens(count))
            return Tokenized(None, "", estimated_tokens=count, excess=excess)
        if not is_to_be_looked_into(request, bounds):
            return UNREAD
        how = await self._read(request, bounds, client)
        if isinstance(how, Unknowable):
            return Tokenized(None, how.kind, excess=how.excess)
        return Tokenized(
            None, how.kind, estimated_tokens=how.estimated_tokens if isinstance(how, Ask) else None
        )

    def _bounds(self, model: str) -> Bounds:
        """How long a prompt may be for any engine; a longer one is not worked on."""
        longest, sure = self._fleet.contexts
        local = self.local
        if local is None or not self._parity.agreed(model, _COMPLETION):
            return Bounds(longest, sure, limits=self._limits)
        return Bounds(longest, sure, local.characters_a_token, self._limits)

    async def _read(
        self, request: GenerationRequest, bounds: Bounds, client: str
    ) -> Ask | Given | Unknowable:
        is_large = request.body.size_bytes > LARGE_BODY_BYTES
        if is_large and request.dialect not in TOKENIZED:
            translated = self._off_the_loop(request.body.size_bytes, client, as_tokenized, request)
            if translated is None:
                return Unknowable(WhyUnknown.NO_MEMORY, request.dialect.name)
            told = await translated
        else:
            told = as_tokenized(request)
        found = sort_members(request, self._facts, told)
        if isinstance(found, Unknowable):
            return found
        if not is_large:
            return read_prompt(found, bounds)
        read = self._off_the_loop(request.body.size_bytes, client, read_prompt, found, bounds)
        return Unknowable(WhyUnknown.NO_MEMORY, found.kind, found.members) if read is None else await read

    def _off_the_loop(
        self, size_bytes: int, client: str, function: Callable[..., T], *arguments: Any
    ) -> "asyncio.Future[T] | None":
        """What a function returns, worked out in the thread for long prompts; None if there is no memory."""
        ended = self._charged(size_bytes, client)
        if ended is None:
            return None
        work = self._reader.submit(function, *arguments)
        work.add_done_callback(lambda _: ended())
        return asyncio.wrap_future(work)

    async def _found(
        self,
        how: Ask | Given | Unknowable,
        request: GenerationRequest,
        headers: Headers,
        bounds: Bounds,
        client: str,
    ) -> "tuple[str, str, array[int]] | Excess | WhyUnknown":
        """The kind to distrust if the token ids are wrong, what gave them, and the ids; or why they are
        unknown.
        """
        ids = max(map(request.body.items_in, request.dialect.long_members), default=0)
        if isinstance(how, Unknowable) and how.excess is not None:
            return how.excess
        if (excess := bounds.of_ids(ids)) is not None:
            return excess
        if isinstance(how, Unknowable):
            return how.why
        if how.truncation is not None and not self._can_shorten(how.truncation):
            return WhyUnknown.FIELD
        try:
            found = await self._find(how, request.model, headers, bounds, client)
        except TooLongError as error:
            excess = bounds.of_characters(error.characters) if how.truncation is None else None
            return WhyUnknown.TOO_LONG if excess is None or (isinstance(how, Ask) and how.media) else excess
        if isinstance(found, WhyUnknown):
            return found
        kind, by, token_ids = found
        if how.truncation is not None:
            token_ids = self._shortened(token_ids, how.truncation)
        if len(token_ids) > bounds.longest:
            return WhyUnknown.TOO_LONG
        salt = request.body.value("cache_salt")
        return (kind, by, token_ids) if salt is None or isinstance(salt, str) else WhyUnknown.MALFORMED

    def _look_into(self, members: Members, kind: str) -> None:
        """Have engines asked how they read requests, if that matters now, and log once what follows from
        it.
        """
        if self._facts.schemas_wanted or self._facts.choices_wanted:
            self._learning.look()
        if members.unknown:
            if not self._told_unknown.is_new(", ".join(members.unknown)):
                return
            log.warning(
                "prompts are placed by load where %s is given (%s): how it shapes them is not known",
                listed(members.unknown), quoted(kind),
            )  # fmt: skip
        elif members.ignored and self._told_ignored.is_new(kind):
            log.info(
                "no engine is known to read %s (%s): prompts are placed as without",
                listed(members.ignored), quoted(kind),
            )  # fmt: skip

    async def _find(
        self, how: Ask | Given, model: str, headers: Headers, bounds: Bounds, client: str
    ) -> "tuple[str, str, array[int]] | WhyUnknown":
        """As `_found`. Raises TooLongError."""
        if isinstance(how, Ask) and how.media:
            prefix = await self._by_local(how, model, bounds, client)
            return WhyUnknown.CONTENT_PART if prefix is None else (how.kind + _LOCALLY, "local", prefix)
        if (
            isinstance(how, Ask)
            and (token_ids := await self._by_local(how, model, bounds, client)) is not None
        ):
            return how.kind + _LOCALLY, "local", token_ids
        if self.is_distrusted(how.kind):
            return WhyUnknown.COUNTED_DIFFERENTLY
        if isinstance(how, Given):
            return how.kind, "client", how.token_ids
        asked = await self._engines.answer(how.body, model, headers, client)
        return WhyUnknown.NO_ANSWER if asked is None else (how.kind, "engine", asked)

    def distrust(self, kind: str) -> None:
        """An engine counted a prompt of this kind differently: such prompts are unknown for a while."""
        self._distrust.add(kind)
        if not kind.endswith(_LOCALLY):
            self._engines.forget()

    def is_distrusted(self, kind: str) -> bool:
        """Whether prompts of this kind are unknown because an engine counted one differently."""
        return kind in self._distrust

    async def _by_local(self, how: Ask, model: str, bounds: Bounds, client: str) -> "array[int] | None":
        """The token ids by the tokenizer in this process; None if it does not know them. Raises
        TooLongError.
        """
        local = self.local
        if (
            local is None
            or not self._parity.agreed(model, how.needs)
            or self.is_distrusted(how.kind + _LOCALLY)
        ):
            return None
        hold = functools.partial(self._charged, len(how.body) * TEXT_COPIES, client)
        try:
            ask = local.prefix if how.media else local.answer
            return await ask(how.body, client, bounds.max_characters, hold, self._deadline_s)
        except TimeoutError:
            return None

    def _charged(self, size_bytes: int, client: str) -> Callable[[], None] | None:
        """Hold memory for some work. Returns what gives it back, callable in any thread; None if there is not
        so much.
        """
        if self._memory is None:
            return _nothing
        lease = self._memory.lease(client)
        if not lease.hold(size_bytes):
            return None
        loop, here = asyncio.get_running_loop(), threading.get_ident()

        def ended() -> None:
            if threading.get_ident() == here:
                lease.end()
                return
            with contextlib.suppress(RuntimeError):  # once the loop is closed no count matters
                loop.call_soon_threadsafe(lease.end)

        return ended

    def _can_shorten(self, truncation: Truncation) -> bool:
        """Whether it is certain which tokens are left.

        Where no side is given it is the tokenizer's own, which keeps its special tokens and shortens between
        them.
        """
        if truncation.side is not None:
            return True
        local = self.local
        return local is not None and local.truncation_side == "right" and local.ends_plainly

    def _shortened(self, token_ids: "array[int]", truncation: Truncation) -> "array[int]":
        keep = truncation.tokens
        return token_ids[-keep:] if truncation.side == "left" else token_ids[:keep]

    # -- engines ------------------------------------------------------------------------------------------

    @property
    def local(self) -> LocalTokenizer | None:
        """The tokenizer in this process, whether engines agree with it or not; None if there is none."""
        return self._learning.local

    def start(self) -> None:
        """Begin to compare the local tokenizer with engines when they come up, and to ask these what requests
        need.
        """
        self._learning.start()

    async def close(self) -> None:
        """Ask engines nothing more."""
        await self._tasks.close()
        self._reader.shutdown(wait=False, cancel_futures=True)
        if self.local is not None:
            self.local.close()

    def status(self) -> TokenizerShown:
        """For `/status`: where tokens come from, and which kinds of prompts engines are asked about
        nevertheless.
        """
        local, checked = self.local, self._parity.checked
        return TokenizerShown(
            schemas=list(self._facts.schema_versions),
            answers=AnswersShown(held_bytes=self._engines.held_bytes),
            path=TokenPath.LOCAL if local is not None and checked else TokenPath.ENGINES,
            directory=str(local.directory) if local is not None else None,
            checked_with=list(checked) if local is not None else [],
            off=dict(self._parity.off) if local is not None else {},
            pieces=local.pieces.status() if local is not None else None,
        )


__all__ = ["NotExactError", "PromptTokenizer", "Tokenized"]
