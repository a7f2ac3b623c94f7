"""What was heard of an engine's KV events, and what became of the probe, become findings. Pure."""

from kvevents import Reason
from proxy.doctor.accuracy_step import accuracy
from proxy.doctor.engine_steps import EVENTS_CONFIG, refused_words
from proxy.doctor.facts import EngineFacts, RankFacts, Trouble
from proxy.doctor.runs import Found
from proxy.findings import Finding, failed, passed, skipped, warned
from proxy.phases import Role

CLOCK_OFF_S = 5.0
"""Seconds between two clocks beyond which logs are hard to read side by side."""

_WIRE = frozenset(
    {
        Reason.UNREADABLE,
        Reason.BROKEN_EVENT,
        Reason.BROKEN_REMOVAL,
        Reason.MISALIGNED,
        Reason.TOKENS,
        Reason.EXTRA_KEYS,
    }
)
_UNUSED = frozenset({Reason.BLOCK_SIZE, Reason.UNKNOWN_TYPE})
_TIME_UP = "time was up before that was known"


def of_rank(facts: EngineFacts, rank: RankFacts, *, several: bool) -> list[Finding]:
    """All findings of one rank."""
    number = rank.rank if several else None
    found = rank.found
    findings = []
    if rank.source is not None:
        findings = [_connected(facts, rank), _replay(facts, rank), _wire_format(facts, rank, found)]
    findings += [_probe_event(facts, rank, found), _cached_tokens(facts, rank), _clock(facts, rank, found)]
    if rank.accuracy is not None and facts.spec.role is not Role.DECODE:
        findings.append(accuracy(rank.accuracy))
    return [Finding(f.step, f.status, f.words, f.remedy, number) for f in findings]


def _unheard(rank: RankFacts) -> str | None:
    """Why the rank's events were not listened to; None if they were."""
    if rank.source is None:
        return "no KV events are known of it"
    if rank.followed_as is not None:
        return "its publisher connects to kvproxy, which alone can hear it"
    if rank.port_taken:
        return "its events go to another process here"
    if rank.connected is None:
        return _TIME_UP
    return None if rank.connected else "nothing is heard from it"


def _connected(facts: EngineFacts, rank: RankFacts) -> Finding:
    step, source = "events_connected", rank.source
    if source is None:
        return skipped(step, "no KV events are known of it")
    if rank.followed_as is not None:
        words = f"it connects to {source.endpoint}; kvproxy's index of it is {rank.followed_as}"
        if rank.followed_as == "unknown":
            return failed(
                step, words, f"look at the engine's --kv-events-config: it must connect to {source.endpoint}"
            )
        return passed(step, words)
    if rank.port_taken:
        return warned(
            step,
            f"it connects to {source.endpoint}, where another process listens, most likely kvproxy itself",
            "ask the running kvproxy instead: GET /doctor; or stop it first",
        )
    if rank.connected is None:
        return skipped(step, _TIME_UP)
    if rank.connected:
        return passed(step, source.endpoint)
    if source.bind:
        return failed(
            step,
            f"no engine has connected to {source.endpoint}",
            f'correct the "endpoint" in its --kv-events-config, or let it bind: {EVENTS_CONFIG}',
        )
    return failed(
        step,
        f"nothing publishes at {source.endpoint}",
        _correction(facts, rank)
        or "open that port between kvproxy and the engine (firewall, container ports); name another "
        f"address with '{facts.address}?events=tcp://HOST:PORT'",
    )


def _correction(facts: EngineFacts, rank: RankFacts) -> str | None:
    """The remedy if the engine names other addresses than were given."""
    answer, given = facts.source_answer, rank.source
    sources = answer.value if answer is not None and answer.ok else []
    its_own = next((source for source in sources if source.rank == rank.rank), None)
    if its_own is None or given is None:
        return None
    if its_own.endpoint != given.endpoint:
        return (
            f"correct ?events=: the engine itself says it publishes at {its_own.endpoint}, and without "
            "?events= it is asked"
        )
    if its_own.replay_endpoint != given.replay_endpoint and given.replay_endpoint is not None:
        return (
            f"correct &replay=: the engine itself says it replays at {its_own.replay_endpoint}, and without "
            "?events= it is asked"
        )
    return None


