"""Record what Starlette's CORSMiddleware tells browsers. Run with vLLM's environment, from here:

    .../.vllm-env/bin/python record_cors.py > cors_1_10.json

Of each settings: requests, each with its method, its headers, and the `Vary` of the answer of the application
behind; and what came of it: the status, the text if it is the middleware's own, and its headers.
"""

import asyncio
import json
from typing import Any

from starlette.middleware.cors import CORSMiddleware

APP, EVIL = "https://app.example", "https://evil.example"
SETTINGS = [
    {"allowed_origins": origins, "allow_credentials": credentials, "allowed_methods": methods,
    "allowed_headers": headers}
    for origins in (["*"], [APP, "null"])
    for credentials in (False, True)
    for methods, headers in ((["*"], ["*"]), (["GET", "POST"], ["authorization", "X-Request-Id"]))
]  # fmt: skip
ORIGINS = (None, APP, EVIL, "null")
PREFLIGHTS = (
    {"access-control-request-method": "POST"},
    {"access-control-request-method": "DELETE"},
    {"access-control-request-method": "post"},
    {"access-control-request-method": "POST",
    "access-control-request-headers": "Authorization, content-type"},
    {"access-control-request-method": "POST", "access-control-request-headers": "x-other"},
    {"access-control-request-method": "POST", "access-control-request-headers": ""},
    {"access-control-request-method": "BREW", "access-control-request-headers": "x-other",
    "access-control-request-private-network": "true"},
)  # fmt: skip


async def _answer(setting: dict[str, Any], method: str, headers: dict[str, str], vary: str) -> dict[str, Any]:
    sent: list[dict[str, Any]] = []

    async def application(_scope: Any, _receive: Any, send: Any) -> None:
        own = [(b"vary", vary.encode())] if vary else []
        await send({"type": "http.response.start", "status": 204, "headers": own})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Any) -> None:
        sent.append(message)

    middleware = CORSMiddleware(
        application,
        allow_origins=setting["allowed_origins"],
        allow_credentials=setting["allow_credentials"],
        allow_methods=setting["allowed_methods"],
        allow_headers=setting["allowed_headers"],
    )
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await middleware({"type": "http", "method": method, "headers": raw}, None, send)
    told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    framing = {"content-length", "content-type"}
    return {
        "status": sent[0]["status"],
        "text": sent[1]["body"].decode(),
        "headers": {name: value for name, value in told.items() if name not in framing},
    }


async def main() -> None:
    """Print the recorded answers as JSON."""
    groups = []
    for setting in SETTINGS:
        cases = []
        for origin in ORIGINS:
            named = {} if origin is None else {"origin": origin}
            asked = [("OPTIONS", named | preflight, "") for preflight in PREFLIGHTS]
            asked += [("GET", named, ""), ("POST", named, "Accept-Encoding"), ("OPTIONS", named, "")]
            for method, headers, vary in asked:
                cases.append([method, headers, vary, await _answer(setting, method, headers, vary)])
        rows = ",\n".join(json.dumps(case) for case in cases)
        groups.append(f'{{"settings": {json.dumps(setting)}, "cases": [\n{rows}\n]}}')
    print("[\n" + ",\n".join(groups) + "\n]")


if __name__ == "__main__":
    asyncio.run(main())
