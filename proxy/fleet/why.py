"""Why an instance gets no leg is one of these words, wherever that is asked.

Decisions, the queue, retries and `/explain` ask.
"""

import enum


class Why(enum.StrEnum):
    """Why an instance is passed over for a leg."""

    STARTING = "starting"
    """No check of it was answered yet."""
    DOWN = "down"
    """It cannot be reached, or says itself that it is dead."""
    ASLEEP = "asleep"
    """It lives, and answers no requests until somebody wakes it."""
    REFUSED = "refused"
    """It serves another model than kvproxy was started for."""
    DRAINING = "draining"
    """An operator wants it to get no new legs."""
    NOT_SERVED = "model not served"
    """It does not list the model of this request."""
    TOO_LONG = "too long for it"
    """Its context does not hold the leg."""
    FULL = "full"
    """It has too much to do for one more leg, by the limits set for it, or what room it has is kept for
    others."""
    SAYS_FULL = "says it is full"
    """Its engine has just refused a leg for want of room."""
    FAILED = "failed just now"
    """An earlier attempt at the same request failed there."""
    SLOW_START = "slow start"
    """It has its share of legs while it starts slowly."""
    NOT_ANSWERING = "not answering"
    """Its last check was not answered, which alone proves nothing."""
    FAILING = "failing"
    """Its last legs failed, several in a row and just now."""
    HALF_OPEN = "half-open"
    """Its circuit is half-open, and the one leg it may have is running."""
    CIRCUIT_OPEN = "circuit open"
    """Its legs failed where others served the same requests."""


NO_ROOM = frozenset({Why.FULL, Why.SAYS_FULL})
"""It would be used otherwise: room is worth waiting for."""

ASIDE = (Why.SLOW_START, Why.NOT_ANSWERING, Why.FAILING, Why.HALF_OPEN, Why.CIRCUIT_OPEN)
"""It could be used, and is set aside while there is a better one; later ones are graver."""

FAILS_LEGS = frozenset({Why.FAILING, Why.HALF_OPEN, Why.CIRCUIT_OPEN})
"""It is set aside for what became of its legs."""
