"""docs/routes.md has a line for every path that clients may ask, made of what serves it."""

from collections.abc import Iterable

from aiohttp import web

from proxy.edge.app import CLIENTS, PROBES, STORED
from proxy.edge.routes.openapi import description
from proxy.request.dialects import DIALECTS
from proxy.request.passing import PASSED, ROUTES, By, Whole

_HEAD = """\
# Routes

<!-- Made by `python -m proxy.cli.reference docs/routes.md` of what serves the routes: change it there. -->

What a client of vLLM may ask of kvproxy, and how each route is served. Anything else is answered with 404 in the one envelope,
and reaches no engine. With `--api-key-file` every route here needs a client key, but for {open_paths}.
Operators' routes are in [operating.md](operating.md); `/openapi.json` describes all of them.

## Split over prefill and decode engines

| path | instances by | metrics |
| --- | --- | --- |
"""

_WHOLE = """
A prompt is computed on a prefill engine, its blocks are handed over, and a decode engine answers. What two legs would gain
nothing for is served whole by one.

## Served whole by one engine

One decode engine, or one that does both, serves the request, and judges all of its body but the model. It has what every
request has: its turn in the queue, deadlines, other attempts before its first byte, a line in the log and its `route` in the
metrics. Nothing is handed over. The engine's status, headers and body reach the client, its 404 and 403 included: they say
that its model, or its flags, have no such route, and the instance keeps its other requests. If it does not have the *model*
and others do, one of these is asked. Where no model computes anything (`/tokenize` and its like), a request waits for no room,
and counts next to nothing as load; while no other instance takes it, one that only prefills does.

| path | what it does | instance by | body | metrics | |
| --- | --- | --- | --- | --- | --- |
"""

_STORED = """
## Stored responses

An engine that was started with `VLLM_ENABLE_RESPONSES_API_STORE=1` stores each response, unless the request says `"store": false`,
in its own memory and until it ends. kvproxy remembers which instance answered the last 32768 responses, with `--state-dir` over a
restart, and asks that one alone:

| path | what it answers |
| --- | --- |
"""

_BUILT_ON = """
- A response is stored by the decode engine; the prefill leg stores nothing.
- vLLM 0.32 fetches and cancels; `DELETE` (405) and `/input_items` (404) are for engines that have them.
- A request with `previous_response_id` is served whole by the instance that stores that response: it waits for room there, and
  other attempts are made there. If nothing is known of the id, any engine says that it is not found.
- A request with `background` is served whole by one instance, and its answer comes at once; whoever asks for it later reaches
  that instance. Its work goes on there without a leg of kvproxy's, so loads do not count it.
- With `--api-key-file`, a response is found with the key that it was asked for with; for others it does not exist.
- `X-Request-Timeout-Ms` and `--request-timeout` hold for these requests, too.
- An instance that cannot be reached: 503. One that has left or has started anew has lost its responses: 404, which says so.
- Of several kvproxys only the one that served a request knows where its response is: balance clients by address or header.
"""

_KNOWN = f"""
`--pass PATH` (may be repeated) adds paths of engines' own to these: requests with JSON bodies, placed by load, and counted as
`{PASSED}`. A path that kvproxy serves already cannot be passed.

A form goes through as its client sends it: no more than 64 KiB of it are held, in which its field `model` is looked for (a model
behind a longer file counts as not given), and it may not be longer than `--max-body-mb`. Once any of it was sent, it is not
tried again.

A WebSocket is opened at an engine before the client hears that it is open; until then another engine may be tried, and an engine's
refusal passes. Then messages cross both ways, of up to 16 MiB, and each end gets the code with which the other one closed. A
shutdown closes it with 1001, an engine that breaks and a time limit that is over with 1011. Pages of other origins than those of
`--allowed-origins` cannot open one.

## Answered from what is known

No engine is asked for these.

| path | what it answers |
| --- | --- |
"""


def page() -> str:
    """The whole page, in Markdown."""
    return "".join(
        [
            _HEAD.format(open_paths=_open()),
            *_split(),
            _WHOLE,
            *map(_whole, ROUTES),
            _KNOWN,
            *_known(),
            _STORED,
            *_stored(),
            _BUILT_ON,
        ]
    )


def _open() -> str:
    """The paths that nobody needs a key for."""
    *paths, last = dict.fromkeys(f"`{route.path}`" for route in PROBES)
    return f"{', '.join(paths)} and {last}"


def _split() -> Iterable[str]:
    for dialect in DIALECTS:
        yield f"| `POST {dialect.path}` | {By.PROMPT} | `{dialect.name}` |\n"


def _whole(route: Whole) -> str:
    body = f"{route.carries}, {route.model}"
    cells = (
        f"`{route.method} {route.path}`",
        route.does,
        route.by,
        body,
        f"`{route.name}`",
        route.more,
    )
    return f"| {' | '.join(cells)} |\n"


def _stored() -> Iterable[str]:
    return _summaries(STORED)


def _known() -> Iterable[str]:
    return _summaries((*CLIENTS, *PROBES))


def _summaries(routes: Iterable[web.RouteDef]) -> Iterable[str]:
    paths = description()["paths"]
    for route in routes:
        path = route.path.replace(":.+}", "}")
        summary = paths[path][route.method.lower()]["summary"]
        yield f"| `{route.method} {path}` | {summary} |\n"
