"""What prompts need of engines is learned from each engine by itself, so one that hangs delays no other.

An engine that does not answer is asked again, at growing intervals.
"""

import asyncio
import logging
from array import array
from collections.abc import Sequence

import msgspec

from proxy.errors import LegError
from proxy.fleet import Fleet, Instance
from proxy.logs import quoted
from proxy.tasks import TaskOwner
from proxy.tokenizing.comparison import CHECK_TIMEOUT_S, ask_tokens, bodies, tokenizer_at
from proxy.tokenizing.engine_facts import EngineFacts
from proxy.tokenizing.fact_finding import ASK_TIMEOUT_S, FactFinder
from proxy.tokenizing.local.tokenizer import LocalTokenizer
from proxy.tokenizing.parity import Difference, Parity, difference
from proxy.upstream.engine_api.asking import Asker

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
"""Seconds between two looks at which engines there are; a leg that ends causes a look as well."""

ASK_AGAIN_S = 5.0
"""Seconds after which an engine is asked again that did not answer awkward questions; doubled each time."""
MAX_ASK_AGAIN_S = 60.0

AT_ONCE = 16
"""The most engines that are asked at the same time: a hundred that come up together leave room for
requests."""


class LearningWaits(msgspec.Struct, frozen=True):
    """Seconds to wait for engines; the constants say why."""

    compare_s: float = CHECK_TIMEOUT_S
    """For the answer to one awkward question."""
    ask_s: float = ASK_TIMEOUT_S
    """For the answer to any other question."""
    again_s: float = ASK_AGAIN_S


LEARNING_WAITS = LearningWaits()


class Learning:
    """Compares the tokenizer in this process with engines when they come up, and asks these what requests
    need.
    """

    def __init__(
        self,
        fleet: Fleet,
        client: Asker,
        tasks: TaskOwner,
        *,
        local: LocalTokenizer | None,
        look_for_local: bool,
        waits: LearningWaits = LEARNING_WAITS,
    ) -> None:
        """`local`: the model's own tokenizer. `look_for_local`: look for one where engines say that their
        model is.
        """
        self._waits = waits
        self.local = local
        self.parity = Parity()
        self.facts = EngineFacts()
        self._fleet = fleet
        self._client = client
        self._tasks = tasks
        self._look_for_local = look_for_local and local is None
        self._finder = FactFinder(self.facts, client, timeout_s=waits.ask_s)
        self._tried: set[str] = set()
        self._changed = asyncio.Event()
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._asked: dict[Instance, asyncio.Task[None]] = {}
        self._pause_s: dict[Instance, float] = {}

    def start(self) -> None:
        """Begin to look for engines."""
        self._fleet.listen(self.look)
        self.look()
        self._tasks.create(self._keep_learning(), name="learn")

    def look(self) -> None:
        """Look soon: something is wanted now, or engines came or went."""
        self._changed.set()

    async def _keep_learning(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            up = [instance for instance in self._fleet if instance.why_unusable() is None]
            if self.local is None and self._look_for_local:
                await self._find_local(up)
            self._forget_all_but(up)
            wanted = self._to_compare(up) if self.local is not None else set()
            self.parity.keep(wanted)
            for instance in up:
                models = sorted(model for address, model in wanted if address == instance.address)
                if instance not in self._asked and self._lacks(instance, models):
                    task = self._tasks.create(self._learn(instance, models), name=f"learn {instance.address}")
                    self._asked[instance] = task
            await asyncio.sleep(LOOK_EVERY_S)

    def _forget_all_but(self, up: Sequence[Instance]) -> None:
        """Forget what all other engines said: another engine may come up at their address."""
        for instance in self._asked.keys() - set(up):
            self._asked.pop(instance).cancel()
        for instance in self._pause_s.keys() - set(up):
            del self._pause_s[instance]
        self.facts.keep({instance.address for instance in up})

    def _to_compare(self, up: Sequence[Instance]) -> set[tuple[str, str]]:
        """The pairs of engine and model to compare. An adapter's tokenizer is the model's, so one engine that
        answers is enough for it.
        """
        wanted = {(i.address, model) for i in up for model in i.models - i.adapters}
        speaking: dict[str, tuple[bool, bool, str]] = {}
        for instance in up:
            for adapter in instance.adapters:
                asked = (instance.address, adapter) in self.parity
                one = (not asked, instance in self._pause_s, instance.address)
                speaking[adapter] = min(one, speaking.get(adapter, one))
        return wanted | {(address, adapter) for adapter, (*_, address) in speaking.items()}

    def _lacks(self, instance: Instance, models: Sequence[str]) -> bool:
        compared = all((instance.address, model) in self.parity for model in models)
        return not compared or self._finder.lacks(instance)

    async def _learn(self, instance: Instance, models: Sequence[str]) -> None:
        """Ask one engine once, and wait a while before it is asked again if it did not answer."""
        async with self._turns:
            compared = self.local is None or await self._compare(self.local, instance.address, models)
            found = await self._finder.find(instance)
        if compared and found:
            self._pause_s.pop(instance, None)
        else:
            pause_s = self._pause_s.get(instance, self._waits.again_s)
            self._pause_s[instance] = min(2 * pause_s, MAX_ASK_AGAIN_S)
            self.look()  # another engine may be compared for its adapters
            await asyncio.sleep(pause_s)
        del self._asked[instance]
        self.look()

    async def _find_local(self, up: Sequence[Instance]) -> None:
        """Load the tokenizer from the directory of an engine's model, if it can be read here."""
        for root in {
            c.root for i in up for c in i.model_cards if c.root is not None and not c.parent
        } - self._tried:
            self._tried.add(root)
            try:
                self.local = await tokenizer_at(root)
            except (OSError, ValueError) as error:
                log.info("the tokenizer in %s is not used: %s", quoted(root), quoted(error, 300))
            if self.local is not None:
                log.info("tokenizing with %s, where it agrees with the engines", quoted(root))
                return

    async def _compare(self, local: LocalTokenizer, address: str, models: Sequence[str]) -> bool:
        """Compare the models that were not compared yet. Returns False if the engine did not answer."""
        for model in models:
            if (address, model) not in self.parity:
                try:
                    off = await self._differences(local, address, model)
                except LegError:
                    return False
                self.parity.learn(address, model, off)
        return True

    async def _differences(self, local: LocalTokenizer, instance: str, model: str) -> dict[str, Difference]:
        """The kinds of prompts that an engine renders differently. Raises LegError."""
        off = {}
        for kind, asked in bodies(local.pieces.cuts.tokens, model).items():
            for body in asked:
                theirs = await ask_tokens(self._client, instance, body, self._waits.compare_s)
                found = difference(_listed(await local.answer(body)), theirs)
                if found is not None:
                    off[kind] = found
                    break
        return off


def _listed(token_ids: "array[int] | None") -> list[int] | None:
    return None if token_ids is None else token_ids.tolist()
