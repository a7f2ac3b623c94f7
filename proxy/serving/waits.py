"""How long a request waits for engines and for retry budget, where that is no setting."""

import msgspec

RELEASE_TIMEOUT_S = 10.0
"""How long the release of one hold may take in all, its retries and other decode instances included."""

RELEASE_ASK_TIMEOUT_S = 3.0
"""How long one decode instance may take to answer a release: its refusal needs no step of the engine, and
there must be time to ask others."""

FIRST_CONTACT_PAUSES_S = (0.4, 1.2)
"""The pauses after which a release is sent again to a decode engine that never spoke to the prefill engine.
Such an engine loses the first release: it only begins their handshake, which takes 0.1-0.3 s, rarely
seconds."""

FULL_PAUSE_S = 0.5
"""The pause before a release is sent again that was answered as if the engine were full. vLLM refuses a
release before it looks at its limits; a gateway in front of it may not."""

ABANDONED_PREFILL_GRACE_S = 5.0
"""How long a prefill leg whose client left may still finish. Only its answer names the blocks to release, so
closing it just then would strand them unseen. A leg that takes longer is most likely still queued or
computing, where closing it frees everything at once."""

BUDGET_WAIT_S = 2.0
"""How long a failed request may wait for retry budget: long enough for the watch to find out that an instance
has died, which makes leaving it free, and short beside the time in which a client would try again itself."""


class Waits(msgspec.Struct, frozen=True):
    """The waits above, in seconds. Whoever assembles a service may pass others."""

    release_s: float = RELEASE_TIMEOUT_S
    release_ask_s: float = RELEASE_ASK_TIMEOUT_S
    first_contact_pauses_s: tuple[float, ...] = FIRST_CONTACT_PAUSES_S
    full_pause_s: float = FULL_PAUSE_S
    abandoned_prefill_s: float = ABANDONED_PREFILL_GRACE_S
    budget_wait_s: float = BUDGET_WAIT_S


WAITS = Waits()
