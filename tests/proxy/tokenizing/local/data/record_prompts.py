"""Record what vLLM makes of chats: its own parsing, templates and tokens. Run with vLLM's environment, from
here:

    python -c 'import pathlib, proxy.simulation.model_files as m; m.write_model(pathlib.Path("DIR"))'
    .../.vllm-env/bin/python record_prompts.py DIR > prompts_0_32.json

with DIR an empty directory.

`chats.json` holds templates and requests. Each request is read by vLLM's own classes, rendered by its own
renderer's functions with transformers, and tokenized with the stand-ins' tokenizer; null stands for a request
that is refused.
"""

import json
import pathlib
import sys
import tempfile
import types
from typing import Any

from transformers import AutoTokenizer
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.renderers.chat_utils import parse_chat_messages
from vllm.renderers.hf import resolve_chat_template_content_format, safe_apply_chat_template

MODEL = types.SimpleNamespace(
    enable_prompt_embeds=False, multimodal_config=None, is_multimodal_model=False, revision=None,
    code_revision=None,
    tokenizer_revision=None, trust_remote_code=False, tokenizer="", model="",
    hf_config=types.SimpleNamespace(model_type="llama"), allowed_local_media_path="",
    allowed_media_domains=None,
)  # fmt: skip


def main() -> None:
    """Print the recorded answers as JSON."""
    chats = json.loads(pathlib.Path("chats.json").read_text("utf-8"))
    recorded = {}
    for name, setting in chats["templates"].items():
        with tempfile.TemporaryDirectory() as folder:
            directory = pathlib.Path(folder)
            (directory / "tokenizer.json").write_bytes(
                (pathlib.Path(sys.argv[1]) / "tokenizer.json").read_bytes()
            )
            (directory / "tokenizer_config.json").write_text(json.dumps(setting["config"]))
            if isinstance(setting["template"], str):
                (directory / "chat_template.jinja").write_text(setting["template"], "utf-8")
            tokenizer = AutoTokenizer.from_pretrained(directory)
            recorded[name] = {
                "format": resolve_chat_template_content_format(
                    None, None, "auto", tokenizer, model_config=MODEL
                ),
                "answers": [answer(tokenizer, request) for request in chats["requests"]],
            }
    lines = (
        f"{json.dumps(name)}: " + json.dumps(found).replace("], [", "],\n[")
        for name, found in recorded.items()
    )
    print("{" + ",\n".join(lines) + "}")


def answer(tokenizer: Any, body: dict[str, Any]) -> Any:
    """The token ids of a request's prompt."""
    try:
        request = ChatCompletionRequest.model_validate(json.loads(json.dumps(body)))
        tools = None if request.tools is None else [tool.model_dump() for tool in request.tools]
        params = request.build_chat_params(None, "auto").with_defaults({"tools": tools, "tokenize": False})
        form = resolve_chat_template_content_format(None, tools, "auto", tokenizer, model_config=MODEL)
        conversation, _, _ = parse_chat_messages(request.messages, MODEL, form)
        variables = params.get_apply_chat_template_kwargs()
        text = safe_apply_chat_template(MODEL, tokenizer, conversation, **variables)
        return tokenizer(text, add_special_tokens=request.add_special_tokens)["input_ids"]
    except Exception as error:  # noqa: BLE001  # whatever it is, the engine refuses
        print(f"{type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
        return None


if __name__ == "__main__":
    main()
