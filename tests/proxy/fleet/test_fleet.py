"""What the fleet keeps of what its instances list is what they list now, and only what is otherwise counts as
a change.
"""

import math
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from proxy.config import parse_instance
from proxy.fleet import Fleet, Instance, ModelCard
from proxy.phases import Phase, Role

CARDS = st.lists(
    st.builds(
        ModelCard,
        st.sampled_from(["m", "n", "o"]),
        st.sampled_from([None, "m"]),
        max_model_len=st.sampled_from([None, 10, 20]),
    ),
    max_size=3,
)
STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "remove", "list", "lacks"]), st.integers(0, 2), CARDS), max_size=12
)


class Exact:
    """A source of events that is followed from its beginning."""

    state = "exact"
    epoch = 0


@given(STEPS)
def test_what_all_list_together_is_what_each_lists(steps: list[tuple[str, int, list[ModelCard]]]) -> None:
    fleet = Fleet()
    for step, number, cards in steps:
        address = f"{'abc'[number]}:1"
        instance = fleet.get(address)
        if step == "add" and instance is None:
            fleet.add(Instance(parse_instance(address, Role.BOTH)))
        elif step == "remove":
            fleet.remove(address)
        elif instance is not None and step == "list":
            instance.listed(cards, 0.0)
        elif instance is not None:
            instance.lacks("m")
        lengths = [instance.max_model_len for instance in fleet]
        told = [length for length in lengths if length < math.inf]
        all_told = bool(told) and len(told) == len(lengths)
        longest = max(told, default=math.inf)
        assert fleet.contexts == (longest, longest if all_told else math.inf)
        assert fleet.max_model_len == longest
        listed = {instance.max_model_len for instance in fleet if instance.model_cards}
        assert fleet.contexts_differ is (len(listed) > 1)
        for model in ("m", "n", "o"):
            assert fleet.serves(model) is any(model in instance.models for instance in fleet)
            assert fleet.is_adapter(model) is any(model in instance.adapters for instance in fleet)


def test_the_count_of_changes_goes_up_with_who_is_there_and_not_with_what_runs() -> None:
    fleet, instance = Fleet(), Instance(parse_instance("a:1", Role.BOTH))
    counts = [fleet.changes]
    changes: list[Callable[[], object]] = [
        lambda: fleet.add(instance),
        instance.came_up,
        lambda: instance.listed([ModelCard("m")], 0.0),
        instance.drain,
        lambda: instance.is_followed({0: Exact(), 1: Exact()}),
        lambda: instance.announce(),  # noqa: PLW0108  # which it is changes
        lambda: fleet.remove("a:1"),
        lambda: fleet.add(instance),
    ]
    for change in changes:
        change()
        counts.append(fleet.changes)
    assert counts == sorted(set(counts))
    heard: list[int] = []
    fleet.listen(lambda: heard.append(fleet.changes))
    fleet.claim("a:1", 0, Phase.DECODE, 10).end()
    assert heard == [fleet.changes] == counts[-1:]
