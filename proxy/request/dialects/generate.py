"""`/inference/v1/generate`: token ids in, token ids out, with vLLM's own sampling parameters."""

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from proxy.errors import BadRequestError
from proxy.request.body import Body
from proxy.request.dialects.base import Dialect, Shape
from proxy.request.dialects.completions import Completions
from proxy.request.dialects.openai import OpenAiDialect
from proxy.request.like_pydantic import truth

_NEVER = ("kv_transfer_params", "ec_transfer_params", "kv_cache_report_mode")
"""Extra arguments that vLLM takes for its own, by which a client could read another prompt's KV."""

_ONE = msgspec.Raw(b"1")
_NO_SAMPLING = Body({}, 0)
_MEDIA = ("features", "content_parts")
_OF_THE_PROMPT = ("prompt_logprobs", "prompt_logprob_token_ids")


class Generate(OpenAiDialect):
    """The dialect of vLLM's own token ids; engines have the route with `--enable-scale-out`.

    What is asked for lies in `sampling_params`. A request that an engine would refuse for what a prefill leg
    replaces is served whole: the engine refuses it in its own words then.
    """

    name = "generate"
    path = "/inference/v1/generate"
    noun = "token ids"
    known_by = "token_ids"
    summary = "Generate token ids from token ids"
    request_schema: ClassVar[Mapping[str, Any]] = {"$ref": "#/components/schemas/GenerateRequest"}
    is_optional = True
    default_answer_tokens = None
    long_members = ("token_ids",)
    limits = ()
    null_n_is_one = False

    def __init__(self, completions: Completions) -> None:
        """`completions`: the dialect of completions of the same token ids."""
        self._completions = completions

    def cleaned(self, body: Body) -> Body:
        """As `Dialect`: extra arguments may hold what no client may set.

        Raises BadRequestError for parameters that cannot be read here: an engine might read them.
        """
        raw = body.raw("sampling_params") or b""
        if not raw.lstrip().startswith(b"{"):
            return body  # engines refuse it
        try:
            sampling = Body.parse(raw)
        except BadRequestError as error:
            raise BadRequestError(f"sampling_params: {error}", param="sampling_params") from None
        extra = sampling.value("extra_args") if sampling.gives("extra_args") else None
        if not isinstance(extra, dict) or not extra.keys() & set(_NEVER):
            return body
        kept = {name: value for name, value in extra.items() if name not in _NEVER}
        return body.changed({"sampling_params": _raw(sampling.changed({"extra_args": kept}))})

    def read(self, body: Body) -> Shape:
        """As `Dialect`."""
        try:
            stream = truth(body.value("stream"), "stream")
            options = body.value("stream_options")
            if not isinstance(options, dict | None):
                return Shape(stream=False, whole=True)
            for name in ("include_usage", "continuous_usage_stats"):
                truth((options or {}).get(name), name)
            sampling = Body.parse(body.raw("sampling_params") or b"")
            n, least = _number(sampling, "n", 1), _number(sampling, "min_tokens", 0)
            limit = _number(sampling, "max_tokens", 16)  # vLLM judges by its default, and takes what fits
        except BadRequestError:
            return Shape(stream=False, whole=True)
        if n is None or least is None or n < 1 or least < 0 or (limit is not None and limit < max(1, least)):
            return Shape(stream=False, whole=True)
        whole = any(map(body.gives, _MEDIA)) or any(map(sampling.gives, _OF_THE_PROMPT))
        return Shape(stream=stream, sequences=n, whole=whole)

    def answer_limit(self, body: Body) -> tuple[str, int] | None:
        """As `Dialect`."""
        try:
            limit = _number(_sampling(body), "max_tokens", None)
        except BadRequestError:
            return None
        return None if limit is None or limit < 1 else ("max_tokens", limit)

    def least_answer_tokens(self, body: Body) -> int:
        """As `Dialect`."""
        return super().least_answer_tokens(_sampling(body))

    def may_end_early(self, body: Body) -> bool:
        """As `Dialect`."""
        return super().may_end_early(_sampling(body))

    def computed_sequences(self, body: Body) -> int:  # noqa: ARG002  # `best_of` is no parameter here
        """As `Dialect`."""
        return 1

    def first_token_only(self, body: Body) -> Body:
        """As `Dialect`."""
        sampling = _sampling(body).changed({"max_tokens": _ONE, "n": _ONE}, drop=("min_tokens",))
        put = {"stream": msgspec.Raw(b"false"), "sampling_params": _raw(sampling)}
        return body.changed(put, drop=("stream_options",))

    def prompt(self, body: Body) -> tuple[Dialect, Body] | None:
        """As `Dialect`."""
        ids = body.view("token_ids")
        if ids is None or any(map(body.gives, _MEDIA)):
            return None
        kept = {name: msgspec.Raw(view) for name in ("model", "cache_salt") if (view := body.view(name))}
        return self._completions, Body({}, body.size_bytes).changed(kept | {"prompt": msgspec.Raw(ids)})


def _raw(sampling: Body) -> msgspec.Raw:
    return msgspec.Raw(sampling.encoded())


def _sampling(body: Body) -> Body:
    """The sampling parameters; none if they are no object, which engines refuse."""
    try:
        return Body.parse(body.raw("sampling_params") or b"")
    except BadRequestError:
        return _NO_SAMPLING


def _number(sampling: Body, name: str, absent: int | None) -> int | None:
    """An integer written as one, `absent` without it; null is None. Raises BadRequestError for all else."""
    if name not in sampling:
        return absent
    value = sampling.value(name)
    if value is not None and type(value) is not int:
        raise BadRequestError(f"{name} must be an integer", param=name)
    return value
