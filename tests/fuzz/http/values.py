"""JSON bodies that are nearly right: the structure of real ones, with members replaced, doubled, nested and
broken.

All randomness comes from the generator passed in, so that a number names a body for ever.
"""

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

Body = dict[str, Any]

PROMPTS = tuple(f"fuzz prompt {number} and a few words more" for number in range(500))
"""Few enough that whoever remembers prompts has seen them all after a while: memory that grows on is then a
leak."""

_RAW_MARK = "@raw:{}@"

_RAW = (
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e999",
    b"-1e999",
    b"1e-999",
    b"-0",
    b"-0.0",
    b"01",
    b"1.",
    b".5",
    b"+1",
    b"0x10",
    b"1_000",
    b"9" * 30,
    b"9" * 400,
    b"9" * 5000,
    b"1" + b"0" * 20 + b".0",
    b"'single'",
    b"undefined",
    b"nul",
    b"True",
    b"",
    b'"\\ud800"',
    b'"\\udc00\\ud800"',
    b'"\\u0000"',
    b'"\\x41"',
    b'"\\"',
    b'"\xff\xfe"',
    b'"\xc0\x80"',
    b'"\xed\xa0\x80"',
    b'"\xf4\x90\x80\x80"',
    b'"line\nbreak"',
    b'"tab\there"',
    b'"nul\x00byte"',
    b"\xef\xbb\xbf1",
    b"[" * 150 + b"]" * 150,
    b"[" * 300 + b"]" * 300,
    b'{"a":' * 300 + b"1" + b"}" * 300,
    b"[" * 2000,
    b"[1,]",
    b'{"a":1,}',
    b"/* no */ 1",
)
"""Texts of values that a JSON library does not write: wrong ones, and right ones that are rare."""

_ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    16,
    2**31 - 1,
    2**31,
    2**32,
    2**53 + 1,
    2**63 - 1,
    2**63,
    -(2**63) - 1,
    2**64,
    0.0,
    1.0,
    1.5,
    -1.5,
    1e300,
    5e-324,
    "",
    " ",
    "0",
    "1",
    " 2 ",
    "2.0",
    "1_0",
    "1e1",
    "-1",
    "nan",
    "true",
    "yes",
    "off",
    "none",
    "tiny",
    "\x00",
    "\r\nX-Evil: 1\r\n",
    "data: [DONE]\n\n",
    "\u2028\u00e9\U0001f600",
    "../../etc/passwd",
    "a" * 3000,
    [],
    [None],
    [[]],
    [0],
    [1, "a"],
    ["a", 1],
    [[1], 2],
    [[1, 2], [3]],
    ["one", "two"],
    [1.5],
    [-1],
    [2**32],
    {},
    {"a": None},
    {"": ""},
    {"type": "text"},
    {"error": {"code": 500}},
)

_NAMES = (  # noqa: SIM905  # a list of these is a page long
    "model stream stream_options max_tokens max_completion_tokens min_tokens n best_of temperature top_p "
    "top_k min_p seed stop stop_token_ids ignore_eos presence_penalty frequency_penalty repetition_penalty "
    "logit_bias logprobs top_logprobs prompt_logprobs allowed_token_ids bad_words response_format "
    "structured_outputs tools tool_choice parallel_tool_calls skip_special_tokens echo suffix priority "
    "return_token_ids vllm_xargs cache_salt use_beam_search user metadata kv_transfer_params "
    "ec_transfer_params request_id truncate_prompt_tokens add_special_tokens add_generation_prompt "
    "continue_final_message chat_template chat_template_kwargs prompt prompt_embeds messages documents "
    "mm_processor_kwargs reasoning_effort do_remote_decode input instructions max_output_tokens store "
    "background include previous_response_id reasoning text truncation system thinking stop_sequences "
    "output_config token_ids sampling_params features content_parts"
).split()

_MESSAGES: tuple[Any, ...] = (
    [{"role": "user", "content": "hello"}],
    [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}],
    [{"role": "user"}],
    [{"role": "", "content": "x"}],
    [{"content": "x"}],
    [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "tool", "content": "1"}],
    [[]],
    "hello",
    {},
    None,
)

_ITEMS: tuple[Body, ...] = (
    {"role": "assistant", "content": [{"type": "output_text", "text": "yes"}]},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "x"},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "so"}]},
)
"""Input items of responses."""

_BLOCKS: tuple[Body, ...] = (
    {"type": "text", "text": "hello"},
    {"type": "tool_use", "id": "a", "name": "f", "input": {}},
    {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "x"}]},
    {"type": "thinking", "thinking": "so", "signature": "s"},
)
"""Blocks of a message's content."""

