"""What must hold after a run, told from what clients saw, what was done to engines, and what kvproxy says of
itself.

Pure: every check takes values and returns findings; no finding means that it held.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.proofs.chaos.clients import DEADLINE_S, End, Record, Says
from tests.proofs.chaos.journal import Fault, Journal
from tests.proofs.chaos.watching import LOOK_EVERY_S
from tests.proofs.chaos.workload import MESSAGES, RESPONSES
from tests.proofs.setting import Vitals

ENGINES_WORDS = "a fault"
"""What an engine says where its stream fails (`proxy.simulation.api.errors.FaultError`): a client is to hear
it."""
_UNREAD = "4 validation errors for ChatCompletionStreamResponse: "
"""What it says before that where it streams a message, as vLLM 0.32 does."""

MEMORY_TOLERANCE_MIB = 16.0
MEMORY_TOLERANCE_SHARE = 0.25
"""Allocators do not give everything back. What kvproxy remembers of prompts on purpose comes on top."""

_ACCESS = re.compile(r" POST (/v1/\S+|/invocations) (\d+) ([\d.]+)ms id=(\S+) (.*)$")
_OUTCOMES = {"ok": "right", "cut": "cut", "client_left": "left", "failed": "failed"}
"""What kvproxy's outcomes are for the client; all others are refusals of some kind."""


@dataclass(frozen=True)
class Finding:
    """Something that must not be; `record` is the request it happened to, if it was one."""

    check: str
    words: str
    record: Record | None = None


@dataclass
class Verdict:
    """The checks that were made, in order, and what they found."""

    checks: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def add(self, check: str, findings: Iterable[Finding | str]) -> None:
        self.checks.append(check)
        self.findings += [f if isinstance(f, Finding) else Finding(check, f) for f in findings]

    def of(self, check: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.check == check]


ONE_END = "every request ended in exactly one way"
RIGHT = "every complete answer is byte-correct"
NO_CLEAN_CUT = "no cut answer ended cleanly, no complete one was truncated"
SERVED = "every request that could be served was"
STRANDED = "holds stranded <= those whose engine died"
COUNTED = "kvproxy counted what the clients saw"
QUIET = "afterwards: no claims, no holds, nothing running"
BACK = "afterwards: sockets, tasks and memory as at the start"
INDEX = "afterwards: the index of every engine is exact"
TAKEN_BACK = "every engine was used again once it was healed"


def outcome(record: Record) -> str:
    """The one way in which a request ended, in the client's words."""
    if record.end is End.LEFT:
        return "left"
    if record.end in {End.NO_ANSWER, End.DEADLINE}:
        return "unanswered"
    if record.status != 200:
        return "refused"
    if record.end is End.CUT or record.error_event:
        return "cut"
    return "right" if record.says is Says.RIGHT else "wrong"


def judge(record: Record, journal: Journal) -> Finding | None:
    """What is wrong with how one request ended, if anything is."""

    def finding(check: str, words: str) -> Finding:
        return Finding(check, words, record)

    stream = record.plan.stream
    if record.malformed:
        return finding(ONE_END, f"malformed: {record.malformed}")
    if record.status == 200 and record.says is Says.WRONG:
        return finding(RIGHT, "the text is another one")
    if record.end is End.LEFT:
        return None
    if record.end is End.DEADLINE:
        return finding(SERVED, f"no end within {DEADLINE_S:g} s")
    if record.end is End.NO_ANSWER:
        return finding(SERVED, f"no answer: {record.error}")
    if record.status != 200:
        return finding(SERVED, f"status {record.status}: {record.error}")
    if record.end is End.CLEAN:
        if record.error_event:
            return finding(NO_CLEAN_CUT, f"a clean end after an error event: {record.error}")
        if stream and not record.done:
            return finding(NO_CLEAN_CUT, "a clean end without the event that ends it")
        if record.says is not Says.RIGHT and not _called_complete(record, journal):
            return finding(NO_CLEAN_CUT, "a clean end of a part of the text")
        return None
    if record.done:
        return finding(NO_CLEAN_CUT, f"cut after the event that ends it: {record.error}")
    if not stream:
        return finding(NO_CLEAN_CUT, f"an unstreamed answer was cut: {record.error}")
    if not record.error_event:
        return finding(NO_CLEAN_CUT, f"cut without an error event: {record.error}")
    if not any(record.texts):
        return finding(
            SERVED, f"cut before anything had come, so it could have been tried again: {record.error}"
        )
    by = journal.cutting(record.decode, record.begun, record.ended)
    if not by:
        return finding(SERVED, f"cut, though nothing was done to {record.decode}: {record.error}")
    if by == {Fault.LATE_ERROR} and not _hears_engine(record):
        return finding(ONE_END, f"the engine's error did not reach the client: {record.error}")
    return None


