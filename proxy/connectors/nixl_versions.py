"""Two engines move KV over NIXL only if both speak one version of its metadata, which depends on their vLLM
release.

vLLM raises it whenever it changes what engines say to each other (`NIXL_CONNECTOR_VERSION`), and refuses the
handshake with any other version (`compute_nixl_compatibility_hash`).
"""

import re

METADATA_VERSIONS = {(0, 32): 14, (0, 33): 15}
"""By release: `NIXL_CONNECTOR_VERSION` in vllm/distributed/kv_transfer/kv_connector/v1/nixl/metadata.py of
0.32.0 and of 0.33.0."""


def release(version: str) -> tuple[int, int] | None:
    """The major and minor number of a vLLM version from `/version`; None if it does not begin with them (a
    build of main).
    """
    numbers = re.match(r"v?(\d{1,6})\.(\d{1,6})", version)
    return (int(numbers[1]), int(numbers[2])) if numbers else None


def shake_hands(one: str, other: str) -> bool | None:
    """Whether engines of two vLLM versions can move KV to each other; None if that has to be tried."""
    first, second = release(one), release(other)
    if first == second:
        return True if first is not None else None
    if first is None or second is None:
        return None
    known = METADATA_VERSIONS.get(first), METADATA_VERSIONS.get(second)
    return None if None in known else known[0] == known[1]
