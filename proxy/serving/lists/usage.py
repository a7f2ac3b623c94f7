"""The usage of a list of prompts is the sum over its prompts; a figure that one of them lacks is left out."""

from collections.abc import Mapping, Sequence
from typing import Any


def summed(usages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The `usage` of all prompts together; its members are in the order of the first prompt's.

    Numbers are added, objects member by member. A member that is missing for one prompt is missing in the
    sum, one that is null is null. vLLM itself gives the `prompt_tokens_details` of one prompt of a list only;
    here they are summed like all else.
    """
    first = usages[0]
    return {
        name: _sum([usage[name] for usage in usages])
        for name in first
        if all(name in usage for usage in usages)
    }


def _sum(values: Sequence[Any]) -> Any:
    if all(isinstance(value, dict) for value in values):
        return summed(values)
    if all(isinstance(value, (int, float)) for value in values):
        return sum(values)
    return None