_KV_PARAMS: tuple[Any, ...] = (
    {
        "do_remote_prefill": True,
        "remote_block_ids": [[1]],
        "remote_engine_id": "x",
        "remote_host": "127.0.0.1",
    },
    {"do_remote_decode": True},
    {"prompt_token_ids": [1, 2]},
    {"kv_transfer_params": {"do_remote_prefill": True}},
)


def completion(rng: random.Random) -> Body:
    """A completion that is right."""
    body: Body = {"model": "tiny", "prompt": rng.choice(PROMPTS), "max_tokens": rng.choice((1, 1, 2, 8))}
    _some_options(rng, body)
    if rng.random() < 0.3:
        body["prompt"] = [rng.randrange(300) for _ in range(rng.randrange(1, 40))]
    return body


def chat(rng: random.Random) -> Body:
    """A chat that is right."""
    words = rng.choice(PROMPTS)
    body: Body = {"model": "tiny", "messages": [{"role": "user", "content": words}], "max_tokens": 2}
    _some_options(rng, body)
    return body


WHOLE = (
    "/invocations",
    "/v1/chat/completions/batch",
    "/generative_scoring",
    "/tokenize",
    "/detokenize",
    "/v1/embeddings",
    "/rerank",
    "/v1/completions/render",
)
"""Routes that one engine serves whole."""

OTHERS = ("/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/inference/v1/generate", *WHOLE)
"""Routes beside completions and chats."""


def other(rng: random.Random, path: str) -> Body:
    """A body that is right for such a route."""
    words = rng.choice(PROMPTS)
    match path:
        case "/v1/responses":
            stream = {"stream": True} if rng.random() < 0.3 else {}
            asked = rng.choice((words, [rng.choice(_ITEMS), {"role": "user", "content": words}]))
            return {"model": "tiny", "input": asked, "max_output_tokens": 2, **stream}
        case "/v1/messages" | "/v1/messages/count_tokens":
            stream = {"stream": True} if rng.random() < 0.3 else {}
            blocks = [rng.choice(_BLOCKS), {"type": "text", "text": words}]
            messages = [{"role": "user", "content": rng.choice((words, blocks))}]
            return {"model": "tiny", "messages": messages, "max_tokens": 2, **stream}
        case "/inference/v1/generate":
            sampling = {"max_tokens": 2, "n": 1, "logprobs": 1, "logit_bias": {"5": 1.0}}
            ids = [rng.randrange(300) for _ in range(rng.randrange(1, 40))]
            return {"model": "tiny", "token_ids": ids, "sampling_params": sampling}
        case "/invocations":
            return chat(rng) if rng.random() < 0.5 else completion(rng)
        case "/v1/chat/completions/batch":
            turns = [[{"role": "user", "content": words}] for _ in range(rng.randrange(1, 4))]
            return {"model": "tiny", "messages": turns, "max_tokens": 2}
        case "/generative_scoring":
            return {"query": words, "items": [" yes", " no"], "label_token_ids": [5, 9]}
        case "/detokenize":
            return {"tokens": [rng.randrange(300) for _ in range(rng.randrange(8))]}
        case "/rerank":
            return {"query": words, "documents": [words]}
        case "/v1/embeddings":
            return {"model": "tiny", "input": words}
    return {"model": "tiny", "prompt": words}


def _some_options(rng: random.Random, body: Body) -> None:
    if rng.random() < 0.3:
        body["stream"] = True
        if rng.random() < 0.5:
            body["stream_options"] = {"include_usage": True}
    if rng.random() < 0.5:
        body["temperature"] = 0