def _called_complete(record: Record, journal: Journal) -> bool:
    """Whether its engine called an answer complete that it had aborted, as vLLM 0.32 does with responses."""
    asleep = Fault.SLEEP in journal.cutting(record.decode, record.begun, record.ended)
    return record.plan.path == RESPONSES and asleep


def _hears_engine(record: Record) -> bool:
    """Whether a client that was told of an error was told of its engine's. An engine has no words for one in
    the stream of a response: it cuts it off.
    """
    if record.plan.path == RESPONSES:
        return True
    return record.error == (_UNREAD if record.plan.path == MESSAGES else "") + ENGINES_WORDS


@dataclass(frozen=True)
class Logged:
    """A line of kvproxy's access log."""

    status: int
    outcome: str

    @property
    def seen_as(self) -> str:
        """What the client saw: a limit that passes cuts a stream that has begun, and refuses one that has
        not."""
        if self.outcome == "timeout" and self.status == 200:
            return "cut"
        return _OUTCOMES.get(self.outcome, "refused")


def access_log(lines: Iterable[str]) -> dict[str, list[Logged]]:
    """What kvproxy logged of generating requests, by request id."""
    found: dict[str, list[Logged]] = defaultdict(list)
    for line in lines:
        if match := _ACCESS.search(line):
            notes = dict(note.partition("=")[::2] for note in match[5].split())
            found[match[4]].append(Logged(int(match[2]), notes.get("outcome", "")))
    return found


def check_counts(
    records: Sequence[Record], logged: Mapping[str, Sequence[Logged]], counted: Mapping[str, float]
) -> list[Finding]:
    """`counted` is kvproxy_requests_total by outcome."""
    findings = []
    known = {record.plan.id for record in records}
    if len(known) != len(records):
        findings.append(Finding(COUNTED, f"{len(records) - len(known)} requests have the id of another"))
    for record in records:
        lines = logged.get(record.plan.id, ())
        saw = outcome(record)
        gone = record.end in {End.LEFT, End.DEADLINE, End.NO_ANSWER}
        if len(lines) > 1 or (not lines and not gone):
            findings.append(Finding(COUNTED, f"kvproxy ended it {len(lines)} times", record))
        elif lines and not gone and lines[0].seen_as != saw.replace("wrong", "right"):
            words = f"the client saw {saw}, kvproxy counted {lines[0].outcome}"
            findings.append(Finding(COUNTED, words, record))
    strangers = [request_id for request_id in logged if request_id not in known]
    if strangers:
        findings.append(Finding(COUNTED, f"kvproxy served what nobody asked: {strangers[:3]}"))
    by_log = Counter(line.outcome for lines in logged.values() for line in lines)
    by_metric = {name: int(count) for name, count in counted.items() if count}
    if dict(by_log) != by_metric:
        findings.append(Finding(COUNTED, f"kvproxy_requests_total {by_metric}, its log {dict(by_log)}"))
    return findings + [
        Finding(COUNTED, f"kvproxy_requests_total has {by_metric[name]} of {name}")
        for name in ("failed", "client_error")
        if by_metric.get(name)
    ]


def check_stranded(
    total: int, growth: Sequence[tuple[float, int]], journal: Journal, lease_s: float, origin: float
) -> list[str]:
    """Whether each stranded hold can have been lost with its engine.

    `growth` is when kvproxy's count was seen to have grown, and to what; `origin` the beginning of the times
    shown.
    """
    found = []
    if total > journal.may_strand():
        found.append(f"{total} stranded in all, at most {journal.may_strand()} lost with their engines")
    before = 0
    for at, count in growth:
        lost = [e for e in journal.during(None, at - lease_s - LOOK_EVERY_S, at) if e.may_strand]
        if count - before > sum(entry.may_strand for entry in lost):
            told = "; ".join(entry.line(origin) for entry in lost) or "no engine was lost before"
            found.append(f"{count - before} stranded until {at - origin:.1f} s: {told}")
        before = count
    return found


def check_back(before: Vitals, after: Vitals, remembered_mib: float = 0.0) -> list[str]:
    """What kvproxy holds that it did not hold before the first fault; `remembered_mib` of prompts is fine."""
    found = []
    if after.sockets > before.sockets:
        found.append(f"{after.sockets} sockets, {before.sockets} before")
    if after.tasks > before.tasks:
        found.append(f"{after.tasks} tasks, {before.tasks} before")
    limit_mib = before.memory_mib * (1 + MEMORY_TOLERANCE_SHARE) + MEMORY_TOLERANCE_MIB + remembered_mib
    if after.memory_mib > limit_mib:
        found.append(
            f"{after.memory_mib:.0f} MiB, {before.memory_mib:.0f} before, {remembered_mib:.0f} of known "
            "prompts"
        )
    return found
