"""Each part of `least_ms` is switched off here alone, by a policy that lacks it: no flag does that."""

from collections.abc import Callable, Mapping

from proxy.scheduling.types import AnyPolicy

WITHOUT: Mapping[str, Callable[[], AnyPolicy]] = {}
"""`least_ms` without a part, by name."""
