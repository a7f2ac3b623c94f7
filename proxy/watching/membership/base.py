"""A membership source says which instances are wanted; whether an engine is up, and what it serves, the watch
finds out.

An instance is there while any source wants it. The sources stand beside each other: flags, the operator's
routes, and whatever else names instances (DNS, Kubernetes, a file).
"""

from typing import Protocol

from proxy.config import Config, InstanceSpec
from proxy.config.settings import Section


class Wants(Protocol):
    """Takes what one source wants. Both calls are synchronous, and raise nothing."""

    def want(self, spec: InstanceSpec, *, drained: bool = False, vital: bool = False) -> None:
        """An instance is wanted from now on. When the call returns it is in the fleet, and `starting` until a
        check finds it up.

        `drained`: it gets no legs until an operator undoes that. `vital`: kvproxy ends if the first check
        finds that the engine serves another model; otherwise such an instance is refused until it serves the
        right one.
        """
        ...

    def drop(self, address: str) -> None:
        """The instance is not wanted any more: it gets no new legs, and is removed once its running legs have
        ended.
        """
        ...


class MembershipSource(Protocol):
    """Names instances. The watch starts it, and closes it before it stops watching.

    Ordering. `start` is called once, before anything is watched, and `close` once; after that the source MUST
    NOT call `Wants`. In between, it may call `want` and `drop` at any time; they count in the order in which
    they are called, and the next decision sees them. An instance that is wanted during `start` was there from
    the beginning; one that is wanted later joins instances at work, and gets its first legs slowly.

    A source MUST

    * call `Wants` from the event loop's thread alone, and wait for nothing in `start`;
    * name an instance whether or not its engine is up: one that boots is checked until it answers;
    * drop only what it wanted. To want again what it wants already changes nothing, so a source may
      repeat all that it knows;
    * drop an address before it wants it with another role, scheme or event source, because an address has
      only one of each.

    A source may rely on these

    * An instance that several sources want is there until the last one drops it. The first one decides its
      role and how its address is reached; if a later one differs, the log says so.
    * An instance that is wanted again while its last legs end stays.
    * An operator overrules every source: what an operator removed stays out until a source wants it that did
      not want it then, or has dropped it since; what an operator drained stays drained while it is there.
    * What the source wanted is not stored for the next start: it names its instances again.
    """

    @property
    def name(self) -> str:
        """The source's name in the log."""
        ...

    def start(self, wants: Wants) -> None:
        """Name what is wanted from the beginning, and from then on each change."""
        ...

    async def close(self) -> None:
        """Call `Wants` no more. Raises nothing."""
        ...


class SourceSettings(Section, frozen=True, kw_only=True):
    """The settings of a source that has flags of its own: each field is a setting, as those of `proxy.config`
    are.

    Each field becomes a flag, a key in a file, an environment name, a check and a line of the reference.
    `kvproxy serve` has them once the package is installed that registers the class (`membership.registry`);
    from Python an instance of the class is given in `Config.membership`. Every field needs a default.
    """

    @property
    def used(self) -> bool:
        """Whether the source is to be used: a setting that names instances was set."""
        raise NotImplementedError

    def source(self, config: Config) -> MembershipSource:
        """The source that these settings describe. Called once, if it is `used`. Raises ConfigError."""
        raise NotImplementedError
