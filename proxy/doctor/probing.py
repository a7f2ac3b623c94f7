"""One engine is asked about itself, listened to and sent a probe twice; each question has a deadline, and
nothing is judged.
"""

import asyncio
import time
from typing import Any, Protocol

import msgspec

from kvevents import Prompt
from kvevents.subscriber import Context, SourceAddress
from proxy.caches.address_rules import AddressRules
from proxy.caches.event_addresses import named_sources
from proxy.caches.shown import AccuracyShown
from proxy.doctor import asking, prompts
from proxy.doctor.asking import ask
from proxy.doctor.facts import Answer, EngineFacts, RankFacts, Send
from proxy.doctor.listening import Listener, port_taken
from proxy.doctor.patience import PATIENCE, Patience
from proxy.doctor.prompts import MIN_WORDS
from proxy.doctor.runs import Search
from proxy.errors import DeadlineError, LegError
from proxy.headers import DATA_PARALLEL_RANK, REQUEST_ID, Headers
from proxy.request.dialects import CHAT, COMPLETIONS
from proxy.tasks import TaskOwner
from proxy.tokenizing import LocalTokenizer, comparison
from proxy.tokenizing.comparison import ask_tokens
from proxy.tokenizing.parity import difference
from proxy.upstream.engine_api.about import HEALTH, VERSION, asleep
from proxy.upstream.engine_api.asking import Asker, decode
from proxy.upstream.engine_api.event_sources import EVENT_SOURCES
from proxy.upstream.engine_api.metrics import METRICS
from proxy.upstream.engine_api.models import MODELS

REPLAY_TRIES = 3
"""How often a subscriber asks for a replay that is not answered before it goes on without."""

MAX_RANKS = 8
"""The most data-parallel ranks of one engine that are probed."""

BLOCKS = 2.5
"""The length of a probe in blocks: two full ones, and tokens behind them that are always computed."""

USUAL_BLOCK_SIZE = 128
"""The block size to assume for the length of a probe if the engine does not tell: the largest usual one."""

MIN_BLOCK_SIZE = 16
"""The smallest usual block size: what is no multiple of it is no multiple of the others either."""

MAX_PROBE_TOKENS = 8192

_GUESSES = 4
"""How often the number of words is guessed that makes a given number of tokens; the second guess is usually
right."""

_SECOND_LOOKS = 2
"""How often cached tokens are looked at again that are not as predicted: blocks may be evicted in between."""


class Service(Protocol):
    """A running service, and what it knows of its instances."""

    def index_state(self, address: str, rank: int) -> str:
        """The state of its index of a rank."""
        ...

    def accuracy(self, address: str, rank: int) -> AccuracyShown:
        """How right its predictions for a rank were, as in `/status`."""
        ...


