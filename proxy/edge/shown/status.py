"""The answer of `GET /status`: the fleet as kvproxy sees it."""

import math
from collections.abc import Sequence
from typing import Annotated

from msgspec import UNSET, Meta, UnsetType

from kvevents import PrefixIndex, State
from proxy.admission.shown import BodiesShown, QueueShown
from proxy.caches.shown import AccuracyShown
from proxy.config import Config
from proxy.fleet import Fleet, Instance, Status
from proxy.fleet.circuit import Circuit
from proxy.fleet.instance import InstanceState
from proxy.latency.shown import LatencyShown
from proxy.phases import Phase, Role
from proxy.serving.healing import HealingShown
from proxy.shown import Address, Count, Seconds, Share, Shown, says
from proxy.snapshots.shown import SnapshotShown, StateDirShown
from proxy.tokenizing.shown import TokenizerShown


class RankShown(Shown, frozen=True, kw_only=True):
    """A data-parallel rank of an instance, and what is known of its cache."""

    rank: Count
    index: Annotated[State, says("How well its cache is known.")]
    why: Annotated[str | None, says("Why none of its KV events are heard.")]
    block_size: Annotated[int | None, says("In tokens; null while its events have told of none.")]
    lookahead_tokens: Annotated[
        Count,
        says(
            "Tokens behind each block that must be the same for it to be found again: not 0 for engines "
            "with EAGLE or MTP draft models and no connector."
        ),
    ]
    blocks: Annotated[Count, says("Blocks in the index, all tiers together.")]
    accuracy: AccuracyShown
    snapshot: Annotated[
        SnapshotShown | None,
        says(
            "What of it outlives kvproxy; null without --state-dir, with --kv-events off and for a rank "
            "that is not followed."
        ),
    ]
    upper_bound: Annotated[
        bool,
        says(
            "What is predicted is the most that can be cached: the engine has cache groups that are not "
            "counted."
        ),
    ]
    uncounted_groups: list[str]
    healing: Annotated[
        HealingShown | None,
        says("What was done to learn of blocks cached before kvproxy listened; null if nothing was."),
    ]


class InFlightShown(Shown, frozen=True, kw_only=True):
    """Running legs by phase; a phase that is not the instance's is absent."""

    prefill: Count | UnsetType = UNSET
    decode: Count | UnsetType = UNSET


class InstanceShown(Shown, frozen=True, kw_only=True):
    """One engine."""

    instance: Address
    role: Role
    up: Annotated[bool, says("It gets legs: its last check was answered, and nobody drains it.")]
    state: InstanceState
    why: Annotated[str | None, says("What went wrong with it last, in words; null while all is well.")]
    circuit: Annotated[Circuit, says("Whether legs may go there, by what checks and legs have shown.")]
    full_for_s: Annotated[
        Seconds,
        says("For how many seconds it is left alone because it said that it is full; 0 for not at all."),
    ]
    most_legs: Annotated[
        Count | None,
        says(
            "How many legs it had room for when it said so, as far as that still counts; null for any number."
        ),
    ]
    share: Annotated[
        Share,
        says(
            "How much of its full share of legs it gets: less than 1 while it starts slowly, 0 unless it is "
            "up and its circuit closed."
        ),
    ]
    model: Annotated[str | None, says("The base model it lists; null while it has listed none.")]
    max_model_len: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        says("The tokens a prompt and its answer may have together there; null while it has told of none."),
    ]
    adapters: Annotated[list[str], says("The names it lists that are LoRA adapters.")]
    version: Annotated[str | None, says("Its vLLM release, as it told when it came up; null if it did not.")]
    block_size: Annotated[int | None, says("That of its first rank, in tokens.")]
    ranks: list[RankShown]
    index: Annotated[State, says("How well its cache is known: that of the rank that is known worst.")]
    blocks: Annotated[Count, says("Blocks in the index, all ranks and tiers together.")]
    in_flight: InFlightShown
    weight_tokens: Annotated[
        Count,
        says(
            "What its running legs take of --max-prefill-tokens or --max-decode-tokens, all ranks together."
        ),
    ]


