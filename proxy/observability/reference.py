"""docs/metrics.md is made of the metrics' declarations: `proxy.cli.reference` writes it, a test compares."""

from collections.abc import Mapping, Sequence

from proxy.observability.family import Family, Group

_HEAD = """\
# Metrics

<!-- Made by `python -m proxy.cli.reference docs/metrics.md` of what proxy/observability declares: change it there. -->

`GET /metrics` answers these in the format of Prometheus; a histogram is served as `NAME_bucket`, `NAME_sum` and
`NAME_count`. The unit `count` is a number of things; of a gauge that is said to be 1 it is 1 or 0.

- `instance` is an engine's `HOST:PORT`, `rank` its data-parallel rank, `phase` is `prefill` or `decode`, `role` is what the
  instance was named for.
- The lines of an instance go when it is removed, and start at 0 when it is added again. All start at 0 when kvproxy starts.
- [Is it working?](operating.md#is-it-working) says what it means when some of them grow, and what to do;
  [Questions for Prometheus](operating.md#questions-for-prometheus) has queries.
"""


def page(groups: Sequence[Group]) -> str:
    """The whole reference, in Markdown."""
    parts = [_HEAD]
    for group in groups:
        parts.append(f"## {group.title}\n")
        if group.text:
            parts.append(f"{group.text}\n")
        parts.append(table(group.families))
    return "\n".join(parts)


def table(families: Sequence[Family]) -> str:
    """A line for each of `families`."""
    head = ["| metric | type | labels | unit | what it counts |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*head, *map(line, families)]) + "\n"


def line(family: Family) -> str:
    """The line of one family."""
    labels = ", ".join(f"`{label}`" for label in family.labels)
    words = (_words(label, meanings) for label, meanings in family.words.items())
    meaning = " ".join(filter(None, (family.help_text, family.more, *words)))
    cells = (f"`{family.served_as}`", family.type, labels, family.unit, meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _words(label: str, meanings: Mapping[str, str]) -> str:
    """What the values of a label mean, as a sentence."""
    values = (f"`{value}`" + (f" ({meaning})" if meaning else "") for value, meaning in meanings.items())
    return f"`{label}`: {', '.join(values)}."
