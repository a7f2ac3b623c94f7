"""The stand-in's tokenizer and chat template give what the tiny test model gives, and stop strings are held
back.
"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.simulation.api.chat import render
from proxy.simulation.api.errors import BadRequestError
from proxy.simulation.engine.text import OutputText
from proxy.simulation.engine.tokenizer import END, Tokenizer, load_tokenizer
from tests.kvevents import recorded

QUESTION = "Hello there, what is an import?"


TOKENIZER = load_tokenizer()


@pytest.fixture
def tokenizer() -> Tokenizer:
    return TOKENIZER


@given(st.text())
def test_every_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


# What a real engine with the tiny test model answered to /tokenize.
@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("the import statement", [1698, 627, 3380]),
        ("a<|end|>b", [67, END, 68]),
        ("x", [90]),
        ("", []),
    ],
)
def test_text_is_split_as_by_the_test_model(tokenizer: Tokenizer, text: str, tokens: list[int]) -> None:
    assert tokenizer.encode(text) == tokens


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        (
            {},
            [1, 1650, 201, 1062, 78, 329, 1364, 14, 2347, 318, 334, 627, 33, 2, 201, 1, 3860, 557, 807, 201],
        ),
        (
            {"generation_prompt": False},
            [1, 1650, 201, 1062, 78, 329, 1364, 14, 2347, 318, 334, 627, 33, 2, 201],
        ),
    ],
)
def test_a_chat_renders_as_by_the_test_model(
    tokenizer: Tokenizer, options: dict[str, Any], tokens: list[int]
) -> None:
    assert tokenizer.encode(render([{"role": "user", "content": QUESTION}], **options)) == tokens


def test_a_recorded_session_is_tokenized_alike(tokenizer: Tokenizer) -> None:
    prompts = [s.prompt_token_ids for s in recorded.session().steps if "token ids" not in s.what]
    texts = [p for p in prompts if p and END in p]
    assert len(texts) > 10
    for tokens in texts:
        assert tokenizer.encode(tokenizer.decode(tokens)) == tokens


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], "ab"),
        ([{"role": "user", "content": None}], ""),
    ],
)
def test_contents_of_parts(messages: list[dict[str, Any]], text: str) -> None:
    assert render(messages, generation_prompt=False) == f"<|turn|>user\n{text}<|end|>\n"


def test_a_continued_message_stays_open() -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "so "}]
    text = render(messages, generation_prompt=False, continue_final=True)
    assert text == "<|turn|>user\nhi<|end|>\n<|turn|>assistant\nso "


def test_pictures_are_refused() -> None:
    with pytest.raises(BadRequestError, match="not a multimodal model"):
        render([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])


def test_unknown_ids_decode_to_nothing(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([999_999]) == ""
    assert tokenizer.decode([1, 300, 2]) == "<|turn|> '<|end|>"
    assert tokenizer.decode([1, 300, 2], skip_special=True) == " '"


def pieces(tokenizer: Tokenizer, text: str, stop: list[str], **options: bool) -> tuple[list[str], str | None]:
    """What a stream sends, and the stop string that ended it."""
    output = OutputText(tokenizer, stop, **options)
    sent, stopped = [], None
    for token in tokenizer.encode(text):
        if (stopped := output.add(token)) is not None:
            break
        sent.append(output.delta())
    output.finish(stopped=stopped is not None)
    sent.append(output.delta())
    assert "".join(sent) == output.text
    return sent, stopped


def test_nothing_of_a_stop_string_is_sent(tokenizer: Tokenizer) -> None:
    sent, stopped = pieces(tokenizer, "import the module ENDING here", ["ENDING"])
    assert ("".join(sent), stopped) == ("import the module ", "ENDING")
    assert sent[0] == "i"  # five characters wait: they could begin it


def test_a_stop_string_may_be_kept(tokenizer: Tokenizer) -> None:
    sent, stopped = pieces(tokenizer, "import the module", ["the"], keep_stop=True)
    assert ("".join(sent), stopped) == ("import the", "the")


def test_the_earliest_stop_string_wins(tokenizer: Tokenizer) -> None:
    assert pieces(tokenizer, "import the module", ["module", "e m"])[1] == "e m"


def test_held_back_text_is_sent_in_the_end(tokenizer: Tokenizer) -> None:
    sent, stopped = pieces(tokenizer, "import the module", ["modules"])
    assert ("".join(sent), stopped) == ("import the module", None)


def test_a_character_is_sent_when_it_is_whole(tokenizer: Tokenizer) -> None:
    sent, _ = pieces(tokenizer, "a 😀", [])
    assert "".join(sent) == "a 😀"
    assert all("\ufffd" not in piece for piece in sent)
