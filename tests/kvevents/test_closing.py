"""A subscription can be closed at any moment of its connection: ZeroMQ's threads and ours never wait for each
other.

In a process of its own, for what goes wrong here cannot be interrupted.
"""

import subprocess
import sys

CLOSED = 1500
LIMIT_S = 100

SCRIPT = """
import asyncio, random, sys, time, zmq
from kvevents.wire import SourceAddress, Wire

async def main():
    context, publishing = zmq.Context(), zmq.Context()
    publisher = publishing.socket(zmq.PUB)
    port = publisher.bind_to_random_port("tcp://127.0.0.1")
    for _ in range(int(sys.argv[1])):
        wire = Wire(context, SourceAddress(0, f"tcp://127.0.0.1:{port}"), asyncio.Event())
        closes_at = time.perf_counter() + random.random() * 0.002  # a handshake takes about one
        while time.perf_counter() < closes_at:
            pass
        wire.close()
    publisher.close(linger=0)
    publishing.term()
    context.term()
    print("closed")

asyncio.run(main())
"""


def test_a_subscription_is_closed_while_its_connection_comes_about() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(CLOSED)], capture_output=True, timeout=LIMIT_S, check=False
    )
    assert ended.stdout == b"closed\n", ended.stderr.decode()
