"""Free loopback ports that stay free: none from the range the kernel lends to outgoing connections.

An engine takes half a minute to bind its ports. A port out of the lending range could be some connection's
source port by then, and the engine would die. So that no other picker takes it meanwhile, each port stays
bound, not listening, for the life of this process: servers set SO_REUSEADDR and pass, pickers do not.
"""

import atexit
import contextlib
import pathlib
import random
import socket

_RANGE = pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 15_000  # below are the ports people know by heart
_TRIES = 1_000

_reserved = contextlib.ExitStack()
atexit.register(_reserved.close)


def free_ports(count: int) -> list[int]:
    """Return `count` different ports that nobody listens on at any address; RuntimeError if there are too
    few.
    """
    found: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as held:
        for _ in range(_TRIES):
            if len(found) == count:
                break
            port = random.randint(_LOWEST, _highest())  # noqa: S311  # spreads the load, keeps no secret
            sock = socket.socket()
            try:
                sock.bind(("", port))
            except OSError:
                sock.close()
            else:
                found[port] = held.enter_context(sock)
        if len(found) < count:
            raise RuntimeError(f"found {len(found)} free ports of {count}")
        held.pop_all()
    for sock in found.values():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _reserved.enter_context(sock)
    return list(found)


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _highest() -> int:
    try:
        lent_from = int(_RANGE.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        lent_from = 32_768
    return lent_from - 1 if lent_from > _LOWEST + _TRIES else 65_535
