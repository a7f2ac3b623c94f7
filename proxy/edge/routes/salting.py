"""With --salt-by-client no engine sees a prompt of a client without that client's salt."""

from aiohttp import web
from msgspec.structs import replace

from proxy.edge.access.authentication import CLIENT_KEY, CLIENT_KEYS
from proxy.edge.access.client_salts import ClientSalts, read_own_salt
from proxy.edge.app_keys import SALTS
from proxy.errors import BadRequestError
from proxy.request.generation import GenerationRequest

CLIENT_PARAMETER = "client"
"""Of a question's query: the name of the key whose request it would be."""


def salted(request: web.Request, generation: GenerationRequest) -> GenerationRequest:
    """A client's request as engines get it. Raises BadRequestError for a salt that vLLM would refuse."""
    salts = request.app.get(SALTS)
    return generation if salts is None else _salted(salts, request[CLIENT_KEY], generation)


def salted_as_asked(request: web.Request, generation: GenerationRequest) -> GenerationRequest:
    """What an operator asks about, as engines would get it from the client that the query names.

    Raises BadRequestError if salts differ by client and it names none, or nobody.
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
