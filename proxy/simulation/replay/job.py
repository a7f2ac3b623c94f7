"""A job is as long as its tokens would be, and no token of it exists."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from proxy.simulation.engine.holds import Holds
from proxy.simulation.engine.request import Status


class Job:
    """One leg in one engine: what scheduler and cache know of it (`Work`), and who hears of its tokens."""

    __slots__ = (
        "announced",
        "begun",
        "computed",
        "ended",
        "external_hit",
        "failed",
        "first_token_s",
        "full_report",
        "hashes",
        "hold",
        "id",
        "last_token_s",
        "length",
        "local_hit",
        "lora",
        "output_tokens",
        "preemptions",
        "prompt_tokens",
        "pull",
        "reads_cache",
        "scheduled_s",
        "status",
        "table",
    )

    def __init__(
        self,
        name: str,
        prompt_tokens: int,
        output_tokens: int,
        hashes: list[int],
        *,
        hold: bool = False,
        pull: "Pulled | None" = None,
        failed: "Callable[[Job, str], None]" = lambda job, address: None,  # noqa: ARG005  # nobody hears
    ) -> None:
        """`hashes`: the names of the prompt's whole blocks; `hold`: whether its blocks wait for another
        engine when it has ended; `pull`: where its prompt's KV is; `failed`: called with the job and the
        address of its engine if that has failed it.
        """
        self.id = name
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.hold = hold
        self.begun: Heard = _nobody_hears
        """Called when its first token is out."""
        self.ended: Heard = _nobody_hears
        """Called when its last token is out."""
        self.failed = failed
        self.first_token_s: float | None = None
        self.last_token_s = 0.0
        # As `Work`:
        self.length = prompt_tokens
        self.status = Status.WAITING
        self.lora: str | None = None
        self.pull: Any = pull
        self.reads_cache = True
        self.full_report = False
        self.computed = 0
        self.table: list[int] = []
        self.hashes: list[Any] = hashes
        self.announced = 0
        self.local_hit = 0
        self.external_hit = 0
        self.preemptions = 0
        self.scheduled_s: float | None = None

    @property
    def generated(self) -> int:
        """The number of generated tokens."""
        return self.length - self.prompt_tokens

    def start_over(self) -> None:
        """As `Work`."""
        self.computed = 0


Heard = Callable[[Job], None]


def _nobody_hears(_: Job) -> None:
    """What is called where nobody wants to know."""


class Holder(Protocol):
    """The engine of a hold."""

    address: str
    life: int
    holds: Holds[Job]

    def let_go(self, job: Job, *, pulled: bool) -> None:
        """End a hold; `pulled`: its blocks were read."""
        ...


class Pulled(NamedTuple):
    """A hold: the engine that computed a prompt, in which of its lives, and the job that did."""

    engine: Holder
    job: Job
    life: int
