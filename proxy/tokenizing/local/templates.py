"""A chat template gives the text that transformers makes of it, in a sandbox in which it can change
nothing.
"""

import copy
import datetime as dt
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
"""Marks the end of the message to continue; its last character, a space, shows whether the template trims."""


class TemplateRefusedError(ValueError):
    """A template cannot render this conversation: an engine would refuse it."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what an assistant said, for training; the text is as without."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = jinja2.nodes.CallBlock(self.call_method("_unchanged"), [], [], body)
        return call.set_lineno(line)

    def _unchanged(self, caller: Callable[[], str]) -> str:
        return caller()


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,  # the filter's own names
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(layout: str) -> str:
    return dt.datetime.now().strftime(layout)  # noqa: DTZ005  # the engine's clock, not a point in time


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _strftime_now
    return environment


class ChatTemplate:
    """One template, compiled."""

    def __init__(self, source: str) -> None:
        """Raises jinja2.TemplateError if `source` is no template."""
        environment = _environment()
        self._source = source
        self._compiled = environment.from_string(source)
        self.wants_parts = _loops_over_contents(environment.parse(source))
        """Whether contents are given as lists of parts, as vLLM decides it; else as text."""
        self.knows_developer = '"developer"' in source or "'developer'" in source

    def render(
        self,
        conversation: Sequence[Mapping[str, Any]],
        *,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The text of a conversation. Raises TemplateRefusedError."""
        final = None
        if continue_final_message:
            conversation = copy.deepcopy(list(conversation))
            final = _mark(conversation[-1])
            if "content" not in self._source:
                raise TemplateRefusedError("the template shows no contents")
        try:
            text = self._compiled.render(messages=conversation, **variables)
        except Exception as error:  # a template may raise anything for what it did not expect
            raise TemplateRefusedError(str(error)) from error
        return text if final is None else _cut_at_mark(text, final)


def _mark(message: Mapping[str, Any]) -> str:
    """Append the mark to the last text of a message, and return that text."""
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = content + _TAG  # type: ignore[index]  # a copy of ours, a dict
        return content
    for part in reversed(content or []):
        if "text" in part:
            text = str(part["text"])
            part["text"] = text + _TAG
            return text
    raise TemplateRefusedError("there is no text to continue")


def _cut_at_mark(text: str, final: str) -> str:
    mark = _TAG.strip()
    if final.strip() not in text or mark not in text:
        raise TemplateRefusedError("the template leaves out the message to continue")
    end = text.rindex(mark)
    # A mark without its space shows that the template trims, so the text before it is trimmed as well.
    return text[:end] if text[end : end + len(_TAG)] == _TAG else text[:end].rstrip()


class ChatTemplates:
    """A model's templates by name."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self._sources = sources

    def choose(self, *, with_tools: bool) -> ChatTemplate | None:
        """The template for a conversation; None if the model has none. Raises TemplateRefusedError."""
        name = "tool_use" if with_tools and "tool_use" in self._sources else "default"
        return self._compile(name) if name in self._sources else None

    @functools.cache  # noqa: B019  # lives as long as the process
    def _compile(self, name: str) -> ChatTemplate:
        try:
            return ChatTemplate(self._sources[name])
        except jinja2.TemplateError as error:
            raise TemplateRefusedError(str(error)) from error


# vLLM gives a template lists of parts if it loops over the contents of messages, and text otherwise. It looks
# for such a loop as follows, by names alone; a loop that it does not see must not be seen here either.


def _loops_over_contents(root: jinja2.nodes.Template) -> bool:
    try:
        return any(True for _ in _content_loops(root))
    except (AssertionError, AttributeError):  # a loop over several names, at which vLLM gives up
        return False


def _content_loops(root: jinja2.nodes.Template) -> Iterator[jinja2.nodes.For]:
    messages = {"messages", *_aliases(root, "messages")}
    message_names = [
        _name(loop.target)
        for loop in root.find_all(jinja2.nodes.For)
        if any(_reads(loop.iter, name) for name in messages)
    ]

    def is_content(node: jinja2.nodes.Node) -> bool:
        return any(_reads(node, name, "content") for name in message_names)

    in_macros: dict[int, set[str]] = {}
    for macro in root.find_all(jinja2.nodes.Macro):
        given = set(_given_contents(root, macro, is_content))
        for loop in macro.find_all(jinja2.nodes.For):
            in_macros.setdefault(id(loop), set()).update(given)
    for loop in root.find_all(jinja2.nodes.For):
        loops_over = loop.iter.name if isinstance(loop.iter, jinja2.nodes.Name) else None
        parameters = in_macros.get(id(loop))
        if (
            is_content(loop.iter)
            or (parameters is not None and loops_over in parameters)
            or (parameters is None and loops_over == "content")
        ):
            _name(loop.target)
            yield loop


def _given_contents(
    root: jinja2.nodes.Template, macro: jinja2.nodes.Macro, is_content: Callable[[jinja2.nodes.Node], bool]
) -> Iterator[str]:
    """The parameters of a macro that get a message's content in some call."""
    names = [argument.name for argument in macro.args]
    for call in root.find_all(jinja2.nodes.Call):
        if isinstance(call.node, jinja2.nodes.Name) and call.node.name == macro.name:
            yield from (name for name, value in zip(names, call.args, strict=False) if is_content(value))
            yield from (word.key for word in call.kwargs if word.key in names and is_content(word.value))


def _aliases(root: jinja2.nodes.Template, name: str) -> Iterator[str]:
    """The names that are set to a variable, or to another such name."""
    known = [name]
    for each in known:
        for assignment in root.find_all(jinja2.nodes.Assign):
            if _reads(assignment.node, each) and (alias := _name(assignment.target)) not in known:
                known.append(alias)
                yield alias


def _name(node: jinja2.nodes.Node) -> str:
    if not isinstance(node, jinja2.nodes.Name):
        raise AssertionError("several names at once")  # noqa: TRY004  # as in vLLM, whose rules these are
    return node.name


def _reads(node: jinja2.nodes.Node, name: str, key: str | None = None) -> bool:
    """Whether an expression is a variable, or one member of it, perhaps filtered, tested or sliced."""
    nodes = jinja2.nodes
    if isinstance(node, nodes.Filter | nodes.Test):
        return node.node is not None and _reads(node.node, name, key)
    if isinstance(node, nodes.Getitem):
        if isinstance(node.arg, nodes.Slice):
            return _reads(node.node, name, key)
        is_member = isinstance(node.arg, nodes.Const) and node.arg.value == key
        return key is not None and is_member and _is_variable(node.node, name)
    if isinstance(node, nodes.Getattr):
        return key is not None and node.attr == key and _is_variable(node.node, name)
    return key is None and _is_variable(node, name)


def _is_variable(node: jinja2.nodes.Node, name: str) -> bool:
    return isinstance(node, jinja2.nodes.Name) and node.ctx == "load" and node.name == name
