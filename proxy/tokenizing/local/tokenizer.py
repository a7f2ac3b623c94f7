"""A model's own tokenizer and chat template in this process: token ids as an engine makes them, or no answer.

It answers the questions that an engine's `/tokenize` answers. A question that it refuses is not wrong, only
its answer not certain: then an engine is asked.
"""

import contextlib
import itertools
import json
import math
import os
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import msgspec
import numpy as np

from proxy.fair_queue import ANONYMOUS
from proxy.request.body import Encoded, Pieces
from proxy.request.json_pieces import decoded_text, joined
from proxy.request.outline import MAX_DEPTH
from proxy.tokenizing.local.conversations import UnclearError, conversation_of, is_stub, tools_of
from proxy.tokenizing.local.exactness import Cuts, cuts_of
from proxy.tokenizing.local.files import ModelFiles
from proxy.tokenizing.local.pieces import MAX_PIECE_BYTES, PieceCache
from proxy.tokenizing.local.reading import loads
from proxy.tokenizing.local.turns import SLICE_BYTES, Job, LoopTime, Result, Slice, Turns, at_once, step

if TYPE_CHECKING:  # the libraries are 5 MB, which a kvproxy without a tokenizer need not have
    from tokenizers import Tokenizer

    from proxy.tokenizing.local.templates import ChatTemplate

INLINE_BYTES = 8192
"""More text is tokenized off the event loop: this much takes about 2 ms if nothing of it is known."""

INLINE_READ_BYTES = 40 << 10
"""A longer question is also read off the event loop. This one is read, rendered and looked up in 0.2 ms, less
than a thread costs to hand it to: mostly nearly all of it is known, and then it is answered at once.

The worst is 5 ms, for 5700 names of special tokens (the attack `special-tokens-in-little`); what only begins
like names takes less, however many names there are (`nearly-special-tokens-in-little`)."""

INLINE_QUOTES = 1024
"""The most quotes of a question of more than `INLINE_BYTES`: 128 messages have so many, and take a template
2 ms (the attack `messages-in-little`)."""

INLINE_NESTED = 1 << 16
"""The most values of a question times their depth, as far as they can be: a template may write each value on
a line of its own, behind four spaces for each level. So much makes 256 KiB of text in 4 ms
(`test_a_question_that_may_grow_is_rendered_off_the_event_loop` counts them)."""

READ_SHARE = 16
"""How many times faster a question is read and rendered than tokenized."""

R = TypeVar("R")

_OF_THE_RENDERER = frozenset(
    """
    self conversation tools chat_template tokenize padding truncation max_length return_tensors return_dict
    return_assistant_tokens_mask tokenizer_kwargs add_generation_prompt continue_final_message messages
    """.split()  # noqa: SIM905  # as fields.py
)
"""Names in `chat_template_kwargs` that are no variables of the template, or that vLLM treats in its own
way."""

_UNSET = (None, "auto")
"""The values of template variables that vLLM takes as not given."""

_SAMPLES = (
    "",
    " ",
    (
        "The quick brown fox's 1234 jumps, over\n\n  the lazy dog.\r\n\tIt'll be naïve: e\u0301 ﬁ 漢字 "
        "한국어 👩‍👩‍👧 ▁x "
    ),
    "def f(a, b):\n    return a [b] -> c  # a b\n" * 3 + "a  b   c A B\u00a0C\u200bD",
)

_PROBES = ("probe", "another probe")


_ABSENT = msgspec.Raw()


