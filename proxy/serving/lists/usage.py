"""The usage of a list of prompts is the sum of its prompts'; what one of them does not tell is not known of
all.
"""

from collections.abc import Mapping, Sequence
from typing import Any


def summed(usages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The `usage` of all prompts together, from the engines' own, members in the order of the first.

    Counts are added, objects member by member. A member that is null or missing in one is so in the sum. vLLM
    itself tells `prompt_tokens_details` of one prompt of a list only; here they are of all, as everything
    else is.
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
