"""Invariant: a request that passes here runs to its end in the engine; any other is refused as vLLM refuses
it.

The second stage of vLLM's validation, which knows the model: names, lengths, the vocabulary, and the rules
for sampling parameters. An error here makes a decode engine release the hold that its request named.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from proxy.simulation.api.chat import images_of, render
from proxy.simulation.api.errors import BadRequestError, NotFoundError
from proxy.simulation.api.grammar import Call, Demand, demanded
from proxy.simulation.api.responses_as_chats import chat_of
from proxy.simulation.api.sampling_rules import check_logprobs, check_sampling, check_tokens, sampling_of
from proxy.simulation.engine.request import Image, Sampling
from proxy.simulation.engine.text import mix
from proxy.simulation.engine.tokenizer import PAD, Tokenizer

IMAGE_TOKENS = 40
"""The number of tokens that the engine puts in place of the one token of an image."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that can be served: its prompts as tokens, and how to answer."""

    chat: bool
    body: Mapping[str, Any]
    model: str
    lora: str | None
    prompts: Sequence[Sequence[int]]
    sampling: Sequence[Sampling]
    """One for each prompt, since the room left for output may differ."""
    n: int = 1
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    transfer: Mapping[str, Any] = field(default_factory=dict)
    call: Call | None = None
    """The call that the answer is, if it is one and comes to its end."""

    def sampling_of(self, prompt: int, choice: int) -> Sampling:
        """The sampling of one choice; each choice of a prompt says something else."""
        sampling = self.sampling[prompt]
        return replace(sampling, salt=mix(sampling.salt + choice)) if choice else sampling


