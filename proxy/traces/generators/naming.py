"""A generator in words is its name and the figures that are not as usual: `chats:turns=3,think_s=5`."""

import msgspec

from proxy.errors import TraceError
from proxy.traces.generators.agents import Agents
from proxy.traces.generators.base import Generator
from proxy.traces.generators.chats import Chats
from proxy.traces.generators.documents import Documents
from proxy.traces.generators.systems import Systems
from proxy.traces.generators.unrelated import Unrelated

GENERATORS: dict[str, type[Generator]] = {
    kind.name: kind for kind in (Systems, Chats, Agents, Documents, Unrelated)
}


def generator(text: str, seed: int = 0) -> Generator:
    """The generator of a text. Raises TraceError.

    `seed`: its seed, if the text has none.
    """
    name, _, figures = text.partition(":")
    kind = GENERATORS.get(name)
    if kind is None:
        raise TraceError(f"{name}: no generator; there are {', '.join(GENERATORS)}")
    given: dict[str, str | int] = {"seed": seed}
    for part in filter(None, figures.split(",")):
        figure, equals, value = part.partition("=")
        if not equals or figure not in kind.__struct_fields__:
            raise TraceError(f"{name}: {part!r} is no figure; there are {', '.join(kind.__struct_fields__)}")
        given[figure] = value
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise TraceError(f"{name}: {str(error).replace('`', '').replace('$.', '')}") from None
