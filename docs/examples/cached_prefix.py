"""Which prefix of a prompt does an engine have cached? Asked of its KV events, not of the engine.

python docs/examples/cached_prefix.py tcp://127.0.0.1:5557 tcp://127.0.0.1:5657 TOKEN_ID ...
"""

import asyncio
import sys

from kvevents import DEFAULT_TIER, NullObserver, PrefixIndex, Prompt, Slot, State
from kvevents.subscriber import SourceAddress, Subscriber


class Ready(NullObserver):
    """Sets `known` as soon as the rank is known."""

    def __init__(self) -> None:
        self.known = asyncio.Event()

    def state_changed(self, *, instance: str, rank: int, state: State) -> None:  # noqa: ARG002  # there is only one
        if state is not State.UNKNOWN:
            print(f"what is known is {state}")
            self.known.set()


async def main(events: str, replay: str, *token_ids: str) -> None:
    """Follow rank 0 of one engine until it is known, and ask."""
    index, ready = PrefixIndex(), Ready()
    subscriber = Subscriber("engine", SourceAddress(0, events, replay), index, ready)
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(subscriber.run(), name="follow the engine")
        await ready.known.wait()
        cached = index.match(Prompt([int(token) for token in token_ids]))
        print(f"{cached.get(Slot('engine', 0, DEFAULT_TIER), 0)} of {len(token_ids)} tokens are cached")
        following.cancel()


asyncio.run(main(*sys.argv[1:]))
