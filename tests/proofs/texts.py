"""What a right answer says, computed from the request alone: no engine, no cache and no transfer is asked.

A stand-in reads its next token off the KV it finds in its blocks, so its text is this one exactly if every
block held what the prompt says.
"""

from collections.abc import Mapping
from typing import Any

from proxy.simulation.api.validation import Asked, Checker
from proxy.simulation.engine.memory import advance, initial_state
from proxy.simulation.engine.text import OutputText, Voice
from proxy.simulation.engine.tokenizer import END, load_tokenizer

MAX_MODEL_LEN = 2048


class RightAnswers:
    """Says what stand-ins that serve `model` must answer."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._tokenizer = load_tokenizer()
        self._voice = Voice(self._tokenizer.words(), END)
        self._checker = Checker(self._tokenizer, model, (), MAX_MODEL_LEN)

    def of(self, body: Mapping[str, Any]) -> tuple[str, ...]:
        """The text of each choice of a completion or chat request."""
        asked = self._asked(body)
        [prompt] = asked.prompts
        begin = advance(initial_state(self._model, asked.lora), prompt)
        texts = []
        for choice in range(asked.n):
            sampling, state = asked.sampling_of(0, choice), begin
            text = OutputText(self._tokenizer, asked.stop)
            for generated in range(sampling.max_tokens):
                token = self._voice.next_token(state, sampling, generated)
                text.add(token)
                state = advance(state, [token])
            text.finish(stopped=False)
            texts.append(text.text)
        return tuple(texts)

    def prompt_tokens(self, body: Mapping[str, Any]) -> int:
        """How long its prompt is."""
        return sum(len(prompt) for prompt in self._asked(body).prompts)

    def _asked(self, body: Mapping[str, Any]) -> Asked:
        return self._checker.chat(body) if "messages" in body else self._checker.completion(body)
