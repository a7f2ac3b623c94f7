"""A membership source says which instances are wanted; whether an engine is up, and what it serves, is the
watch's business.

An instance is there while any source wants it. The sources stand beside each other: flags, the operator's
routes, and what else names instances (DNS, Kubernetes, a file).
"""

from typing import Protocol

from proxy.config import Config, InstanceSpec
from proxy.config.settings import Section


class Wants(Protocol):
    """Where one source says what it wants. Both calls are synchronous, and raise nothing."""

    def want(self, spec: InstanceSpec, *, drained: bool = False, vital: bool = False) -> None:
        """An instance is wanted from now on: it is there when the call returns, `starting` until a check
        finds it up.

        `drained`: it gets no legs until an operator says so. `vital`: kvproxy ends if the first check finds
        that the engine serves another model; otherwise such an instance is refused until it serves what it
        should.
        """
        ...

    def drop(self, address: str) -> None:
        """It is not wanted any more: it gets no new legs, and is gone once those that run there have
        ended.
        """
        ...


class MembershipSource(Protocol):
    """What names instances. The watch starts it, and closes it before it stops watching.

    Ordering. `start` is called once, before anything is watched, and `close` once, after which nothing may be
    said. In between, `want` and `drop` may be called at any time; they count in the order in which they are
    called, and the next decision sees them. An instance that is wanted during `start` was there from the
    beginning; one that is wanted later comes to instances at work, and gets its first legs slowly.

    A source MUST

    * call `Wants` from the event loop's thread alone, and wait for nothing in `start`;
    * say what it wants whether or not the engine is up: one that boots is checked until it answers;
    * drop only what it wanted. To want again what it wants already changes nothing, so that a source may
      repeat all it knows;
    * drop an address before it wants it with another role, scheme or event source, for an address is spoken
      to in one way.

    A source may rely on these

    * What several sources want is there until the last one drops it. As which role and how an address is
      reached is for the first one to say; a later one that differs is told of in the log.
    * An instance that is wanted again while its last legs end stays.
    * An operator's word goes over every source's: what an operator removed stays out until a source wants it
      that did not want it then, or has dropped it since; and what an operator drained stays drained while it
      is there.
    * What it wanted is not kept for the next start: it says so anew.
    """

    @property
    def name(self) -> str:
        """What it is called in the log."""
        ...

    def start(self, wants: Wants) -> None:
        """Say what is wanted from the beginning, and go on saying what changes."""
        ...

    async def close(self) -> None:
        """Say nothing more. Raises nothing."""
        ...


class SourceSettings(Section, frozen=True, kw_only=True):
    """What a source with flags of its own is told: each field is a setting, as those of `proxy.config` are.

    A flag, a key in a file, an environment name, a check and a line of the reference come of each. Whoever
    installs the package that registers the class (`membership.registry`) has them in `kvproxy serve`; from
    Python an instance of it is given in `Config.membership`. Every field needs a default.
    """

    @property
    def used(self) -> bool:
        """Whether there is to be such a source: something that names instances was set."""
        raise NotImplementedError

    def source(self, config: Config) -> MembershipSource:
        """The source that these settings ask for. Called once, if it is used. Raises ConfigError."""
        raise NotImplementedError
