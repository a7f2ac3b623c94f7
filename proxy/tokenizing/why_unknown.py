"""One of these words says why the tokens of a prompt are not known, in the log, `/explain` and the metrics
alike.
"""

import enum


class WhyUnknown(enum.StrEnum):
    """Why a prompt is placed without knowing its tokens."""

    ROUTE = "route"
    """Engines do not tokenize requests of this route."""
    MALFORMED = "malformed"
    """A member that makes the prompt is not what engines take."""
    FIELD = "field"
    """A member shapes the prompt, or may, in a way that is not known here."""
    PROMPT_LIST = "prompt list"
    """There are several prompts in it, which one leg serves together."""
    CONTENT_PART = "content part"
    """It has an image, a sound or the like, and what stands before the first is not known either."""
    TOO_LONG = "too long"
    """It is longer than any engine takes, so it is not tokenized."""
    NO_MEMORY = "no memory"
    """There is no memory for the work now."""
    COUNTED_DIFFERENTLY = "counted differently"
    """An engine has lately counted such a prompt differently."""
    NO_ANSWER = "no answer"
    """No engine gave its tokens in time."""
