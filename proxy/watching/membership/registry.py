"""A package that is installed beside kvproxy can bring sources of instances, without a change of kvproxy.

It names its `SourceSettings` in its metadata, as an entry point of the group `kvproxy.membership`:

    [options.entry_points]
    kvproxy.membership =
        consul = my_package.kvproxy:ConsulSettings
"""

import importlib.metadata
from collections.abc import Sequence

from proxy.config import Config
from proxy.errors import ConfigError
from proxy.watching.membership.base import MembershipSource, SourceSettings

GROUP = "kvproxy.membership"


def registered() -> Sequence[type[SourceSettings]]:
    """The settings of the sources that installed packages bring, by name. Raises ConfigError."""
    points = sorted(importlib.metadata.entry_points(group=GROUP), key=lambda point: point.name)
    return [_loaded(point) for point in points]


def _loaded(point: importlib.metadata.EntryPoint) -> type[SourceSettings]:
    named = f"the source {point.name} ({point.value}) of an installed package"
    try:
        kind = point.load()
    except Exception as error:  # somebody else's package may fail in any way
        raise ConfigError(f"{named} cannot be loaded: {type(error).__name__}: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, SourceSettings)):
        raise ConfigError(f"{named} is no SourceSettings")
    return kind


def used_sources(config: Config) -> Sequence[MembershipSource]:
    """The sources that `config.membership` asks for. Raises ConfigError."""
    sections = (section for section in config.membership if isinstance(section, SourceSettings))
    return [section.source(config) for section in sections if section.used]
