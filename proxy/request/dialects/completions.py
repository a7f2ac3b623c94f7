"""`/v1/completions`: one prompt or a list of them, each a text or token ids."""

import enum
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

import msgspec

from proxy.request.body import Body
from proxy.request.dialects.base import PromptMembers, Shape
from proxy.request.dialects.openai import OpenAiDialect
from proxy.request.json_pieces import lists_of_numbers
from proxy.request.like_pydantic import whole_number


class PromptShape(enum.StrEnum):
    """The form in which a completion's prompt is given."""

    TEXT = "text"
    IDS = "token ids"
    TEXTS = "list of texts"
    ID_LISTS = "list of token id lists"
    ODD = "odd list"
    """Neither all texts nor all lists of token ids. An engine refuses nearly every one of these, but `["1",
    2]` it reads as one prompt of two token ids, and `[[1], ["2"]]` as two prompts."""
    OTHER = "other"


class Completions(OpenAiDialect):
    """The dialect of completions, which every engine speaks."""

    name = "completions"
    path = "/v1/completions"
    noun = "a completion"
    known_by = "prompt"
    summary = "Complete a prompt"
    request_schema: ClassVar[Mapping[str, Any]] = {"$ref": "#/components/schemas/CompletionRequest"}
    default_answer_tokens = 16
    long_members = ("prompt",)
    prompt_members = PromptMembers(
        asked=frozenset({"prompt", "add_special_tokens"}), unknowable=frozenset({"suffix", "prompt_embeds"})
    )
    limits = ("max_tokens",)
    null_n_is_one = False

    def read(self, body: Body) -> Shape:
        """As `Dialect`; an echo with log probabilities has those of the prompt, and one of 0 tokens has
        nothing that a decode engine would add.
        """
        asked = super().read(body)
        shape, count = prompt_shape(body)
        echoed = bool(body.value("echo")) and (body.gives("logprobs") or _asks_for_none(body))
        whole = asked.whole or echoed or shape is PromptShape.ODD
        return msgspec.structs.replace(asked, prompts=count, whole=whole)

    def may_be_empty(self, body: Body) -> bool:
        """As `OpenAiDialect`: an echo may be of the prompt alone."""
        return bool(body.value("echo"))

    def least(self) -> Body:
        """The smallest request there is: one token in, one token out."""
        return Body.parse(b'{"prompt": [0], "max_tokens": 1}')


def prompt_shape(body: Body) -> tuple[PromptShape, int]:
    """The form of the prompt and the number of prompts; whether their values are right, the engine decides.

    Raises BadRequestError.
    """
    view = body.view("prompt") or memoryview(b"")
    first = bytes(view[:1])
    if first != b"[":
        return PromptShape.TEXT if first == b'"' else PromptShape.OTHER, 1
    shape = _SHAPES_OF_LISTS.get(bytes(view[1 : 1 + _BLANK_BYTES]).lstrip()[:1])
    if shape is None:
        return PromptShape.IDS, 1
    count = sum(1 for _ in body.each_item("prompt"))
    if count > 1 and not _all_are(shape, body.each_item("prompt")):
        return PromptShape.ODD, 1
    return shape, count


def _asks_for_none(body: Body) -> bool:
    return whole_number(body, "max_tokens", nullable=True) == 0


_BLANK_BYTES = 1024
"""The most white space before the first prompt of a list; after more, the list is taken for ids and
refused."""

_SHAPES_OF_LISTS = {b'"': PromptShape.TEXTS, b"[": PromptShape.ID_LISTS}
_decode_ids = msgspec.json.Decoder(list[Annotated[int, msgspec.Meta(ge=0)]]).decode


def _all_are(shape: PromptShape, prompts: Iterable[memoryview]) -> bool:
    if shape is PromptShape.TEXTS:
        return all(prompt[0] == ord('"') for prompt in prompts)
    try:
        for prompt in prompts:
            for ids in lists_of_numbers(prompt):
                _decode_ids(ids)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