def _replay(facts: EngineFacts, rank: RankFacts) -> Finding:
    step, source = "replay", rank.source
    if (why := _unheard(rank)) is not None or source is None:
        return skipped(step, why or "")
    if source.replay_endpoint is None:
        named = bool(facts.spec.event_sources)
        return warned(
            step,
            "off: after a lost message or a restart of kvproxy it is not known what the engine has cached",
            (f"name it: &replay=tcp://{facts.spec.host}:PORT; if the engine has none, " if named else "")
            + 'start the engine with "replay_endpoint": "tcp://*:5657" in its --kv-events-config',
        )
    if rank.contradicted:
        return failed(
            step,
            f"what {source.replay_endpoint} replays is not what is published at {source.endpoint}",
            _correction(facts, rank)
            or "see that both are this engine's and not another's; if it was just restarted, ask again",
        )
    if rank.replayed_batches is None and not rank.replays_unanswered:
        return skipped(step, _TIME_UP)
    if rank.replayed_batches is None:
        return failed(
            step,
            f"{source.replay_endpoint} does not answer",
            "open that port between kvproxy and the engine, or correct &replay=: it is the"
            ' "replay_endpoint" of the engine\'s --kv-events-config',
        )
    batches = f"{rank.replayed_batches} batch{'' if rank.replayed_batches == 1 else 'es'}"
    if rank.state == "partial":
        return passed(
            step,
            (
                f"{batches}; the buffer begins later than the engine: blocks cached before are learned when "
                "stored again"
            ),
        )
    return passed(step, f"{batches}, from the engine's beginning on")


def _wire_format(facts: EngineFacts, rank: RankFacts, found: Found | None) -> Finding:
    step = "wire_format"
    if (why := _unheard(rank)) is not None:
        return skipped(step, why)
    broken = {reason: count for reason, count in rank.dropped.items() if reason in _WIRE}
    unknown = rank.dropped.get(Reason.UNKNOWN_TYPE, 0)
    known = facts.version.value if facts.version is not None and facts.version.ok else "of an unknown version"
    if broken or (unknown and found is None and rank.sends):
        reasons = ", ".join(
            f"{count} {reason.replace('_', ' ')}" for reason, count in (broken or rank.dropped).items()
        )
        return failed(
            step,
            f"its events are not understood ({reasons})",
            f"update kvproxy: this one does not know all that vLLM {known} publishes; until then start it "
            "with --kv-events off",
        )
    if sizes := rank.dropped.get(Reason.BLOCK_SIZE):
        return failed(
            step,
            f"{sizes} blocks have another size than the others of the same engine",
            "give all engines behind that address the same --block-size",
        )
    if not rank.messages and found is None:
        return skipped(step, "no events have come")
    extra = f"; {unknown} events of kinds that are not needed" if unknown else ""
    return passed(step, f"{rank.messages} batches understood{extra}")


def _probe_event(facts: EngineFacts, rank: RankFacts, found: Found | None) -> Finding:
    step = "probe_event"
    if not rank.sends:
        if rank.untokenized is None:
            return skipped(step, "no probe was sent")
        return failed(step, rank.untokenized, "see the engine's log; its /tokenize must take what it serves")
    first = rank.sends[0]
    if not first.answer.ok:
        return _unanswered(step, first.answer.trouble, refused_words(first.answer), first.answer.status)
    if first.counted is not None and first.counted != len(rank.token_ids):
        at = found.differs_at if found is not None else None
        where = (
            f" (token {at}: {rank.token_ids[at]} expected, {found.token(at)} seen)"
            if found and at is not None and at < len(rank.token_ids)
            else ""
        )
        return _other_tokens(
            step,
            rank,
            f"{len(rank.token_ids)} tokens were computed, the engine counts {first.counted}{where}",
        )
    if (why := _unheard(rank)) is not None:
        return skipped(step, f"the probe was answered; {why}")
    if facts.prefix_caching is False:
        return skipped(step, "it keeps no prefixes, so it announces none")
    if found is None:
        return _unseen(facts, rank)
    if found.differs_at is not None:
        at = found.differs_at
        ours = rank.token_ids[at] if at < len(rank.token_ids) else None
        return _other_tokens(step, rank, f"token {at}: {ours} was computed, {found.token(at)} was announced")
    blocks = len(found.tokens) // found.block_size
    return passed(
        step,
        f"{blocks} blocks of {found.block_size} announced, with exactly the tokens computed ({rank.kind})",
    )


def _unanswered(step: str, trouble: Trouble | None, words: str, status: int | None) -> Finding:
    if trouble is Trouble.SILENT:
        return failed(
            step,
            f"the probe was not answered: {words}",
            "its engine does not generate: look at its log, at vllm:num_requests_running and _waiting, and "
            "restart it if it hangs",
        )
    if status == 401:
        remedy = "put the key it was started with into a file and give that as --engine-api-key-file"
        return failed(step, "the probe was refused with 401: it wants an API key, or another one", remedy)
    return failed(step, f"the probe was not served: {words}", "look at its log")


