"""What runs on an instance is the sum of its claims, however they come and go, and whatever is kept of it."""

from hypothesis import given
from hypothesis import strategies as st

from proxy.config import parse_instance
from proxy.fleet import Claim, Fleet, Instance
from proxy.phases import Phase, Role

RANKS = (0, 1, 5)
TOKENS = st.integers(0, 1000)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(Phase), st.sampled_from(RANKS), TOKENS, TOKENS, st.none() | TOKENS),
        st.tuples(st.sampled_from(["end", "computed"]), st.integers(0, 20)),
    ),
    max_size=30,
)
Step = tuple[Phase, int, int, int, int | None] | tuple[str, int]


def is_on(claim: Claim, phase: Phase, rank: int) -> bool:
    """Whether a claim counts on a rank for legs of a phase."""
    return claim.rank == rank and (claim.phase is phase or claim.instance.role is Role.BOTH)


@given(st.sampled_from(Role), STEPS)
def test_loads_are_the_sums_of_the_claims_that_run(role: Role, steps: list[Step]) -> None:
    fleet, instance = Fleet(), Instance(parse_instance("a:1", role))
    fleet.add(instance)
    running: list[Claim] = []
    computing: dict[Claim, int] = {}
    last_pick: dict[tuple[Phase, int], int] = {}
    for step in steps:
        before = {(phase, rank): instance.load.on(phase, rank).changes for phase in Phase for rank in RANKS}
        claim: Claim | None = None
        if len(step) == 2:
            what, number = step
            if running and what == "end":
                claim = running.pop(number % len(running))
                claim.end()
                claim.end()
                claim.computed()
                computing.pop(claim, None)
            elif running:
                found = running[number % len(running)]
                claim = found if computing.get(found) else None
                found.computed()
                found.computed()
                computing.pop(found, None)
        else:
            phase, rank, tokens, weight_tokens, prefill_tokens = step
            claim = fleet.claim("a:1", rank, phase, tokens, weight_tokens, prefill_tokens)
            running.append(claim)
            usual = tokens if phase is Phase.PREFILL else 0
            computing[claim] = usual if prefill_tokens is None else prefill_tokens
            picks = len(last_pick) and max(last_pick.values())
            for each in Phase if role is Role.BOTH else (phase,):
                last_pick[each, rank] = picks + 1
        for phase in Phase:
            assert instance.running_legs(phase) == sum(each.phase is phase for each in running)
            for rank in RANKS:
                there = [each for each in running if is_on(each, phase, rank)]
                assert instance.load_tokens(phase, rank) == sum(each.tokens for each in there)
                assert instance.weight_tokens(phase, rank) == sum(each.weight_tokens for each in there)
                load = instance.load.on(phase, rank)
                assert load.legs == len(there)
                assert load.prefill_tokens == sum(computing.get(each, 0) for each in there)
                assert load.decode_tokens == sum(each.tokens for each in there if each.phase is Phase.DECODE)
                assert load.last_pick == last_pick.get((phase, rank), 0)
                touched = claim is not None and is_on(claim, phase, rank)
                assert (load.changes > before[phase, rank]) is touched
        assert instance.running_legs() == len(running)
        assert instance.running_tokens() == sum(each.tokens for each in running)
        assert instance.running_prefill_tokens() == sum(computing.values())
        assert instance.running_weight_tokens() == sum(each.weight_tokens for each in running)
