"""Invariant: a value is converted as vLLM's validator converts it, or reported in the same words; nothing is
guessed.

vLLM parses bodies with pydantic in its lax mode: "3" is an integer, "yes" is true, 1.5 is no integer. A rule
is a function from (value, location, problems) to the converted value. Only fields that the stand-in reads
have a rule; unknown ones are accepted, as in vLLM.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from proxy.simulation.api.errors import SchemaError

Problems = list[dict[str, Any]]
Rule = Callable[[Any, str, Problems], Any]
_TRUE = {"1", "on", "t", "true", "y", "yes"}
_FALSE = {"0", "off", "f", "false", "n", "no"}
_INT64 = 2**63
_SHOWN = 200


def problem(kind: str, loc: str, message: str, value: Any, **context: Any) -> dict[str, Any]:
    """One finding, with the offending value described briefly."""
    found: dict[str, Any] = {"type": kind, "loc": loc, "msg": message, "input": _describe(value)}
    if context:
        found["ctx"] = context
    return found


def _describe(value: Any) -> str:
    if isinstance(value, list | dict):
        return f"<{type(value).__name__} of {len(value)} items>"
    text = str(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "...[truncated]"


def integer(*, at_least: int | None = None, at_most: int | None = None) -> Rule:
    """An integer, or a value that stands for one."""

    def rule(value: Any, loc: str, problems: Problems) -> Any:
        converted = _to_int(value, loc, problems)
        if converted is None:
            return None
        if at_least is not None and converted < at_least:
            message = f"Input should be greater than or equal to {at_least}"
            problems.append(problem("greater_than_equal", loc, message, value, ge=at_least))
        if at_most is not None and converted > at_most:
            message = f"Input should be less than or equal to {at_most}"
            problems.append(problem("less_than_equal", loc, message, value, le=at_most))
        return converted

    return rule


def _to_int(value: Any, loc: str, problems: Problems) -> int | None:
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if value.is_integer():
            return int(value)
        message = "Input should be a valid integer, got a number with a fractional part"
        problems.append(problem("int_from_float", loc, message, value))
    elif isinstance(value, str):
        try:
            return int(value.strip())
        except ValueError:
            message = "Input should be a valid integer, unable to parse string as an integer"
            problems.append(problem("int_parsing", loc, message, value))
    else:
        problems.append(problem("int_type", loc, "Input should be a valid integer", value))
    return None


def number(value: Any, loc: str, problems: Problems) -> Any:
    """A number, or a string that says one."""
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:
            problems.append(problem("float_type", loc, "Input should be a valid number", value))
            return None
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            message = "Input should be a valid number, unable to parse string as a number"
            problems.append(problem("float_parsing", loc, message, value))
            return None
    problems.append(problem("float_type", loc, "Input should be a valid number", value))
    return None


def boolean(value: Any, loc: str, problems: Problems) -> Any:
    """True or false, in any of the forms that pydantic accepts."""
    word = value.lower() if isinstance(value, str) else None
    if isinstance(value, int | float) and value in {0, 1}:
        word = str(int(value))
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    if isinstance(value, str | int | float):
        message = "Input should be a valid boolean, unable to interpret input"
        problems.append(problem("bool_parsing", loc, message, value))
    else:
        problems.append(problem("bool_type", loc, "Input should be a valid boolean", value))
    return None


def string(value: Any, loc: str, problems: Problems) -> Any:
    """Text."""
    if not isinstance(value, str):
        problems.append(problem("string_type", loc, "Input should be a valid string", value))
    return value


def mapping(value: Any, loc: str, problems: Problems) -> Any:
    """An object with any keys."""
    if not isinstance(value, dict):
        problems.append(problem("dict_type", loc, "Input should be a valid dictionary", value))
    return value


def whatever(value: Any, loc: str, problems: Problems) -> Any:  # noqa: ARG001  # a rule like the others
    """Anything."""
    return value


def iterable(value: Any, loc: str, problems: Problems) -> Any:
    """A value with elements, which are checked later."""
    if not isinstance(value, str | list | dict):
        problems.append(problem("iterable_type", loc, "Input should be iterable", value))
    return value


def literal(*words: str) -> Rule:
    """One of some words."""
    quoted = [f"'{word}'" for word in words]
    expected = " or ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))

    def rule(value: Any, loc: str, problems: Problems) -> Any:
        if value not in words:
            problems.append(
                problem("literal_error", loc, f"Input should be {expected}", value, expected=expected)
            )
        return value

    return rule


def named(name: str, rule: Rule) -> Rule:
    """The rule of a class whose name is in complaints."""
    return lambda value, loc, problems: rule(value, f"{loc}.{name}", problems)


def nullable(rule: Rule) -> Rule:
    """The rule, or null."""
    return lambda value, loc, problems: None if value is None else rule(value, loc, problems)


def list_of(rule: Rule, *, at_most: int | None = None) -> Rule:
    """An array whose elements follow the rule."""

    def whole(value: Any, loc: str, problems: Problems) -> Any:
        if not isinstance(value, list):
            problems.append(problem("list_type", loc, "Input should be a valid list", value))
            return None
        if at_most is not None and len(value) > at_most:
            text = f"List should have at most {at_most} items after validation, not {len(value)}"
            limit = {"field_type": "List", "max_length": at_most, "actual_length": len(value)}
            problems.append(problem("too_long", loc, text, value, **limit))
        return [rule(item, f"{loc}.{index}", problems) for index, item in enumerate(value)]

    return whole


def values_of(rule: Rule) -> Rule:
    """An object with any keys whose values follow the rule."""

    def whole(value: Any, loc: str, problems: Problems) -> Any:
        if not isinstance(value, dict):
            return mapping(value, loc, problems)
        return {key: rule(item, f"{loc}.{key}", problems) for key, item in value.items()}

    return whole


def record(fields: Mapping[str, Rule], required: Sequence[str] = ()) -> Rule:
    """An object. Required fields have a rule; fields without one are kept as they are."""

    def whole(value: Any, loc: str, problems: Problems) -> Any:
        if not isinstance(value, dict):
            message = "Input should be a valid dictionary or object to extract fields from"
            problems.append(problem("model_attributes_type", loc, message, value))
            return {}
        return _fields(value, loc, problems, fields, required)

    return whole


def typed_dict(fields: Mapping[str, Rule], required: Sequence[str] = ()) -> Rule:
    """As `record`, for classes of the OpenAI client, which the validator calls dictionaries."""

    def whole(value: Any, loc: str, problems: Problems) -> Any:
        if not isinstance(value, dict):
            return mapping(value, loc, problems)
        return _fields(value, loc, problems, fields, required)

    return whole


def _fields(
    value: dict[str, Any], loc: str, problems: Problems, fields: Mapping[str, Rule], required: Sequence[str]
) -> dict[str, Any]:
    """Convert the fields, in the order of their class."""
    converted = dict(value)
    for name, rule in fields.items():
        if name in value:
            converted[name] = rule(value[name], f"{loc}.{name}", problems)
        elif name in required:
            problems.append(problem("missing", f"{loc}.{name}", "Field required", value))
    return converted


def any_of(*rules: Rule) -> Rule:
    """The first rule that accepts the value as it is, else the first that converts it, else the complaints of
    all.
    """

    def whole(value: Any, loc: str, problems: Problems) -> Any:
        complaints: Problems = []
        conversions = []
        for rule in rules:
            own: Problems = []
            converted = rule(value, loc, own)
            if not own and converted == value:
                return converted
            if not own:
                conversions.append(converted)
            complaints.extend(own)
        if conversions:
            return conversions[0]
        problems.extend(complaints)
        return value

    return whole


def check(body: Any, rule: Rule) -> dict[str, Any]:
    """A parsed body with its values converted. Raises SchemaError, which names every problem."""
    problems: Problems = []
    if body is None:
        problems.append(problem("missing", "body", "Field required", body))
        raise SchemaError(problems)
    converted = rule(body, "body", problems)
    if problems:
        raise SchemaError(problems)
    return dict(converted)


seed = integer(at_least=-_INT64, at_most=_INT64 - 1)