def _other_tokens(step: str, rank: RankFacts, words: str) -> Finding:
    by = "--tokenizer" if rank.tokens_by == "local" else "its own /tokenize"
    return failed(
        step,
        f"it computes another prompt than {by} tells: {words}",
        "its chat template is used otherwise for answers than for /tokenize: start it with an explicit "
        "--chat-template and without --default-chat-template-kwargs; compare --tokenizer with its files",
    )


def _unseen(facts: EngineFacts, rank: RankFacts) -> Finding:
    step = "probe_event"
    source = rank.source
    if rank.heard_elsewhere and source is not None:
        return failed(
            step,
            f"its events are not of the topic {source.topic!r}: without it the probe's event is heard",
            'correct or leave out &topic=: it is the "topic" of the engine\'s --kv-events-config',
        )
    if any(rank.dropped.get(reason) for reason in (*_WIRE, *_UNUSED)):
        return failed(step, "the probe's event was not understood", "see wire_format")
    size = facts.block_size
    if size is not None and len(rank.token_ids) < size:
        return skipped(step, f"no block of {size} tokens can be filled")
    where = source.endpoint if source is not None else "its address"
    return failed(
        step,
        "the probe was answered, and its blocks were not announced",
        (f"{correction}; else " if (correction := _correction(facts, rank)) else "")
        + f"see that {where} is this engine's and not another's, and that the engine has"
        f' "enable_kv_cache_events": true: {EVENTS_CONFIG}',
    )


def _cached_tokens(facts: EngineFacts, rank: RankFacts) -> Finding:
    step = "cached_tokens"
    if len(rank.sends) < 2:
        return skipped(step, "the probe was not answered twice")
    last = rank.sends[-1]
    if not last.answer.ok:
        return _unanswered(step, last.answer.trouble, refused_words(last.answer), last.answer.status)
    if facts.prefix_caching is False:
        return skipped(step, "it keeps no prefixes")
    size, length = facts.block_size, len(rank.token_ids)
    if last.reported is None:
        return warned(
            step,
            "it does not tell how many tokens of a prompt were cached, so predictions cannot be checked",
            "start it with --enable-prompt-tokens-details",
        )
    if (why := _unheard(rank)) is not None:
        return skipped(step, f"{last.reported} reported; {why}")
    predicted = last.predicted or 0
    if predicted == last.reported:
        if not predicted and size is not None and (length - 1) // size:
            return failed(
                step,
                "a prompt that is sent twice is not found in its cache",
                (
                    "start it without --no-enable-prefix-caching; if it is on, its cache is too small for "
                    "its load"
                ),
            )
        return passed(step, f"predicted {predicted} of {length} = reported")
    words = f"predicted {predicted} of {length} tokens, reported {last.reported}"
    if predicted < last.reported and rank.state != "exact":
        return warned(
            step,
            f"{words}: what it cached before kvproxy listened is not known",
            'give the engine a "replay_endpoint", and a larger "buffer_steps", in its --kv-events-config',
        )
    if predicted < last.reported:
        if rank.found is None:
            return skipped(step, f"{words}; see probe_event")
        return failed(
            step,
            f"{words}: its events do not tell of all it has cached",
            "see probe_event and wire_format; an engine of a hybrid model, or with other cache tiers, may "
            "do that: tell us the version and the model",
        )
    return failed(
        step,
        f"{words}: it does not reuse what it announced",
        "another engine may publish at its event address; else its cache is too small for its load",
    )


def _clock(facts: EngineFacts, rank: RankFacts, found: Found | None) -> Finding:
    step = "clock"
    if found is None or not rank.sends:
        return skipped(step, "no event of the probe has come")
    # An event is made after its prompt was sent and heard after it was made, so the clocks differ by more
    # than this.
    ahead = found.engine_ts - found.heard_ts
    behind = rank.sends[0].sent_ts - found.engine_ts
    off = max(ahead, behind)
    if off <= CLOCK_OFF_S:
        return passed(step, "agrees with the clock here")
    direction = "ahead" if ahead > behind else "behind"
    return warned(
        step,
        f"its clock is {off:.0f} s {direction} of the one here"
        if direction == "ahead"
        else f"its clock is {off:.0f} s behind the one here",
        f"synchronise the clocks of {facts.spec.host} and of this machine (NTP, chrony)",
    )