def mutated(rng: random.Random, body: Body, odd: Sequence[Any] = _ODD) -> bytes:
    """The text of a body after one to four changes to its structure; `odd` are the values it may get."""
    raws: list[bytes] = []
    doubled: list[bytes] = []

    def value() -> Any:
        if odd is _ODD and rng.random() < 0.3:
            raws.append(rng.choice(_RAW))
            return _RAW_MARK.format(len(raws) - 1)
        return copy.deepcopy(rng.choice(odd))  # later changes may go into it

    body = json.loads(json.dumps(body))
    for _ in range(rng.randrange(1, 5)):
        _change(rng, body, value, doubled)
    text = json.dumps(body, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    for number, raw in enumerate(raws):
        text = text.replace(json.dumps(_RAW_MARK.format(number)).encode(), raw)
    for member in doubled:
        text = b"{" + member + b"," + text[1:] if rng.random() < 0.5 else text[:-1] + b"," + member + b"}"
    return text


def _change(rng: random.Random, body: Body, value: Callable[[], Any], doubled: list[bytes]) -> None:
    match rng.randrange(9):
        case 0 | 1:
            where, key = _somewhere(rng, body)
            if key is not None:
                where[key] = value()
        case 2 | 3:
            body[rng.choice(_NAMES)] = value()
        case 4:
            where, key = _somewhere(rng, body)
            if key is not None:
                del where[key]
        case 5:
            name = rng.choice([*body, *_NAMES])
            doubled.append(_escaped(rng, name) + b":" + json.dumps(rng.choice(_ODD)).encode())
        case 6:
            where, key = _somewhere(rng, body)
            if key is not None:
                for _ in range(rng.choice((1, 2, 20, 190, 250))):
                    where[key] = [where[key]] if rng.random() < 0.5 else {"a": where[key]}
        case 7:
            body[rng.choice(("messages", "prompt"))] = copy.deepcopy(rng.choice(_MESSAGES))
        case _:
            inner = copy.deepcopy(rng.choice(_KV_PARAMS))
            body[rng.choice(("kv_transfer_params", "vllm_xargs", "ec_transfer_params"))] = inner


def _somewhere(rng: random.Random, body: Body) -> tuple[Any, Any]:
    """A container in the body and a key or index in it; None if it is empty."""
    where: Any = body
    for _ in range(6):
        if not where:
            return where, None
        key: Any = rng.choice(list(where)) if isinstance(where, dict) else rng.randrange(len(where))
        if not isinstance(where[key], dict | list) or not where[key] or rng.random() < 0.4:
            return where, key
        where = where[key]
    return where, None


def _escaped(rng: random.Random, name: str) -> bytes:
    r"""A member's name as JSON text, some of its letters written as \u0000."""
    return b'"' + b"".join(b"\\u%04x" % ord(c) if rng.random() < 0.5 else c.encode() for c in name) + b'"'


def scrambled(rng: random.Random, data: bytes) -> bytes:
    """Bytes with a few of them flipped, cut out, doubled, swapped or put in."""
    text = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not text:
            break
        at = rng.randrange(len(text))
        length = min(len(text) - at, rng.choice((1, 1, 2, 8, 64)))
        match rng.randrange(6):
            case 0:
                text[at] ^= 1 << rng.randrange(8)
            case 1:
                text[at] = rng.choice(b'\x00\r\n\t :;,"{}[]\\/\x7f\x80\xff%0aZ')
            case 2:
                del text[at : at + length]
            case 3:
                text[at:at] = text[at : at + length] * rng.choice((1, 1, 3))
            case 4:
                text[at:at] = rng.randbytes(length)
            case _:
                other = rng.randrange(len(text))
                text[at], text[other] = text[other], text[at]
    return bytes(text)


_UNITS: tuple[tuple[bytes, bytes, bytes], ...] = (
    (b'"prompt":"', b"<|en", b'"'),
    (b'"prompt":"', b"word ", b'"'),
    (b'"prompt":"', b"\\u4e2d\\ud83d\\ude00\\n", b'"'),
    (b'"prompt":"', "漢字é ".encode(), b'"'),
    (b'"prompt":"', b"  x  ", b'"'),
    (b'"prompt":[', b"17,", b"1]"),
    (b'"prompt":["a"', b',"a b c"', b"]"),
    (b'"prompt":[[1]', b",[1,2,3]", b"]"),
    (b'"prompt":"a","x":[', b"[[]],", b"1]"),
    (b'"prompt":"a","x":', b"   \n", b"1"),
    (b'"prompt":"a","priority":[', b"1,", b"1]"),
    (b'"prompt":"a","model":"', b"model", b'"'),
    (b'"prompt":"a","cache_salt":"', b"salt", b'"'),
    (b'"prompt":"a","vllm_xargs":{"a":[', b"1,", b"1]}"),
    (b'"prompt":"a","', b"name", b'":1'),
    (b'"messages":[{"role":"user","content":"a"}', b',{"role":"user"}', b"]"),
    (b'"messages":[{"role":"user","content":"', b"text ", b'"}]'),
    (b'"messages":[{"role":"assistant","content":[', b'{"type":"text","text":"a"},', b'"b"]}]'),
    (b'"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"', b"iVBO", b'"}}]}]'),
    (
        b'"messages":[{"role":"user","content":"a"}],"tools":[{}',
        b',{"type":"function","function":{"name":"f"}}',
        b"]",
    ),
)
"""What begins a body, what is repeated in it, and what ends it."""


def large(rng: random.Random) -> tuple[str, bytes]:
    """A path, and a body with very many of something."""
    size_bytes = rng.choice((10_000, 100_000, 300_000, 1_000_000, 3_000_000))
    if rng.random() < 0.1:
        count = size_bytes // 8
        middle = b",".join(b'"m%d":1' % number for number in range(count)) + b',"prompt":"a"'
    else:
        begin, unit, end = rng.choice(_UNITS)
        middle = begin + unit * (size_bytes // len(unit)) + end
    where = "/v1/chat/completions" if b'"messages"' in middle[:20] else "/v1/completions"
    return rng.choice((where, where, "/explain")), b'{"max_tokens":1,' + middle + b"}"