class Probing:
    """Examines one engine. `facts` has what is known so far, also if the examination is cancelled."""

    def __init__(
        self,
        facts: EngineFacts,
        engines: Asker,
        model: str,
        *,
        kv_events: bool,
        rules: AddressRules,
        context: Context,
        tasks: TaskOwner,
        service: Service | None,
        patience: Patience = PATIENCE,
    ) -> None:
        """`rules`: the addresses that engines may name. `service`: a running service; None without one.
        `patience`: how long each answer is waited for.
        """
        self.facts = facts
        self._engines = engines
        self._model = model
        self._kv_events = kv_events
        self._rules = rules
        self._context = context
        self._tasks = tasks
        self._service = service
        self._patience = patience
        self._addresses: dict[int, SourceAddress] = {}

    async def look(self) -> None:
        """Ask the engine what it is and what it serves."""
        facts, begun_at = self.facts, time.monotonic()
        health = await self._get(HEALTH)
        facts.health, facts.health_s = health, time.monotonic() - begun_at
        if not health.ok:
            return
        facts.version = asking.read(await self._get(VERSION.path), VERSION.read)
        facts.asleep = await self._asleep()
        facts.cards = asking.read(await self._get(MODELS.path), MODELS.read)
        facts.metrics = asking.read_counted(await self._get(METRICS.path))
        if self._kv_events:
            answer = await self._get(EVENT_SOURCES.path)
            facts.source_answer = asking.read_event_sources(answer, facts.spec.host, self._rules)

    async def probe(self, local: LocalTokenizer | None) -> None:
        """Compare tokenizers, listen, and send the probe; only if the engine serves the model and is
        awake.
        """
        if self.facts.asleep or not self.facts.serves(self._model):
            return
        await self._compare(local)
        ranks = self._ranks()
        self.facts.ranks_left_out = max(0, len(ranks) - MAX_RANKS)
        self.facts.ranks = ranks[:MAX_RANKS]
        for rank in self.facts.ranks:
            await self._probe_rank(rank, local, several=len(ranks) > 1)

    async def _get(self, path: str) -> Answer:
        return await ask(self._engines, self.facts.address, path, self._patience.ask_s)

    async def _asleep(self) -> bool | None:
        try:
            return await asleep(self._engines, self.facts.address, self._patience.ask_s)
        except LegError:
            return None

    def _ranks(self) -> list[RankFacts]:
        self._addresses = {source.rank: source for source in (self._sources() if self._kv_events else [])}
        ranks = [RankFacts(rank=rank, source=source) for rank, source in self._addresses.items()]
        return ranks or [RankFacts(rank=0)]

    def _sources(self) -> list[SourceAddress]:
        if self.facts.spec.event_sources:
            return named_sources(self.facts.spec)
        answer = self.facts.source_answer
        return list(answer.value) if answer is not None and answer.ok else []

    # -- tokens -------------------------------------------------------------------------------------------

    async def _compare(self, local: LocalTokenizer | None) -> None:
        special = local.pieces.cuts.tokens if local is not None else ()
        asked = comparison.bodies(special, self._model)
        theirs: comparison.Answers = {}
        try:
            for kind, bodies in asked.items():
                theirs[kind] = [await ask_tokens(self._engines, self.facts.address, body) for body in bodies]
        except LegError:
            return
        if local is not None:
            self.facts.tokenized_here = {
                kind: [await _tokens(local, body) for body in bodies] for kind, bodies in asked.items()
            }
        self.facts.tokenized = theirs

    async def _tokenize(
        self, rank: RankFacts, prompt: dict[str, Any], local: LocalTokenizer | None
    ) -> list[int] | None:
        """Tokenize as kvproxy does: here if the engine agrees, else the engine is asked."""
        body = msgspec.json.encode(prompt)
        if local is not None and self._agrees(rank.kind) and (ours := await _tokens(local, body)) is not None:
            rank.tokens_by = "local"
            return ours
        rank.tokens_by = "engine"
        try:
            return await ask_tokens(self._engines, self.facts.address, body)
        except LegError as error:
            rank.untokenized = f"/tokenize does not tell its tokens: {_words(error)}"
            return None

    def _agrees(self, kind: str) -> bool:
        here, there = self.facts.tokenized_here, self.facts.tokenized
        if here is None or there is None:
            return False
        return all(difference(a, b) is None for a, b in zip(here[kind], there[kind], strict=True))

    # -- the probe ----------------------------------------------------------------------------------------

    async def _probe_rank(self, rank: RankFacts, local: LocalTokenizer | None, *, several: bool) -> None:
        if self._service is not None and rank.source is not None:
            rank.accuracy = self._service.accuracy(self.facts.address, rank.rank)
        listeners = await self._listen(rank)
        listener = listeners[0] if listeners else None
        try:
            prompt = await self._make(rank, local)
            if prompt is None:
                return
            for each in listeners:
                each.search = Search(rank.token_ids)
            known = Prompt(token_ids=rank.token_ids)
            first = await self._send(rank, prompt, several=several)
            rank.sends = [first]
            if not first.answer.ok:
                return
            if listener is not None:
                await self._hear(rank, listener, listeners[1:])
            for _ in range(1 + _SECOND_LOOKS):
                predicted = listener.cached_tokens(known) if listener is not None else None
                send = await self._send(rank, prompt, several=several)
                rank.sends.append(msgspec.structs.replace(send, predicted=predicted))
                if (
                    not send.answer.ok
                    or predicted is None
                    or predicted == send.reported
                    or send.reported is None
                ):
                    break
            if listener is not None and rank.found is not None and listener.replayed is not None:
                await listener.verify(self._patience.replay_s)
        finally:
            if listener is not None:
                self._note(rank, listener)
            for each in listeners:
                await each.close()

    async def _listen(self, rank: RankFacts) -> list[Listener]:
        """The listener of a rank; if a topic was given, also one that hears every topic."""
        source = self._addresses.get(rank.rank)
        if source is None:
            return []
        if source.bind and self._service is not None:
            rank.followed_as = self._service.index_state(self.facts.address, rank.rank)
            return []
        if port_taken(source):
            rank.port_taken = True
            return []
        listener = self._listener(source)
        listeners = [listener]
        try:
            rank.connected = await listener.until(lambda: listener.connected, self._patience.connect_s)
            if rank.connected:
                if source.topic and self.facts.spec.event_sources and not source.bind:
                    anything = SourceAddress(rank.rank, source.endpoint, None, "")
                    second = self._listener(anything)
                    listeners.append(second)
                    await second.until(lambda: second.connected, self._patience.connect_s)
                if source.replay_endpoint is not None:
                    await listener.until(
                        lambda: listener.asked_in_vain(REPLAY_TRIES), self._patience.replay_s
                    )
            rank.state = listener.state
        except asyncio.CancelledError:
            self._note(rank, listener)
            for each in listeners:
                await each.close()
            raise
        return listeners

    def _listener(self, source: SourceAddress) -> Listener:
        quiet_s = self._patience.replay_quiet_s
        return Listener(self.facts.address, source, self._context, self._tasks, replay_quiet_s=quiet_s)

    async def _make(self, rank: RankFacts, local: LocalTokenizer | None) -> dict[str, Any] | None:
        """A probe of some blocks; None, with the reason in `rank`, if its tokens cannot be had.

        If possible it is never one token longer than whole blocks: vLLM's ExampleConnector stores such a
        prompt under another name than it looks for.
        """
        size = self.facts.block_size or USUAL_BLOCK_SIZE
        longest = min(MAX_PROBE_TOKENS, self.facts.max_model_len(self._model) or MAX_PROBE_TOKENS)
        wanted = min(int(size * BLOCKS) + 1, longest * 3 // 4)
        for kind, form in (("chat", prompts.chat), ("completion", prompts.completion)):
            rank.kind = kind
            words = wanted
            for _ in range(_GUESSES):
                prompt = form(self._model, prompts.random_text(words))
                tokens = await self._tokenize(rank, prompt, local)
                if tokens is None:
                    break
                if wanted <= len(tokens) < longest and (len(tokens) < 2 * wanted or words <= MIN_WORDS):
                    if len(tokens) % (self.facts.block_size or MIN_BLOCK_SIZE) != 1:
                        break
                    words = max(words, MIN_WORDS) + 1
                else:
                    words = max(MIN_WORDS, words * wanted * 9 // (8 * max(1, len(tokens))))
            if tokens is not None:
                rank.token_ids, rank.untokenized = tokens, None
                return prompt
        rank.untokenized = rank.untokenized or "/tokenize refuses chats and completions"
        return None

    async def _send(self, rank: RankFacts, prompt: dict[str, Any], *, several: bool) -> Send:
        headers: Headers = [(REQUEST_ID, prompts.request_id())]
        if several:
            headers.append((DATA_PARALLEL_RANK, str(rank.rank)))
        dialect = CHAT if rank.kind == "chat" else COMPLETIONS
        sent_ts = time.time()
        body = prompts.one_token(prompt)
        answer = await ask(
            self._engines, self.facts.address, dialect.path, self._patience.probe_s, body, headers
        )
        counted = reported = None
        if answer.ok:
            try:
                usage = dialect.usage(answer.value)
                counted, reported = usage.prompt_tokens, usage.cached_tokens
            except ValueError:
                answer = asking.read(answer, lambda data: decode(dialect.path, data, dict))
        return Send(answer=answer, sent_ts=sent_ts, counted=counted, reported=reported)

    async def _hear(self, rank: RankFacts, listener: Listener, others: list[Listener]) -> None:
        """Wait for the event of all full blocks of the probe, or at least of some."""

        def announced(by: Listener) -> bool:
            return by.search is not None and by.search.is_over()

        size = self.facts.block_size
        fills_a_block = size is None or len(rank.token_ids) >= size
        if listener.connected and fills_a_block and self.facts.prefix_caching is not False:
            heard = await listener.until(lambda: announced(listener), self._patience.event_s)
            rank.heard_elsewhere = not heard and any(announced(other) for other in others)
        if (search := listener.search) is not None:
            rank.found = search.found()
            rank.block_size = search.block_size or listener.block_size

    def _note(self, rank: RankFacts, listener: Listener) -> None:
        rank.connected = listener.connected or rank.connected
        rank.replays_unanswered = listener.replay_failures
        rank.contradicted = listener.contradicted
        rank.replayed_batches = listener.replayed
        rank.messages = listener.messages
        rank.dropped = dict(listener.dropped)
        rank.block_size = rank.block_size or listener.block_size


async def _tokens(local: LocalTokenizer, body: bytes) -> list[int] | None:
    found = await local.answer(body)
    return None if found is None else found.tolist()


def _words(error: LegError) -> str:
    return "no answer in time" if isinstance(error, DeadlineError) else error.words
