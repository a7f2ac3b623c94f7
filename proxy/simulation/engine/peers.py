"""Invariant: nothing reaches another engine before a handshake with it; notices that had to wait go out in a
later step.

This is how NIXL does it. The first notice to an engine starts a handshake in the background and is kept. The
end of the handshake sends nothing: kept notices are looked at when the next step begins. So a refused decode
leg frees its hold at once if the two engines have met before; otherwise only when this engine has something
else to do after the handshake (another request, another refusal), or never.
"""

from proxy.simulation.engine.request import Remote
from proxy.simulation.engine.values import Handshake, Heartbeat, Release


class Peers:
    """The engines that one engine knows. A handshake takes `handshake_s` seconds."""

    def __init__(self, handshake_s: float = 0.0) -> None:
        self._handshake_s = handshake_s
        self._known: set[str] = set()
        self._shaking: set[str] = set()
        self._kept: list[Remote] = []

    def __contains__(self, engine_id: object) -> bool:
        """Whether there was a handshake."""
        return engine_id in self._known

    def release(self, remote: Remote) -> list[Handshake | Release]:
        """Say that a hold will not be read. This is a step of its own: kept notices go out, too."""
        told: list[Handshake | Release] = list(self.step())
        if remote.engine_id in self._known:
            return [Release(remote), *told]
        self._kept.append(remote)
        return [*self._handshake(remote), *told]

    def heartbeat(self, remote: Remote) -> list[Handshake | Heartbeat]:
        """Say that a hold is still wanted. The first time a handshake goes out instead, so that the next
        heartbeat can.
        """
        return [Heartbeat(remote)] if remote.engine_id in self._known else [*self._handshake(remote)]

    def _handshake(self, remote: Remote) -> list[Handshake]:
        if remote.engine_id in self._shaking:
            return []
        self._shaking.add(remote.engine_id)
        return [Handshake(remote, self._handshake_s)]

    def step(self) -> list[Release]:
        """A step begins: returns kept notices for engines that are known by now."""
        ready = [remote for remote in self._kept if remote.engine_id in self._known]
        self._kept = [remote for remote in self._kept if remote.engine_id not in self._known]
        return [Release(remote) for remote in ready]

    def met(self, engine_id: str) -> None:
        """A handshake, or a pull that began with one, has succeeded."""
        self._shaking.discard(engine_id)
        self._known.add(engine_id)

    def missed(self, engine_id: str) -> None:
        """A handshake has failed: notices for that engine are lost, and the next one tries again."""
        self._shaking.discard(engine_id)
        self._kept = [remote for remote in self._kept if remote.engine_id != engine_id]