class _Question(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a `/tokenize` request, as far as it is answered here."""

    model: str | None = None
    prompt: msgspec.Raw = _ABSENT
    messages: msgspec.Raw = _ABSENT
    tools: msgspec.Raw = _ABSENT
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool | None = None
    chat_template_kwargs: msgspec.Raw = _ABSENT


_decode_question = msgspec.json.Decoder(_Question).decode


class TooLongError(ValueError):
    """A text of more characters than any context holds."""

    def __init__(self, characters: int) -> None:
        super().__init__(f"{characters} characters")
        self.characters = characters


def _check_length(text: str, max_characters: float) -> None:
    if len(text) > max_characters:
        raise TooLongError(len(text))


Hold: TypeAlias = Callable[[], Callable[[], None] | None]
"""Takes memory for the work on a question. Returns what gives it back; None if there is not so much."""


def _hold_nothing() -> Callable[[], None]:
    """Takes no memory, where none is counted."""
    return _give_nothing_back


def _give_nothing_back() -> None:
    """Does nothing, where no memory was taken."""


def _until_ended(job: Job[R], ended: Callable[[], None]) -> Job[R]:
    """The same job; `ended` is called when it is over, however it ends."""
    try:
        return (yield from job)
    finally:
        ended()


class NotExactError(ValueError):
    """The tokenizer cannot be used for prompts that an engine tokenizes."""


class LocalTokenizer:
    """Answers `/tokenize` questions. MUST be closed in the end."""

    def __init__(
        self,
        files: ModelFiles,
        *,
        slice_bytes: int = SLICE_BYTES,
        max_piece_bytes: int = MAX_PIECE_BYTES,
    ) -> None:
        """Loads the tokenizer at once, which takes up to a second or two. Raises NotExactError.

        `slice_bytes`, `max_piece_bytes`: as the constants of these names.
        """
        from proxy.tokenizing.local.templates import ChatTemplates  # noqa: PLC0415  # see the top

        # One thread a prompt: engines may share these cores, and a prompt's pieces are soon done.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.directory = files.directory
        self._tokenizer = _load(files)
        self.characters_a_token = max(map(len, self._tokenizer.get_vocab(with_added_tokens=True)), default=1)
        """The characters of the longest token, counted as vLLM counts them."""
        described = self._tokenizer.to_str()
        self._templates = ChatTemplates(files.templates)
        self._special_tokens = {name: _text(value) for name, value in files.special_tokens.items()}
        self._around = self._find_around()
        left = files.config.get("truncation_side") == "left"
        self.truncation_side = "left" if left else "right"
        self.pieces = PieceCache(
            self._encode,
            self._cuts(described, files),
            max_piece_bytes=max_piece_bytes,
            slice_bytes=slice_bytes,
        )
        self._turns = Turns(slice_bytes=slice_bytes)
        self._loop_time = LoopTime()

    def close(self) -> None:
        """Accept no more questions."""
        self._turns.close()

    async def answer(
        self,
        question: Encoded | bytearray,
        client: str = ANONYMOUS,
        max_characters: float = math.inf,
        hold: Hold = _hold_nothing,
        within_s: float | None = None,
    ) -> "array[int] | None":
        """The token ids of a client's question; None if they are not certain, or if there is no memory for
        what they take.

        Raises TooLongError for a text of more than `max_characters`, and TimeoutError if it has to wait for
        its turns for more than `within_s`. `hold` is called if it has to; what that returns is called, in any
        thread, when no work uses the question any more, which may be after its caller has gone.
        """
        return await self._do(self._answering(question, max_characters), question, client, hold, within_s)

    async def _do(
        self,
        work: "Job[array[int] | None]",
        question: Encoded | bytearray,
        client: str,
        hold: Hold,
        within_s: float | None,
    ) -> "array[int] | None":
        """The result of the work for a question: at once if there is little to do, as far as is known, and
        others have not done much in this turn of the event loop; else in turns.
        """
        held = contextlib.ExitStack()
        job = _until_ended(work, held.close)
        next_slice = None
        if self._loop_time.is_left and self._is_soon_read(question, client):
            came = self._begin_here(job)
            if isinstance(came, Result):
                token_ids: array[int] | None = came.value
                return token_ids
            next_slice = came
        ended = hold()
        if ended is None:
            job.close()
            return None
        held.callback(ended)
        return await self._turns.run(client, job, next_slice, within_s)

    def _begin_here(self, job: Job[R]) -> Slice | Result[R]:
        """Read a question, and tokenize as long as little is left. Returns the result, or the next slice."""
        began_s = time.perf_counter()
        try:
            next(job)
            came = step(job)
            done_bytes = 0
            while isinstance(came, Slice) and done_bytes + came.left_bytes <= INLINE_BYTES:
                done_bytes += came.size_bytes
                came = step(job)
            return came
        finally:
            self._loop_time.spend(time.perf_counter() - began_s)

    def _is_soon_read(self, question: Encoded | bytearray, client: str) -> bool:
        if len(question) > INLINE_READ_BYTES:
            return False
        whole = bytes(question)
        if len(whole) > INLINE_BYTES and (
            self._turns.holds_back(client) or _count(whole, b'"') > INLINE_QUOTES
        ):
            return False
        return _most_nested(whole) <= INLINE_NESTED

    def answer_now(self, question: Encoded | bytearray) -> "array[int] | None":
        """As `answer`, in this thread."""
        return at_once(self._answering(question))

    def _answering(
        self, question: Encoded | bytearray, max_characters: float = math.inf
    ) -> "Job[array[int] | None]":
        yield _reading(question)
        try:
            text, special = self._text(question)
            del question  # its text is enough
            _check_length(text, max_characters)
            token_ids = yield from self.pieces.encoding(text)
        except TooLongError:
            raise
        except Exception:  # noqa: BLE001  # the model's template met a client's message: they may raise anything
            return None
        if not special:
            return token_ids
        if self._around is None:
            return None
        before, behind = self._around
        return before + token_ids + behind

    async def prefix(
        self,
        question: Encoded | bytearray,
        client: str = ANONYMOUS,
        max_characters: float = math.inf,
        hold: Hold = _hold_nothing,
        within_s: float | None = None,
    ) -> "array[int] | None":
        """The token ids before the first of the media that stubs stand for; otherwise as `answer`."""
        return await self._do(self._prefixing(question, max_characters), question, client, hold, within_s)

    def prefix_now(self, question: Encoded | bytearray) -> "array[int] | None":
        """As `prefix`, in this thread."""
        return at_once(self._prefixing(question))

    def _prefixing(
        self, question: Encoded | bytearray, max_characters: float = math.inf
    ) -> "Job[array[int] | None]":
        yield _reading(question)
        try:
            asked = _decode_question(_whole(question))
            if asked.add_special_tokens is True or not asked.messages:
                return None
            wants_parts = self._template(asked).wants_parts
            told_apart = _told_apart(loads(memoryview(asked.messages)), keep=wants_parts)
            texts = [self._render(asked, messages) for messages in told_apart]
            found = []
            for text in texts:
                _check_length(text, max_characters)
                found.append((yield from self.pieces.encoding(text)))  # a generator
        except TooLongError:
            raise
        except Exception:  # noqa: BLE001  # as in answer_now
            return None
        same = next(
            (n for n, tokens in enumerate(zip(*found, strict=False)) if len(set(tokens)) > 1),
            min(map(len, found)),
        )
        return found[0][: max(0, same - _UNSURE_TOKENS)] or None

    @property
    def ends_plainly(self) -> bool:
        """Whether no token is put behind a completion's own."""
        return self._around is not None and not self._around[1]

    def _text(self, question: Encoded | bytearray) -> tuple[str, bool]:
        """What is tokenized, and whether special tokens go around it."""
        asked = _decode_question(_whole(question))
        if asked.prompt:
            return decoded_text(memoryview(asked.prompt)), asked.add_special_tokens is not False
        return self._render(asked), asked.add_special_tokens is True

    def _render(self, asked: _Question, messages: list[Any] | None = None) -> str:
        """The text of a conversation; with `messages`, of these instead of its own."""
        if not asked.messages or (asked.continue_final_message and asked.add_generation_prompt):
            raise UnclearError("refused by engines")
        # Read as engines read JSON: numbers and repeated names come out as by Python's own decoder.
        tools = tools_of(loads(memoryview(asked.tools))) if asked.tools else None
        variables = loads(memoryview(asked.chat_template_kwargs)) if asked.chat_template_kwargs else {}
        if not isinstance(variables, dict) or variables.keys() & _OF_THE_RENDERER:
            raise UnclearError("chat_template_kwargs")
        variables = {name: value for name, value in variables.items() if value not in _UNSET}
        template = self._template(asked)
        if messages is None:
            messages = loads(memoryview(asked.messages))
        if not isinstance(messages, list):
            raise UnclearError("messages")
        conversation = conversation_of(
            messages, parts=template.wants_parts, knows_developer=template.knows_developer
        )
        given: dict[str, Any] = self._special_tokens | {"documents": None} | variables
        return template.render(
            conversation,
            continue_final_message=asked.continue_final_message,
            tools=tools,
            add_generation_prompt=asked.add_generation_prompt,
            **given,
        )

    def _template(self, asked: _Question) -> "ChatTemplate":
        template = self._templates.choose(with_tools=bool(asked.tools))
        if template is None:
            raise UnclearError("no template")
        return template

    def _encode(self, texts: Sequence[str]) -> "list[array[int]]":
        """Without the GIL, but for packing the ids."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [array("I", encoding.ids) for encoding in encodings]

    def _find_around(self) -> "tuple[array[int], array[int]] | None":
        """The special tokens that a completion gets; None if they are more than a beginning and an end."""
        found = set()
        for probe in _PROBES:
            bare = self._tokenizer.encode(probe, add_special_tokens=False).ids
            whole = self._tokenizer.encode(probe).ids
            starts = [n for n in range(len(whole) - len(bare) + 1) if whole[n : n + len(bare)] == bare]
            if len(starts) != 1:
                return None
            found.add((tuple(whole[: starts[0]]), tuple(whole[starts[0] + len(bare) :])))
        if len(found) != 1 or self._tokenizer.encode("").ids != [
            token for side in next(iter(found)) for token in side
        ]:
            return None
        ((before, behind),) = found
        return array("I", before), array("I", behind)

    def _cuts(self, described: str, files: ModelFiles) -> Cuts:
        """The cuts that are proven for this tokenizer; none if a test of it contradicts the proof."""
        if files.config.get("split_special_tokens"):
            return Cuts()
        cuts = cuts_of(described)
        special = list(cuts.tokens)[:20]
        samples = [
            *_SAMPLES,
            *(a + text + b for text in _SAMPLES for a, b in itertools.pairwise(special)),
        ]
        cache = PieceCache(self._encode, cuts)
        for text in (*samples, " ".join(samples) * 4):
            if cache.encode(text).tolist() != self._tokenizer.encode(text, add_special_tokens=False).ids:
                return Cuts()
        return cuts


_UNSURE_TOKENS = 4
"""Tokens that are left out before media: beside what an engine puts there, the last word may have other
tokens."""

_INSTEAD = ("0 something else", "Q quite another")
"""The texts that stand in place of media; they differ in their first letter."""


def _told_apart(messages: list[Any], *, keep: bool) -> Iterator[list[Any]]:
    """The conversation as templates see it, and twice with different texts in place of its media.

    The prompt begins with what all of these begin with, wherever the template puts media and whatever else it
    does on seeing them. A template that sees no parts (`keep` is false) never sees media either: the engine
    puts marks of its own somewhere into the text, so nothing of the content of such a message is known.
    """
    if keep:
        yield messages
    for text in _INSTEAD:
        yield [_without_media(message, text, whole=not keep) for message in messages]


def _without_media(message: Any, text: str, *, whole: bool) -> Any:
    content = message.get("content")
    if not isinstance(content, list) or not any(map(is_stub, content)):
        return message
    if whole:
        return message | {"content": text}
    return message | {
        "content": [{"type": "text", "text": text} if is_stub(part) else part for part in content]
    }


def _whole(question: Encoded | bytearray) -> bytes | bytearray:
    return joined(list(question)) if isinstance(question, Pieces) else question


_SHORT_BYTES = 4 << 10
"""Of more text, numpy counts ten times as fast as `bytes.count`; it takes 2 us to begin."""


def _count(text: bytes, signs: bytes) -> int:
    """How often any of some characters stands in a text."""
    if len(text) <= _SHORT_BYTES:
        return sum(map(text.count, signs))
    array = np.frombuffer(text, np.uint8)
    return sum(int(np.count_nonzero(array == sign)) for sign in signs)


def _most_nested(question: bytes) -> int:
    """The values of a question times their depth, at most.

    Signs in texts count as well: the arguments of a tool call are JSON in a text, where anything may be
    escaped.
    """
    openings = _count(question, b"[{")
    commas = _count(question, b",")
    if b"\\" in question:
        openings += question.count(b"\\u005") + question.count(b"\\u007")
        commas += question.count(b"\\u002")
    return min(openings, MAX_DEPTH) * (openings + commas)


def _reading(question: Encoded | bytearray) -> Slice:
    return Slice(len(question) // READ_SHARE, len(question))


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _load(files: ModelFiles) -> "Tokenizer":
    """The tokenizer with the tokens that the model's settings add, as transformers makes it."""
    if (json.loads(files.tokenizer_json).get("model") or {}).get("dropout"):
        raise NotExactError("it tokenizes at random (dropout)")
    from tokenizers import AddedToken, Tokenizer  # noqa: PLC0415  # see the top

    try:
        tokenizer = Tokenizer.from_str(files.tokenizer_json)
    except Exception as error:  # the library raises no more special class
        raise NotExactError(f"its tokenizer.json cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = bool(files.config.get("split_special_tokens"))
    there = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    added = files.config.get("added_tokens_decoder") or {}
    for _, token in sorted(added.items(), key=lambda item: int(item[0])):
        if token["content"] not in there:
            tokenizer.add_tokens([AddedToken(**token)])
            there.add(token["content"])
    for value in (*files.special_tokens.values(), *files.extra_tokens):
        if (text := _text(value)) not in there:
            tokenizer.add_special_tokens([text])
            there.add(text)
    return tokenizer