class StatusShown(Shown, frozen=True, kw_only=True):
    """The fleet as kvproxy sees it."""

    model: Annotated[str, says("--model.")]
    policy: Annotated[str, says("--policy, or the class of one that was given from Python.")]
    bypass_tokens: Annotated[
        Count | None,
        says(
            "--bypass: requests with at most so many tokens left to compute on a decode instance skip the "
            "prefill instances; 0 for off, null for auto."
        ),
    ]
    connector: Annotated[str, says("--connector, or the name of one that was given from Python.")]
    ready: Annotated[bool, says("A request could be served now.")]
    not_ready_because: Annotated[str | None, says("What is missing, in the words of the log and of /ready.")]
    prefill_node_count: Count
    decode_node_count: Count
    prefill_nodes: Annotated[list[Address], says("The instances that serve prefill legs.")]
    decode_nodes: Annotated[list[Address], says("The instances that serve decode legs.")]
    tokenizer: TokenizerShown
    queue: QueueShown
    bodies: BodiesShown
    state_dir: Annotated[
        StateDirShown | None,
        says(
            "What of the engines' caches is written to --state-dir; null without it and with --kv-events off."
        ),
    ]
    latency: Annotated[
        LatencyShown | None,
        says("How long engines take, as far as it was learned; null unless the policy reads it."),
    ]
    instances: list[InstanceShown]


_WORST_FIRST = (State.UNKNOWN, State.PARTIAL, State.EXACT)


def rank_shown(
    instance: Instance,
    rank: int,
    index: PrefixIndex,
    *,
    blocks: int,
    accuracy: AccuracyShown,
    snapshot: SnapshotShown | None,
    healing: HealingShown | None,
) -> RankShown:
    """A rank of `instance`; `blocks`: how many of its blocks the index has."""
    address = instance.address
    return RankShown(
        rank=rank,
        index=State(instance.index_state(rank)),
        why=instance.why_unheard(rank),
        block_size=index.block_size(address, rank),
        lookahead_tokens=index.lookahead(address, rank),
        blocks=blocks,
        accuracy=accuracy,
        snapshot=snapshot,
        upper_bound=index.upper_bound(address, rank),
        uncounted_groups=sorted(index.uncounted(address, rank)),
        healing=healing,
    )


def instance_shown(instance: Instance, ranks: Sequence[RankShown], now: float) -> InstanceShown:
    """`instance` with all its `ranks`, in their order. `now`: seconds of the clock of its circuit."""
    base = [card.id for card in instance.model_cards if not card.parent]
    breaker, up = instance.breaker, instance.why_unusable() is None
    length = instance.max_model_len
    return InstanceShown(
        instance=instance.address,
        role=instance.role,
        up=up,
        state=instance.state,
        why=instance.why_down
        or ("its last check was not answered" if breaker.doubtful else None)
        or ("it was sent to sleep" if instance.status is Status.ASLEEP else instance.unlisted),
        circuit=breaker.state,
        full_for_s=round(instance.fullness.left_s(now), 2),
        most_legs=instance.fullness.most(now),
        share=round(breaker.share(now), 2) if up and breaker.state is Circuit.CLOSED else 0.0,
        model=base[0] if base else None,
        max_model_len=int(length) if length < math.inf else None,
        adapters=sorted(instance.adapters),
        version=instance.version,
        block_size=ranks[0].block_size,
        ranks=list(ranks),
        index=min((rank.index for rank in ranks), key=_WORST_FIRST.index),
        blocks=sum(rank.blocks for rank in ranks),
        in_flight=InFlightShown(
            **{
                phase.value: instance.running_legs(phase)
                for phase in Phase
                if instance.role in {Role.BOTH, phase.value}
            }
        ),
        weight_tokens=instance.running_weight_tokens(),
    )


def status_shown(
    config: Config,
    fleet: Fleet,
    *,
    bypass_tokens: int | None,
    not_ready_because: str | None,
    tokenizer: TokenizerShown,
    queue: QueueShown,
    bodies: BodiesShown,
    state_dir: StateDirShown | None,
    latency: LatencyShown | None,
    instances: Sequence[InstanceShown],
) -> StatusShown:
    """The whole answer; `instances`: all of `fleet`."""
    prefill = [instance.address for instance in fleet.of(Phase.PREFILL)]
    decode = [instance.address for instance in fleet.of(Phase.DECODE)]
    return StatusShown(
        model=config.model,
        policy=config.policy,
        bypass_tokens=bypass_tokens,
        connector=config.connector,
        ready=not_ready_because is None,
        not_ready_because=not_ready_because,
        prefill_node_count=len(prefill),
        decode_node_count=len(decode),
        prefill_nodes=prefill,
        decode_nodes=decode,
        tokenizer=tokenizer,
        queue=queue,
        bodies=bodies,
        state_dir=state_dir,
        latency=latency,
        instances=list(instances),
    )
