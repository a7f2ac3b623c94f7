"""With --salt-by-client, engines see a client's prompt only with that client's salt."""

from aiohttp import web
from msgspec.structs import replace

from proxy.edge.access.authentication import CLIENT_KEYS
from proxy.edge.access.client_salts import ClientSalts, read_own_salt
from proxy.edge.app_keys import SALTS
from proxy.edge.visit import Visit
from proxy.errors import BadRequestError
from proxy.request.generation import GenerationRequest

CLIENT_PARAMETER = "client"
"""The query parameter of `/explain` that names the key whose request is asked about."""


def salted(salts: ClientSalts, visit: Visit, generation: GenerationRequest) -> GenerationRequest:
    """A client's request with its salt. Raises BadRequestError for a salt of the client's own that vLLM would
    refuse.
    """
    if (client := visit.client) is None:
        raise RuntimeError("a request without a client's key would share its cache with others")
    return _salted(salts, client, generation)


def salted_as_asked(request: web.Request, generation: GenerationRequest) -> GenerationRequest:
    """The request that an operator asks about, with the salt of the client that the query names.

    Raises BadRequestError if salts differ by client and the query names none, or an unknown one.
    """
    salts = request.app.get(SALTS)
    if salts is None:
        return generation
    name = request.query.get(CLIENT_PARAMETER)
    if name is None:
        raise BadRequestError(
            f"each client has a cache of its own (--salt-by-client): name one with ?{CLIENT_PARAMETER}=NAME",
            param=CLIENT_PARAMETER,
        )
    if not request.app[CLIENT_KEYS].knows(name):
        raise BadRequestError("no client's key has this name", param=CLIENT_PARAMETER)
    return _salted(salts, name, generation)


def _salted(salts: ClientSalts, name: str, generation: GenerationRequest) -> GenerationRequest:
    own = read_own_salt(generation.body.raw("cache_salt"))
    return replace(generation, body=generation.body.changed({"cache_salt": salts.of(name, own)}))
