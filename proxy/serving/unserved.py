"""A request that no engine answered gets the error that says why, and whether to come back."""

from proxy.errors import (
    RETRY_SOON,
    BadRequestError,
    ConnectTimeoutError,
    DeadlineError,
    EngineFailedError,
    GatewayTimeoutError,
    NoSocketError,
    RequestError,
    UnavailableError,
    UnresolvedError,
    nothing_usable,
)
from proxy.fleet import Fleet
from proxy.phases import Phase
from proxy.request.generation import GenerationRequest
from proxy.scheduling.lengths import longest_context, too_many_characters, too_many_tokens
from proxy.serving.legs.leg import AttemptFailedError
from proxy.tokenizing import Excess


def unanswered(fleet: Fleet, model: str, last: AttemptFailedError | None) -> RequestError:
    """The error of a request whose attempts all failed; `last`: how the last one did."""
    cause = last.cause if last is not None else None
    if isinstance(cause, NoSocketError):
        return UnavailableError(f"kvproxy can open no more connections ({cause.words})", headers=RETRY_SOON)
    if isinstance(cause, UnresolvedError):
        return UnavailableError(f"kvproxy cannot find its engines ({cause.words})", headers=RETRY_SOON)
    if isinstance(cause, DeadlineError | ConnectTimeoutError):
        return GatewayTimeoutError(f"no engine answered in time: {cause.words}")
    missing = [phase for phase in Phase if not any(i.why_unusable(model) is None for i in fleet.of(phase))]
    if missing or last is None:
        return nothing_usable(missing)
    return EngineFailedError(f"no engine answered: {cause.words if cause else last}")


def too_long(fleet: Fleet, request: GenerationRequest, excess: Excess) -> BadRequestError:
    """The error that an engine would give for a prompt too long for the longest context of the fleet."""
    listing = [instance for instance in fleet if request.model in instance.models]
    context = int(longest_context(listing, alone=request.whole) or excess.context_tokens)
    if excess.max_ids is not None:
        return BadRequestError(
            f"prompt has {excess.tokens} token ids: at most {excess.max_ids} are taken", param="prompt"
        )
    if excess.tokens is not None:
        return too_many_tokens(context, excess.tokens)
    return too_many_characters(context, excess.characters, excess.characters_a_token)
