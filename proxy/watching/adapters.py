"""A model name that no engine is known to list is looked up at the engines: once for all requests that wait.

Adapters are loaded and unloaded while engines run, and their lists are otherwise read only every few seconds.
No name is stored; only the time at which all engines were last asked is.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import msgspec

from proxy.errors import LegError
from proxy.fleet import Fleet, Instance, Status
from proxy.headers import Headers
from proxy.phases import Role
from proxy.shown import Address, Shown, says
from proxy.tasks import TaskOwner
from proxy.upstream.engine_api.asking import Asker, ask
from proxy.upstream.engine_api.models import MODELS
from proxy.watching.checks import wrong_model

log = logging.getLogger(__name__)

LIST_TIMEOUT_S = 1.0
"""Seconds that a request for a name nobody lists waits at most for an engine that does not answer."""
ASK_AGAIN_S = 3.0
"""Seconds between two looks for names that no engine lists, however many requests ask for them."""
LOAD_TIMEOUT_S = 300.0
"""Seconds that an engine may take to load an adapter, which it may have to download first."""


class EngineAnswer(Shown, frozen=True, kw_only=True):
    """One engine's answer to a load or unload that all engines were asked for."""

    instance: Address
    role: Role
    status: Annotated[int | None, says("Null if it did not answer.")]
    answer: Annotated[Any, says("What it answered, JSON or text; what went wrong if it did not.")]


class Adapters:
    """Knows, loads and unloads the adapters that engines serve beside their model."""

    def __init__(
        self,
        fleet: Fleet,
        engines: Asker,
        model: str,
        clock: Callable[[], float],
        *,
        list_s: float = LIST_TIMEOUT_S,
        list_again_s: float = ASK_AGAIN_S,
    ) -> None:
        """`model`: the model that all engines serve. `list_s`: seconds that each engine may take to answer;
        `list_again_s`: seconds between two looks for names that no engine lists.
        """
        self._fleet = fleet
        self._engines = engines
        self._model = model
        self._clock = clock
        self._list_s = list_s
        self._list_again_s = list_again_s
        self._tasks = TaskOwner("adapters")
        self._asking: asyncio.Task[None] | None = None
        self._asked_at: float | None = None

    async def known(self, name: str) -> bool:
        """Whether any engine lists a name; the engines are asked if necessary. True while no engine has
        listed any.
        """
        if name == self._model or self._fleet.serves(name) or not any(i.model_cards for i in self._fleet):
            return True
        if self._asking is None:
            if self._asked_at is not None and self._clock() - self._asked_at < self._list_again_s:
                return False
            self._asking = self._tasks.create(self._ask_all(), name="which models")
        await asyncio.shield(self._asking)
        return self._fleet.serves(name)

    async def _ask_all(self) -> None:
        try:
            await self.list_anew(instance for instance in self._fleet if instance.status is Status.UP)
        finally:
            self._asked_at = self._clock()
            self._asking = None

    async def list_anew(self, instances: Iterable[Instance]) -> None:
        """Read what these instances list. Raises nothing; if one does not answer, its list stays as it
        was.
        """
        await asyncio.gather(*(self._list(instance) for instance in instances))

    async def _list(self, instance: Instance) -> None:
        try:
            cards = await ask(self._engines, instance.address, MODELS, self._list_s)
        except LegError as error:
            log.debug("%s does not tell what it serves: %s", instance.address, error)
            return
        if wrong_model(cards, self._model) is None:  # otherwise the watch reports it
            instance.listed(cards, self._clock())

    async def tell_all(self, path: str, body: bytes, headers: Headers) -> Sequence[EngineAnswer]:
        """Ask every engine at once to load or unload an adapter, then read what they list. Raises nothing."""
        instances = list(self._fleet)
        answers = await asyncio.gather(*(self._tell(instance, path, body, headers) for instance in instances))
        anew = [i for i, each in zip(instances, answers, strict=True) if each.status is not None]
        for instance in anew:
            instance.denials.forget()
        await self.list_anew(anew)
        return answers

    async def _tell(self, instance: Instance, path: str, body: bytes, headers: Headers) -> EngineAnswer:
        address, role = instance.address, instance.role
        try:
            status, said = await self._engines.exchange("POST", address, path, body, LOAD_TIMEOUT_S, headers)
        except LegError as error:
            return EngineAnswer(instance=address, role=role, status=None, answer=error.words)
        try:
            answer = msgspec.json.decode(said)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            answer = said.decode(errors="replace")
        return EngineAnswer(instance=address, role=role, status=status, answer=answer)

    async def close(self) -> None:
        """Ask no engine any more."""
        await self._tasks.close()
