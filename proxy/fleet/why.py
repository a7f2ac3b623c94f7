"""Why an instance gets no leg is one word of `Why`, for decisions, the queue, retries and `/explain`."""

import enum


class Why(enum.StrEnum):
    """Why an instance is passed over for a leg."""

    STARTING = "starting"
    """No check of it was answered yet."""
    DOWN = "down"
    """It cannot be reached, or says itself that it is dead."""
    ASLEEP = "asleep"
    """It lives, and serves no requests until it is woken."""
    REFUSED = "refused"
    """It serves another model than kvproxy was started for."""
    DRAINING = "draining"
    """An operator wants it to get no new legs."""
    NOT_SERVED = "model not served"
    """It does not list the model of this request."""
    TOO_LONG = "too long for it"
    """Its context does not hold the leg."""
    ELSEWHERE = "lacks the response"
    """It has not what the request builds on: another instance stores that response."""
    FULL = "full"
    """It has no room for the leg, by the configured limits, or its room is kept for other requests."""
    SAYS_FULL = "says it is full"
    """Its engine has just refused a leg for want of room."""
    MORE_LEFT = "more to compute"
    """The request is served whole by a decode instance that has more of its prompt cached (`--bypass`)."""
    FAILED = "failed just now"
    """An earlier attempt at the same request failed there."""
    SLOW_START = "slow start"
    """It has its full share of legs, which is small while it starts slowly."""
    NOT_ANSWERING = "not answering"
    """Its last check was not answered, which alone proves nothing."""
    FAILING = "failing"
    """Its last legs failed, several in a row and just now."""
    HALF_OPEN = "half-open"
    """Its circuit is half-open, and the one leg that it may have is running."""
    CIRCUIT_OPEN = "circuit open"
    """Its legs failed where others served the same requests."""


NO_ROOM = frozenset({Why.FULL, Why.SAYS_FULL})
"""The instance lacks only room, so waiting for it makes sense."""

ASIDE = (Why.SLOW_START, Why.NOT_ANSWERING, Why.FAILING, Why.HALF_OPEN, Why.CIRCUIT_OPEN)
"""The instance could be used, and is set aside while there is a better one. Later words are graver."""

FAILS_LEGS = frozenset({Why.FAILING, Why.HALF_OPEN, Why.CIRCUIT_OPEN})
"""The instance is set aside because its legs failed."""
