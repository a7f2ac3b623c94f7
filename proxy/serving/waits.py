"""How long a request's own work waits for engines and for retry budget, where nobody has a setting for it."""

import msgspec

RELEASE_TIMEOUT_S = 10.0

RELEASE_ASK_TIMEOUT_S = 3.0
"""For one decode instance's answer: a refusal needs no step of the engine, and there must be time to ask
others."""

FIRST_CONTACT_PAUSES_S = (0.4, 1.2)
"""A decode engine that never spoke to a prefill engine loses the first release: it only begins their
handshake, which takes 0.1-0.3 s, rarely seconds. So it is told again after these pauses."""

FULL_PAUSE_S = 0.5
"""vLLM refuses a release before it looks at its limits, but a gateway before it may not: then it is told
again."""

ABANDONED_PREFILL_GRACE_S = 5.0
"""How long a prefill leg whose client left may still finish. Closing it while it finishes would strand its
blocks unseen, for what is released is named only in its answer; a leg that takes longer is most likely still
queued or computing, where closing it frees everything at once."""

BUDGET_WAIT_S = 2.0
"""How long a failed request may wait for retry budget. Long enough for the watch to find out that an instance
has died, which makes leaving it free; short beside what a client would wait for another attempt of its
own."""


class Waits(msgspec.Struct, frozen=True):
    """Seconds for each of these; the constants of this module tell why. Who assembles a service may pass
    others.
    """

    release_s: float = RELEASE_TIMEOUT_S
    release_ask_s: float = RELEASE_ASK_TIMEOUT_S
    first_contact_pauses_s: tuple[float, ...] = FIRST_CONTACT_PAUSES_S
    full_pause_s: float = FULL_PAUSE_S
    abandoned_prefill_s: float = ABANDONED_PREFILL_GRACE_S
    budget_wait_s: float = BUDGET_WAIT_S


WAITS = Waits()
