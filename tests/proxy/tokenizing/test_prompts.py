"""Prompts are known for certain or unknown: fields by tables, the asking with engines that fail in every
way."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from proxy.config import parse_instance
from proxy.errors import LegBrokenError
from proxy.fleet import Fleet, Instance, ModelCard
from proxy.headers import Headers
from proxy.phases import Role
from proxy.request import dialects
from proxy.request.body import Encoded
from proxy.request.generation import GenerationRequest, read_request
from proxy.tasks import TaskOwner
from proxy.tokenizing import PromptTokenizer, parity
from proxy.tokenizing.distrust import DISTRUST_S
from proxy.tokenizing.engine_facts import EngineFacts
from proxy.tokenizing.engines import LACKING_S
from proxy.tokenizing.fields import MEDIA_TOKENS, Ask, Given, Truncation, Unknowable, what_to_tokenize
from proxy.tokenizing.local.bounds import Bounds
from proxy.tokenizing.tool_choices import Choice, Tools

MESSAGES = [{"role": "user", "content": "hi"}]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 9000}}
PICTURE = [{"role": "user", "content": [{"type": "text", "text": "see"}, IMAGE, "there"]}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]
NAMED = {"type": "function", "function": {"name": "f"}}


def chat(**members: Any) -> GenerationRequest:
    return read_request(dialects.CHAT, json.dumps({"messages": MESSAGES} | members).encode(), "tiny")


def text(**members: Any) -> GenerationRequest:
    return read_request(dialects.COMPLETIONS, json.dumps({"prompt": "hi"} | members).encode(), "tiny")


@pytest.mark.parametrize(
    ("request_", "asked"),
    [
        (chat(), {"messages": MESSAGES, "model": "tiny"}),
        (chat(model="alpha", temperature=0.5, stream=True), {"messages": MESSAGES, "model": "alpha"}),
        (chat(tools=[{"a": 1}]), {"messages": MESSAGES, "tools": [{"a": 1}], "model": "tiny"}),
        (chat(tools=None, tool_choice="auto", user="u"), {"messages": MESSAGES, "model": "tiny"}),
        (
            chat(add_generation_prompt=False, continue_final_message=True, chat_template_kwargs={"x": 1}),
            {
                "messages": MESSAGES,
                "model": "tiny",
                "add_generation_prompt": False,
                "continue_final_message": True,
                "chat_template_kwargs": {"x": 1},
            },
        ),
        (
            chat(messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}]),
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "model": "tiny"},
        ),
        (
            chat(documents=[{"text": "x"}], chat_template_kwargs={"x": 1}),
            {
                "messages": MESSAGES,
                "chat_template_kwargs": {"x": 1, "documents": [{"text": "x"}]},
                "model": "tiny",
            },
        ),
        (
            chat(reasoning_effort="none"),
            {
                "messages": MESSAGES,
                "chat_template_kwargs": {"reasoning_effort": "none", "enable_thinking": False},
                "model": "tiny",
            },
        ),
        (
            chat(reasoning_effort="low", chat_template_kwargs={"enable_thinking": False}),
            {
                "messages": MESSAGES,
                "chat_template_kwargs": {"reasoning_effort": "low", "enable_thinking": False},
                "model": "tiny",
            },
        ),
        (
            chat(messages=[{"role": "assistant", "content": "a", "reasoning_content": "r"}, *MESSAGES]),
            {
                "messages": [{"role": "assistant", "content": "a", "reasoning": "r"}, *MESSAGES],
                "model": "tiny",
            },
        ),
        (text(truncate_prompt_tokens=5, truncation_side="left"), {"prompt": "hi", "model": "tiny"}),
        (text(), {"prompt": "hi", "model": "tiny"}),
        (
            text(prompt=["hi"], add_special_tokens=False),
            {"prompt": "hi", "model": "tiny", "add_special_tokens": False},
        ),
    ],
)
def test_engines_are_asked_about_what_shapes_the_prompt(
    request_: GenerationRequest, asked: dict[str, Any]
) -> None:
    how = what_to_tokenize(request_)
    assert isinstance(how, Ask)
    assert json.loads(bytes(how.body)) == asked


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2, 3]]])
def test_given_token_ids_need_no_engine(prompt: list[Any]) -> None:
    how = what_to_tokenize(text(prompt=prompt))
    assert isinstance(how, Given)
    assert list(how.token_ids) == [1, 2, 3]


MANY = list(range(150_000, 151_000))


@pytest.mark.parametrize("blank", ["", " ", "  ", "\n", "\t\r\n "])
@pytest.mark.parametrize("odd", [0, 7, 2**32 - 1])
def test_many_token_ids_are_those_that_were_written(blank: str, odd: int) -> None:
    for ids in ([odd, *MANY], [*MANY, odd], [*MANY, odd, *MANY], [odd] * 3000):
        written = f"{blank},{blank}".join(map(str, ids))
        raw = f'{{"prompt": [{blank}{written}{blank}]}}'
        how = what_to_tokenize(read_request(dialects.COMPLETIONS, raw.encode(), "tiny"))
        assert isinstance(how, Given)
        assert how.token_ids.typecode == "I"
        assert how.token_ids.tolist() == ids


@pytest.mark.parametrize("odd", [-1, 2**32, 2**63, 2**64, 10**30, 1.5, 1e300, None, True, "1", [1], {}])
def test_among_many_token_ids_one_that_is_none_shows(odd: Any) -> None:
    for prompt in ([odd, *MANY], [*MANY, odd], [*MANY, odd, *MANY]):
        how = what_to_tokenize(text(prompt=[prompt]))
        assert isinstance(how, Unknowable)
        assert how.why == "malformed"


@pytest.mark.parametrize("prompt", [[1, 2, -3], [[1, 2, -3]]])
def test_more_numbers_than_any_engine_takes_are_not_even_read(prompt: list[Any]) -> None:
    for longest, why in ((2, "too long"), (3, "malformed")):
        how = what_to_tokenize(text(prompt=prompt), Bounds(longest))
        assert isinstance(how, Unknowable)
        assert how.why == why


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (text(prompt_embeds="AAAA"), "field"),
        (chat(documents=[{"t": "x"}], chat_template_kwargs=[1]), "malformed"),
        (chat(truncate_prompt_tokens=-1), "malformed"),
        (chat(truncate_prompt_tokens=0), "malformed"),
        (text(truncate_prompt_tokens=5, truncation_side="middle"), "malformed"),
        (chat(tool_choice="sometimes"), "malformed"),
        (chat(tool_choice={"type": "function"}), "malformed"),
        (chat(messages=[{"role": "user", "content": [{"type": "file"}]}]), "content part"),
        (chat(messages=[{"role": "user", "content": [{"image_url": "x"}]}]), "content part"),
        (chat(messages=[{"role": "user", "content": [{"type": "prompt_embeds"}]}]), "content part"),
        (chat(messages=[{"role": "user", "content": [{"type": "text", "uuid": "u"}]}]), "content part"),
        (chat(messages=PICTURE, truncate_prompt_tokens=9, truncation_side="left"), "content part"),
        (chat(messages=PICTURE, continue_final_message=True), "content part"),
        (chat(messages="hi"), "malformed"),
        (chat(messages=None), "malformed"),
        (text(suffix="x"), "field"),
        (text(prompt=["a", "b"]), "prompt list"),
        (text(prompt=[[1], [2]]), "prompt list"),
        (text(prompt=[1, "a"]), "malformed"),
        (text(prompt=[1, -1]), "malformed"),
        (text(prompt=[2**32]), "malformed"),
        (text(prompt=[[1, None]]), "malformed"),
        (text(prompt=None), "malformed"),
    ],
)
def test_anything_else_is_unknown(request_: GenerationRequest, why: str) -> None:
    how = what_to_tokenize(request_)
    assert isinstance(how, Unknowable)
    assert how.why == why


def test_a_prompt_is_shortened_as_the_request_says() -> None:
    left = what_to_tokenize(text(truncate_prompt_tokens=5, truncation_side="left"))
    assert isinstance(left, Ask)
    assert left.truncation == Truncation(5, "left")
    given = what_to_tokenize(text(prompt=[1, 2], truncate_prompt_tokens=1))
    assert isinstance(given, Given)
    assert given.truncation == Truncation(1, None)
    alone = what_to_tokenize(text(truncation_side="left"))
    assert isinstance(alone, Ask)
    assert alone.truncation is None


@pytest.mark.parametrize(
    ("request_", "needs"),
    [
        (text(), {"completion"}),
        (chat(), {"chat"}),
        (chat(tools=[{"a": 1}]), {"chat", "tools"}),
        (chat(messages=[{"role": "tool", "content": "x", "tool_call_id": "1"}]), {"chat", "tools"}),
        (chat(messages=[{"role": "developer", "content": "x"}]), {"chat", "developer"}),
        (chat(messages=[{"role": "assistant", "reasoning_content": "x"}]), {"chat", "reasoning"}),
        (chat(reasoning_effort="low"), {"chat", "reasoning_effort"}),
        (chat(documents=[{"a": "b"}]), {"chat", "documents"}),
        (chat(chat_template_kwargs={}), {"chat", "chat_template_kwargs"}),
        (chat(continue_final_message=True), {"chat", "continue_final_message"}),
        (chat(messages=[{"role": "user", "content": ["a", {"type": "text"}]}]), {"chat", "text parts"}),
        (chat(messages=[{"role": "user", "content": [{"type": "input_text"}]}]), {"chat", "text parts"}),
        (chat(messages=[{"role": "user", "content": [{"type": "text"}]}]), {"chat"}),
    ],
)
def test_the_kinds_that_a_prompt_needs_agreement_about(request_: GenerationRequest, needs: set[str]) -> None:
    how = what_to_tokenize(request_)
    assert isinstance(how, Ask)
    assert how.needs == needs
    assert needs <= parity.KINDS


def test_requests_of_one_kind_share_what_shapes_their_prompts() -> None:
    kinds = {what_to_tokenize(r).kind for r in (chat(), chat(n=2, seed=1), chat(tools=None))}
    assert len(kinds) == 1
    assert what_to_tokenize(chat(tools=[])).kind not in kinds


@pytest.mark.parametrize("choice", ["none", "required", NAMED])
def test_a_choice_of_tools_is_counted_like_auto_until_engines_show_otherwise(choice: Any) -> None:
    usual, chosen = chat(tools=TOOLS), chat(tools=TOOLS, tool_choice=choice)
    facts = EngineFacts()
    both = [what_to_tokenize(r, facts=facts) for r in (usual, chosen)]
    assert isinstance(both[0], Ask)
    assert isinstance(both[1], Ask)
    assert both[0].body == both[1].body
    assert both[0].kind != both[1].kind
    assert facts.choices_wanted
    said = {Choice.NONE: Tools.LEFT_OUT, Choice.REQUIRED: Tools.UNCLEAR, Choice.NAMED: Tools.UNCLEAR}
    facts.learn_choices("a:1", said)
    how = what_to_tokenize(chosen, facts=facts)
    if choice == "none":
        assert isinstance(how, Ask)
        assert json.loads(bytes(how.body)) == {"messages": MESSAGES, "model": "tiny"}
        assert how.needs == {"chat"}
    else:
        assert isinstance(how, Unknowable)
        assert how.members.unknown == ("tool_choice",)
    facts.keep(["b:1"])
    assert isinstance(what_to_tokenize(chosen, facts=facts), Ask)


def test_without_tools_a_choice_means_nothing() -> None:
    kinds = {what_to_tokenize(chat(**members)).kind for members in ({}, {"tool_choice": "none"})}
    assert len(kinds) == 1
    assert (
        what_to_tokenize(chat(tools=TOOLS, tool_choice="auto")).kind
        == what_to_tokenize(chat(tools=TOOLS)).kind
    )


def test_images_are_stubs_that_cost_nothing_and_count_for_the_load() -> None:
    how = what_to_tokenize(chat(messages=PICTURE))
    assert isinstance(how, Ask)
    [message] = json.loads(bytes(how.body))["messages"]
    assert message["content"] == [{"type": "text", "text": "see"}, {"type": "image"}, "there"]
    assert how.media == 1
    assert MEDIA_TOKENS < how.estimated_tokens < MEDIA_TOKENS + 100
    assert how.kind != what_to_tokenize(chat()).kind


def test_a_stub_has_the_members_that_vllm_gives_to_templates() -> None:
    marks = {"cache_control": {"type": "ephemeral"}, "odd": None}
    known = {"uuid": "u", "name": "n", "text": "t"}
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    parts = [{"type": "text", "text": "see"}, picture | marks | known]
    how = what_to_tokenize(chat(messages=[{"role": "user", "content": parts}]))
    assert isinstance(how, Ask)
    [message] = json.loads(bytes(how.body))["messages"]
    assert message["content"][1] == {"type": "image"} | marks


def test_what_no_engine_knows_shapes_nothing_and_makes_a_kind_of_its_own() -> None:
    facts = EngineFacts()
    usual, odd = chat(), chat(enable_thinking=True, num_ctx=4096)
    how = what_to_tokenize(odd, facts=facts)
    assert isinstance(how, Ask)
    assert how.members.ignored == ("enable_thinking", "num_ctx")
    assert json.loads(bytes(how.body)) == {"messages": MESSAGES, "model": "tiny"}
    assert how.kind != what_to_tokenize(usual, facts=facts).kind
    assert facts.schemas_wanted
    facts.learn_schema(
        "a:1", "9.9", {dialects.CHAT: frozenset({"num_ctx"}), dialects.COMPLETIONS: frozenset()}
    )
    unknown = what_to_tokenize(odd, facts=facts)
    assert isinstance(unknown, Unknowable)
    assert (unknown.why, unknown.members.unknown) == ("field", ("num_ctx",))
    assert isinstance(what_to_tokenize(text(num_ctx=1), facts=facts), Ask), "of completions it says nothing"


class Engines:
    """Answers /tokenize by script; an exception is raised, a number of seconds waited, a pair is status and
    body.
    """

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, Headers]] = []
        self.max_bytes: int | None = None
        self.answer_late: Any = None
        """What comes after a wait."""

    async def exchange(
        self,
        method: str,
        instance: str,
        path: str,
        body: Encoded | bytearray | None,
        timeout_s: float,
        headers: Headers | None = None,
        *,
        max_bytes: int | None = None,
    ) -> tuple[int, bytes]:
        self.max_bytes = max_bytes
        assert (method, path) == ("POST", "/tokenize"), "tokenizing asks engines nothing about themselves"
        self.asked.append((instance, headers or []))
        answer = self.answers.pop(0)
        if isinstance(answer, float):
            await asyncio.sleep(answer)
            answer = self.answer_late
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, tuple):
            return answer
        return 200, json.dumps(answer).encode()


def tokenizer(engines: Engines, now: Sequence[float] = (0.0,), deadline_s: float = 5.0) -> PromptTokenizer:
    fleet = Fleet()
    for address, role in (("a:1", Role.PREFILL), ("b:1", Role.DECODE), ("c:1", Role.DECODE)):
        instance = Instance(parse_instance(address, role))
        if address != "c:1":
            instance.came_up()
        instance.listed([ModelCard("tiny"), ModelCard("alpha", "tiny")], 0.0)
        fleet.add(instance)
    return PromptTokenizer(fleet, engines, clock=lambda: now[-1], deadline_s=deadline_s)


async def test_engines_that_are_up_are_asked_in_turn_and_answers_kept() -> None:
    engines = Engines({"tokens": [1]}, {"tokens": [2]})
    asking = tokenizer(engines)
    headers = [("Authorization", "Bearer x"), ("Traceparent", "t")]
    for prompt, expected in (("one", [1]), ("two", [2]), ("one", [1])):
        known = (await asking.tokenize(text(prompt=prompt), headers)).prompt
        assert known is not None
        assert list(known.token_ids) == expected
    assert {instance for instance, _ in engines.asked} == {"a:1", "b:1"}
    assert engines.asked[0][1] == [("Authorization", "Bearer x")]


async def test_long_questions_wait_here_and_short_ones_pass_them() -> None:
    long = [text(prompt=str(n) * 100_000) for n in range(4)]
    engines = Engines(60.0, 60.0, {"tokens": [7]})
    asking = tokenizer(engines, deadline_s=20.0)
    owner = TaskOwner("questions")
    for n, request in enumerate(long):
        owner.create(asking.tokenize(request, [], f"client {n}"), name=str(n))
    for _ in range(10):
        await asyncio.sleep(0)
    assert sorted(instance for instance, _ in engines.asked) == ["a:1", "b:1"]  # one each
    known = (await asking.tokenize(text(prompt="short"), [], "modest")).prompt
    assert known is not None
    assert list(known.token_ids) == [7]
    assert len(engines.asked) == 3
    await owner.close()
    await asking.close()


async def test_no_longer_answer_is_read_than_a_prompt_that_fits_has() -> None:
    engines = Engines({"tokens": [1]}, {"tokens": [2]})
    asking = tokenizer(engines)
    await asking.tokenize(text(prompt="one"), [])
    assert engines.max_bytes is None
    for instance in asking._fleet:
        instance.listed([ModelCard("tiny", max_model_len=1000), ModelCard("alpha", "tiny")], 0.0)
    await asking.tokenize(text(prompt="two"), [])
    assert engines.max_bytes == (64 << 10) + 12 * 1000


async def test_many_that_ask_the_same_at_once_are_one_question() -> None:
    engines = Engines({"tokens": list(range(1000))})
    asking = tokenizer(engines)
    found = await asyncio.gather(*[asking.tokenize(text(), []) for _ in range(20)])
    assert all(one.prompt is not None for one in found)
    assert len(engines.asked) == 1
    assert asking._engines.held_bytes == 4 * 1000 + 200


async def test_a_client_that_leaves_does_not_take_the_answer_away_from_others() -> None:
    engines = Engines(0.05)
    asking = tokenizer(engines)
    first = asyncio.get_running_loop().create_task(asking.tokenize(text(), []))
    while not engines.asked:  # noqa: ASYNC110  # the question is on its way after a few turns
        await asyncio.sleep(0)
    engines.answer_late = {"tokens": [1]}
    second = asyncio.get_running_loop().create_task(asking.tokenize(text(), []))
    await asyncio.sleep(0)
    first.cancel()
    found = await second
    assert found.prompt is not None
    assert len(engines.asked) == 1


async def test_prompts_are_shortened_on_the_side_that_is_told() -> None:
    asking = tokenizer(Engines({"tokens": [1, 2, 3]}))
    for side, left in (("left", [2, 3]), ("right", [1, 2])):
        known = await asking.tokenize(text(truncate_prompt_tokens=2, truncation_side=side), [])
        assert known.prompt is not None
        assert list(known.prompt.token_ids) == left
    assert (await asking.tokenize(text(truncate_prompt_tokens=2), [])).why_unknown == "field"


async def test_a_prompt_no_engine_takes_is_not_looked_at() -> None:
    asking = tokenizer(Engines())
    for instance in asking._fleet:
        instance.listed([ModelCard("tiny", max_model_len=10), ModelCard("alpha", "tiny")], 0.0)
    assert (await asking.tokenize(text(prompt=list(range(11))), [])).why_unknown == "too long"
    assert (await asking.tokenize(text(prompt=list(range(10))), [])).prompt is not None
    for keep, why in ((5, None), (11, "too long")):  # engines shorten first
        shortened = text(prompt=list(range(12)), truncate_prompt_tokens=keep, truncation_side="left")
        known = await asking.tokenize(shortened, [])
        assert known.why_unknown == why
        assert known.prompt is None or list(known.prompt.token_ids) == list(range(12 - keep, 12))


async def test_adapter_and_salt_belong_to_the_prompt() -> None:
    known = (
        await tokenizer(Engines({"tokens": [1]})).tokenize(text(model="alpha", cache_salt="s"), [])
    ).prompt
    assert known is not None
    assert (known.lora_name, known.cache_salt) == ("alpha", "s")


@pytest.mark.parametrize(
    "bad", [LegBrokenError("a:1", "x"), {}, [], None, {"tokens": None}, {"tokens": ["x"]}, {"tokens": [-1]}]
)
async def test_another_engine_is_asked_when_one_fails(bad: Any) -> None:
    known = await tokenizer(Engines(bad, {"tokens": [7]})).tokenize(text(), [])
    assert known.prompt is not None
    assert list(known.prompt.token_ids) == [7]


async def test_engines_that_have_no_tokenize_are_not_asked_for_every_prompt() -> None:
    now = [0.0]
    missing = (404, b'{"detail": "Not Found"}')
    engines = Engines(missing, missing, {"tokens": [7]})
    asking = tokenizer(engines, now)
    for number in range(5):
        assert (await asking.tokenize(text(prompt=f"{number}"), [])).why_unknown == "no answer"
    assert sorted(instance for instance, _ in engines.asked) == ["a:1", "b:1"]
    now.append(LACKING_S)
    assert (await asking.tokenize(text(), [])).prompt is not None, "it may be another engine by now"


async def test_one_of_two_engines_without_tokenize_leaves_the_other() -> None:
    engines = Engines((405, b""), *({"tokens": [n]} for n in range(6)))
    asking = tokenizer(engines)
    for number in range(6):
        known = (await asking.tokenize(text(prompt=f"{number}"), [])).prompt
        assert known is not None
    assert len({instance for instance, _ in engines.asked[1:]}) == 1


async def test_a_model_that_is_not_there_says_nothing_of_the_route() -> None:
    unknown = (404, b'{"error": {"message": "The model `tiny` does not exist.", "code": 404}}')
    engines = Engines(unknown, unknown, {"tokens": [7]})
    asking = tokenizer(engines)
    assert (await asking.tokenize(text(prompt="one"), [])).why_unknown == "no answer"
    assert (await asking.tokenize(text(prompt="two"), [])).prompt is not None


async def test_no_answer_in_time_means_unknown() -> None:
    failing = await tokenizer(Engines(LegBrokenError("a:1", "x"), LegBrokenError("b:1", "x"))).tokenize(
        text(), []
    )
    late = await tokenizer(Engines(60.0), deadline_s=0.01).tokenize(text(), [])
    assert failing.prompt is None
    assert late.prompt is None
    assert failing.why_unknown == late.why_unknown == "no answer"


async def test_a_kind_that_was_counted_wrongly_is_unknown_for_a_while() -> None:
    now = [0.0]
    asking = tokenizer(Engines({"tokens": [1]}, {"tokens": [1]}, {"tokens": [1]}), now)
    first = await asking.tokenize(text(), [])
    asking.distrust(first.kind)
    assert (await asking.tokenize(text(prompt="other"), [])).why_unknown == "counted differently"
    assert (await asking.tokenize(chat(), [])).prompt is not None
    now.append(DISTRUST_S + 1)
    assert (await asking.tokenize(text(), [])).prompt is not None