class Checker:
    """Knows the model: names, lengths, the vocabulary."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        model: str,
        loras: Container[str],
        max_model_len: int,
        greeting: str = "",
        *,
        tool_parser: bool = False,
        excludes_tools: bool = False,
        images: bool = False,
    ) -> None:
        """`greeting`: the text that the chat template puts before every conversation. All others: as in
        `StandInConfig`.
        """
        self._tool_parser = tool_parser
        self._excludes_tools = excludes_tools
        self._images = images
        self._tokenizer = tokenizer
        self._model = model
        self._loras = loras
        self._max_model_len = max_model_len
        self._greeting = greeting

    def served(self, name: str | None) -> tuple[str, str | None]:
        """The model's name for the answer, and the adapter that the name means. Raises NotFoundError for any
        other name.
        """
        if not name or name == self._model:
            return self._model, None
        if name in self._loras:
            return name, name
        raise NotFoundError(f"The model `{name}` does not exist. Valid aliases: {self._model}.", "model")

    def chat_tokens(self, body: Mapping[str, Any], *, answerable: bool = False) -> list[int]:
        """The prompt of a conversation as tokens; `answerable`: it is to be answered, so it may not be too
        long for that.
        """
        continued = bool(body.get("continue_final_message"))
        generation_prompt = body.get("add_generation_prompt", True)
        if continued and generation_prompt:
            raise BadRequestError(
                "continue_final_message and add_generation_prompt are not compatible. Use "
                "continue_final_message when you want the model to continue the final message, and "
                "add_generation_prompt when you want to add a header that will prompt it to start a new "
                "assistant message instead."
            )
        return self._rendered({**body, "tools": _tools(body.get("tools"))}, answerable=answerable)

    def _rendered(self, body: Mapping[str, Any], *, answerable: bool = True) -> list[int]:
        """The prompt of a conversation whose tools are as templates see them."""
        continued = bool(body.get("continue_final_message"))
        generation_prompt = body.get("add_generation_prompt", True)
        try:
            text = render(
                body["messages"],
                body["tools"],
                generation_prompt=generation_prompt,
                continue_final=continued,
                images=self._images,
            )
        except BadRequestError as error:
            raise BadRequestError(error.message.replace("{model}", self._model)) from None
        except (AttributeError, TypeError) as error:  # the template cannot handle what it was given
            raise BadRequestError(str(error)) from None
        text = self._greeting + text
        if answerable:
            self._check_characters(text, body)
        tokens = self._tokenizer.encode(text)
        return self._with_images(tokens, len(images_of(body["messages"])))

    def _with_images(self, tokens: list[int], images: int) -> list[int]:
        if not images:
            return tokens
        places = [place for place, token in enumerate(tokens) if token == PAD][:images]
        for place in reversed(places):
            tokens[place : place + 1] = [PAD] * IMAGE_TOKENS
        return tokens

    def images_in(self, prompt: Sequence[int], body: Mapping[str, Any]) -> tuple[Image, ...]:
        """The places of the images in a chat's prompt."""
        given = images_of(body["messages"])
        places = [n for n, token in enumerate(prompt) if token == PAD][::IMAGE_TOKENS] if given else []
        return tuple(Image(name, place, IMAGE_TOKENS) for name, place in zip(given, places, strict=False))

    def answerable_tokens(self, body: Mapping[str, Any]) -> list[int]:
        """As `chat_tokens`, of a conversation that is to be answered, so its choice of tools counts."""
        choice = body.get("tool_choice", "auto")
        if body.get("tools") and choice not in (None, "none") and not self._tool_parser:
            if choice == "auto":
                message = (
                    '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
                )
                raise BadRequestError(message)
            named = f'"{choice}"' if isinstance(choice, str) else f'function "{choice["function"]["name"]}"'
            raise BadRequestError(f"tool_choice={named} requires --tool-call-parser to be set")
        if choice == "none" and self._excludes_tools:
            body = {name: value for name, value in body.items() if name != "tools"}
        return self.chat_tokens(body, answerable=True)

    def completion(self, body: Mapping[str, Any]) -> Asked:
        """A completion request that can be served. Raises BadRequestError or NotFoundError if it cannot."""
        if body.get("stream") and body.get("use_beam_search"):
            raise BadRequestError("Streaming is not currently supported with beam search")
        model, lora = self.served(body.get("model"))
        if body.get("suffix"):
            raise BadRequestError(
                "suffix is only supported for models with FIM completion rendering", "suffix"
            )
        asked = body.get("max_tokens")
        self._check_room(asked, "max_tokens")
        prompts = [self._fitted(p, body) for p in self._prompts(body)]
        limit = 16 if asked is None else asked
        if body.get("echo") and limit == 0:
            limit = 1
        logprobs = body.get("logprobs")
        prompt_logprobs = body.get("prompt_logprobs")
        if prompt_logprobs is None and body.get("echo"):
            prompt_logprobs = logprobs
        return self._asked(
            body,
            model,
            lora,
            prompts,
            limit,
            logprobs,
            prompt_logprobs,
            chat=False,
            demand=demanded(body),
        )

    def generate(self, body: Mapping[str, Any]) -> Asked:
        """A request with token ids that can be served. Raises BadRequestError or NotFoundError if it
        cannot.
        """
        model, lora = self.served(body.get("model"))
        prompt = self._fitted(list(body["token_ids"]), body)
        limit, least = body.get("max_tokens", 16), body.get("min_tokens") or 0
        if limit is not None and least > limit:  # before an absent limit becomes as many as fit
            raise BadRequestError(
                f"min_tokens must be less than or equal to max_tokens={limit}, got {least}."
            )
        limits = (body.get("max_tokens"), body.get("logprobs"), body.get("prompt_logprobs"))
        return self._asked(body, model, lora, [prompt], *limits, chat=False)

    def chat(self, body: Mapping[str, Any]) -> Asked:
        """A chat request that can be served. Raises BadRequestError or NotFoundError if it cannot."""
        model, lora = self.served(body.get("model"))
        if body.get("chat_template"):
            raise BadRequestError(
                "Chat template is passed with request, but --trust-request-chat-template is not set. Refused "
                "request with untrusted chat template."
            )
        name = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
        limit = body.get(name)
        self._check_room(limit, name)
        given = (body.get("kv_transfer_params") or {}).get("prompt_token_ids")
        prompt = self._fitted(self.answerable_tokens(body) if given is None else list(given), body)
        logprobs = (body.get("top_logprobs") or 0) if body.get("logprobs") else None
        return self._asked(
            body,
            model,
            lora,
            [prompt],
            limit,
            logprobs,
            body.get("prompt_logprobs"),
            chat=True,
            demand=demanded(body, calls=self._tool_parser),
        )

    def ids_of(self, given: str | list[int]) -> list[int]:
        """What is given as a text or as token ids, as token ids."""
        return self._tokenizer.encode(given) if isinstance(given, str) else given

    def check_label(self, token: int) -> None:
        """Raise BadRequestError for a label that the vocabulary does not have."""
        if not 0 <= token < len(self._tokenizer):
            raise BadRequestError(
                f"label_token_id {token} is out of vocabulary range [0, {len(self._tokenizer)}). "
                "Please provide valid token IDs."
            )

    def response(self, body: Mapping[str, Any]) -> Asked:
        """A request for a response that can be served. Raises BadRequestError or NotFoundError if it
        cannot.
        """
        model, lora = self.served(body.get("model"))
        limit = body.get("max_output_tokens")
        self._check_room(limit, "max_output_tokens")
        chat = chat_of(body, body.get("previous_messages") or ())
        if body.get("tool_choice") == "none" and self._excludes_tools:
            chat = {**chat, "tools": None}
        given = (body.get("kv_transfer_params") or {}).get("prompt_token_ids")
        prompt = self._fitted(self._rendered(chat) if given is None else list(given), body)
        told = "message.output_text.logprobs" in (body.get("include") or ())
        logprobs = (body.get("top_logprobs") or 0) if told else None
        body = {**body, "messages": chat["messages"]}
        return self._asked(body, model, lora, [prompt], limit, logprobs, None, chat=True)

    def _prompts(self, body: Mapping[str, Any]) -> list[list[int]]:
        prompt = body["prompt"]
        for text in [prompt] if isinstance(prompt, str) else prompt:
            if isinstance(text, str):
                self._check_characters(text, body)
        if isinstance(prompt, str):
            return [self._tokenizer.encode(prompt)]
        if not prompt:
            raise BadRequestError("You must pass at least one prompt")
        if isinstance(prompt[0], int):
            return [prompt]
        return [self._tokenizer.encode(p) if isinstance(p, str) else p for p in prompt]

    def _check_characters(self, text: str, body: Mapping[str, Any]) -> None:
        """Apply vLLM's `_text_len_check`. With a side to shorten at, vLLM cuts the text, which leaves the
        same tokens.
        """
        most = self._max_model_len * self._tokenizer.longest_piece
        if body.get("truncate_prompt_tokens") is None and len(text) > most:
            raise BadRequestError.of(
                f"This model's maximum context length is {self._max_model_len} tokens. However, your prompt "
                f"contains {len(text)} characters (more than {most} characters, which is the upper bound "
                f"for {self._max_model_len} input tokens). Please reduce the length of the input prompt.",
                "input_text",
                len(text),
            )

    def _fitted(self, tokens: list[int], body: Mapping[str, Any]) -> list[int]:
        keep = body.get("truncate_prompt_tokens")
        if keep is not None:
            keep = self._max_model_len if keep == -1 else keep
            if keep > self._max_model_len:
                message = (
                    f"truncate_prompt_tokens={keep} cannot be greater than max_model_len = "
                    f"{self._max_model_len}. Please request a smaller truncation size."
                )
                raise BadRequestError.of(message, "truncate_prompt_tokens", keep)
            if not keep:
                tokens = []
            else:
                tokens = tokens[:keep] if body.get("truncation_side") == "right" else tokens[-keep:]
        if not tokens:
            raise BadRequestError("The decoder prompt cannot be empty")
        if len(tokens) > self._max_model_len:
            # vLLM tokenizes a text only up to the limit, so it does not know by how much it is too long.
            given_as_ids = isinstance(body.get("prompt"), list) and not isinstance(
                (body["prompt"] or [""])[0], str
            )
            length = len(tokens) if given_as_ids else self._max_model_len + 1
            least = "at least " if length == self._max_model_len + 1 else ""
            raise BadRequestError.of(
                f"This model's maximum context length is {self._max_model_len} tokens. However, your prompt "
                f"contains {least}{length} input tokens, which exceeds this limit even without any output "
                "tokens. Please reduce the length of the input prompt.",
                "input_tokens",
                length,
            )
        if (largest := max(tokens)) >= len(self._tokenizer):
            raise BadRequestError(f"Token id {largest} is out of vocabulary")
        return tokens

    def _check_room(self, limit: int | None, name: str) -> None:
        if limit is not None and limit > self._max_model_len:
            raise BadRequestError.of(
                f"{name}={limit} cannot be greater than max_model_len={self._max_model_len}. "
                "Please request fewer output tokens.",
                name,
                limit,
            )

    def _asked(
        self,
        body: Mapping[str, Any],
        model: str,
        lora: str | None,
        prompts: Sequence[list[int]],
        limit: int | None,
        logprobs: int | None,
        prompt_logprobs: int | None,
        *,
        chat: bool,
        demand: Demand | None = None,
    ) -> Asked:
        stop = body.get("stop") or ()
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        n = 1 if body.get("n") is None else body["n"]
        vocabulary = len(self._tokenizer)
        check_tokens(body, vocabulary)
        sampling = [sampling_of(body, self._max_model_len - len(p), limit) for p in prompts]
        if demand is not None:
            script = tuple(self._tokenizer.encode(demand.text))
            sampling = [replace(one, script=script) for one in sampling]
        check_sampling(body, stop, n)
        check_logprobs("sample logprobs", "logprobs", logprobs, vocabulary)
        check_logprobs("prompt logprobs", "prompt_logprobs", prompt_logprobs, vocabulary)
        if body.get("thinking_token_budget") is not None:
            raise BadRequestError(
                "thinking_token_budget is set but reasoning_config is not configured. Please set "
                "--reasoning-parser and/or --reasoning-config to use thinking_token_budget."
            )
        return Asked(
            chat=chat,
            body=body,
            model=model,
            lora=lora,
            prompts=prompts,
            sampling=sampling,
            n=n,
            stop=stop,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            transfer=body.get("kv_transfer_params") or {},
            call=demand.call if demand is not None else None,
        )


def _tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Tools as the template sees them: vLLM fills in what was left out."""
    if not tools:
        return None
    filled = []
    for tool in tools:
        function = tool.get("function") or {}
        known = {"name": function.get("name"), "description": None, "parameters": None}
        filled.append({"type": tool.get("type", "function"), "function": known | dict(function)})
    return filled
