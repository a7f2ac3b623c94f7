"""A request that builds on a stored response can go to one instance alone; where a new response is stored is
known before it is answered.
"""

from typing import NamedTuple

from proxy.edge.ids import new_id
from proxy.edge.visit import Visit
from proxy.errors import RETRY_SOON, NotFoundError, UnavailableError, cut
from proxy.fleet import Instance, Status
from proxy.request.generation import GenerationRequest
from proxy.service import Service
from proxy.serving.exchange import Reply
from proxy.serving.stored import Place


class Storing(NamedTuple):
    """What the store of responses is to a request."""

    request: GenerationRequest
    """The request with the id of its response, if that may be stored."""
    stored_as: str | None
    """That id."""
    only: str | None
    """The instance that stores the response which the request builds on; None if it builds on none, or on
    one of which nothing is known: any engine then says so."""


def storing(service: Service, visit: Visit, request: GenerationRequest) -> Storing:
    """What the store is to a request of a dialect that has one. Raises RequestError."""
    only = stored_as = None
    previous = request.dialect.builds_on(request.body)
    if previous is not None and (place := service.responses.find(previous)) is not None:
        only = reachable(service, visit, previous, place).address
    if request.dialect.may_store(request.body):
        stored_as = f"resp_{new_id()}"
        request = request.with_member("request_id", stored_as)
    return Storing(request, stored_as, only)


class UnknownResponseError(NotFoundError):
    """No engine stores the response, as far as is known; in vLLM's words."""

    kind = "invalid_request_error"

    def __init__(self, response_id: str, why: str = "") -> None:
        super().__init__(f"Response with id '{cut(response_id)}' not found.{why}", param="response_id")


def reachable(service: Service, visit: Visit, response_id: str, place: Place) -> Instance:
    """The instance at a place. Raises RequestError."""
    if place.client != visit.client:
        raise UnknownResponseError(response_id)
    instance = service.fleet.get(place.instance)
    if instance is None:
        raise UnknownResponseError(response_id, " The engine that stored it has left.")
    if instance.status in {Status.DOWN, Status.REFUSED}:
        raise UnavailableError(
            f"Response with id '{response_id}' is stored by an engine that cannot be reached; if that engine "
            "has ended, the response is lost.",
            param="response_id",
            headers=RETRY_SOON,
        )
    return instance


def remember(service: Service, visit: Visit, stored_as: str, reply: Reply) -> None:
    """Remember which instance may store an answer."""
    if reply.decision is not None and (chosen := reply.decision.decode.chosen) is not None:
        service.responses.keep(stored_as, Place(chosen.instance, visit.client))
