"""LangChain's ChatOpenAI, unchanged but for its base URL.

Prints a line of JSON for each URL. Usage: python -m tests.fidelity.clients.langchain_client URL URL [--free]
With --free nothing is asked that a grammar forces: a model that was never trained comes to no end there.
"""

import asyncio
import json
import sys
from typing import Any

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from tests.fidelity.clients.openai_client import TALK, Verdict


@tool
def look(deep: bool) -> str:
    """Look something up."""
    return f"looked {'deep' if deep else 'around'}"


def main(base_url: str, *, forced: bool) -> dict[str, Any]:
    """What the client was told."""
    model = ChatOpenAI(
        model="tiny", base_url=base_url, api_key="none", temperature=0, max_tokens=60, max_retries=0
    )
    question = HumanMessage(TALK[0]["content"])
    answer = model.invoke([question])
    pieces = list(model.stream([question]))
    later = asyncio.run(model.abatch([[question], [HumanMessage("and again")]]))
    return {
        "chat": answer.content,
        "usage": answer.usage_metadata and answer.usage_metadata["output_tokens"],
        "streamed": "".join(str(piece.content) for piece in pieces),
        "forced": tools_loop(model, question) if forced else [],
        "async": [one.content for one in later],
    }


def tools_loop(model: ChatOpenAI, question: HumanMessage) -> Any:
    """A call that must be made, its result, and the answer to that; and a structured answer."""
    call = model.bind_tools([look], tool_choice="required").invoke([question])
    for made in call.tool_calls:
        made["id"] = "the-same-for-all"  # it is in the next prompt
    results = [ToolMessage(look.invoke(c["args"]), tool_call_id=c["id"]) for c in call.tool_calls]
    after = model.bind_tools([look], tool_choice="none").invoke([question, call, *results])
    verdict = model.with_structured_output(Verdict, method="json_schema").invoke([question])
    return {
        "tools": [[c["name"], c["args"]] for c in call.tool_calls],
        "results": [result.content for result in results],
        "after": after.content,
        "structured": verdict.model_dump() if isinstance(verdict, Verdict) else verdict,
    }


if __name__ == "__main__":
    for url in sys.argv[1:3]:
        print(json.dumps(main(f"{url}/v1", forced="--free" not in sys.argv)))
