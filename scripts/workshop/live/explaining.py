"""What kvproxy says about a request before it is sent (POST /explain)."""

import dataclasses

import aiohttp

from scripts.workshop.live.asking import Body
from scripts.workshop.live.proxy import ProxyProcess


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The decision for one request, nothing generated."""

    decision: Body

    @property
    def prompt_tokens(self) -> int | None:
        value: int | None = self.decision["prompt_tokens"]
        return value

    @property
    def prefill(self) -> str | None:
        chosen: str | None = self.decision["prefill"]["chosen"]
        return chosen

    @property
    def decode(self) -> str | None:
        chosen: str | None = self.decision["decode"]["chosen"]
        return chosen

    @property
    def bypass(self) -> str | None:
        """Why a decode instance would serve all of it; None for two legs."""
        reason: str | None = self.decision["bypass"]
        return reason

    def candidate(self, address: str, role: str = "prefill") -> Body:
        """Return the terms of one instance."""
        found: list[Body] = [c for c in self.decision[role]["candidates"] if c["instance"] == address]
        if len(found) != 1:
            raise LookupError(f"{address} is {len(found)} times among the {role} candidates: {self.decision}")
        return found[0]

    def cached(self, role: str = "prefill") -> dict[str, int | None]:
        """Cached tokens of each candidate, None where unknown."""
        return {c["instance"]: c["cached_tokens"] for c in self.decision[role]["candidates"]}


async def explain(session: aiohttp.ClientSession, proxy: ProxyProcess, body: Body) -> Explanation:
    """Ask for the decision; aiohttp.ClientResponseError if there is none."""
    headers = {"X-API-Key": proxy.admin_key} if proxy.admin_key else {}
    async with session.post(f"{proxy.url}/explain", json=body, headers=headers) as answer:
        answer.raise_for_status()
        return Explanation(await answer.json())
