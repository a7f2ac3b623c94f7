"""What is kept of added, drained and removed instances comes back beside the flags, which win; nonsense is
refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import AllowedInstances, EventSource, InstanceSpec, as_text, parse_instance
from proxy.phases import Role
from proxy.watching.membership.members import (
    FORMAT,
    Members,
    MembersError,
    Present,
    Restored,
    beside,
    decode,
    differing,
    encode,
)


def spec(text: str, role: Role = Role.DECODE) -> InstanceSpec:
    return parse_instance(text, role)


P, D, NEW = spec("p:1", Role.PREFILL), spec("d:1"), spec("https://new:1?events=tcp://new:5557&topic=a%26b")
FLAGS = [P, D]


def restart(present: list[Present], flags: list[InstanceSpec], *allowed: str) -> Restored:
    """What comes of these instances, there with FLAGS, after a restart with `flags`."""
    kept = decode(encode(differing("tiny", FLAGS, present)), "tiny")
    return beside(kept, flags, AllowedInstances(allowed).why_not if allowed else lambda _spec: None)


@pytest.mark.parametrize(
    "text",
    [
        "h:1",
        "https://h:1",
        "[::1]:8100",
        "h:1?events=tcp://h:5557",
        "h:1?events=tcp://h:5557,tcp://[::1]:5558&replay=tcp://h:5657,tcp://h:5658&topic=kv%20%26=%2B,%C3%A9",
        "h:1?events=tcp://*:5557&topic=",
        "https://h:1?events=ipc:///run/a%26b",
    ],
)
def test_an_instance_is_written_as_flags_take_it(text: str) -> None:
    assert parse_instance(as_text(spec(text)), Role.DECODE) == spec(text)


@given(
    ports=st.lists(st.integers(1, 65535), min_size=1, max_size=3, unique=True),
    replay=st.booleans(),
    topic=st.text(max_size=12).filter(lambda text: text.isprintable()),
    scheme=st.sampled_from(["http", "https"]),
)
def test_any_instance_can_be_written_so(ports: list[int], replay: bool, topic: str, scheme: str) -> None:
    sources = tuple(
        EventSource(rank, f"tcp://h:{port}", f"tcp://r:{port}" if replay else None, topic)
        for rank, port in enumerate(ports)
    )
    any_ = InstanceSpec("h:1", Role.BOTH, sources, scheme)
    assert parse_instance(as_text(any_), Role.BOTH) == any_


def test_nothing_is_kept_of_what_is_as_the_flags_say() -> None:
    assert differing("tiny", FLAGS, [Present(P, drained=False), Present(D, drained=False)]) == Members(
        FORMAT, "tiny", [], [], []
    )


def test_instances_added_and_drained_come_back() -> None:
    restored = restart(
        [Present(P, drained=True), Present(D, drained=False), Present(NEW, drained=True)], FLAGS
    )
    assert restored.added == [Present(NEW, drained=True)]
    assert restored.drained == {"p:1"}
    assert len(restored.unchanged) == 2
    assert "new:1 is there, and draining" in restored.unchanged[0]
    assert "prefill p:1 is draining" in restored.unchanged[1]
    assert restored.overruled == []


@pytest.mark.parametrize(
    ("present", "flags", "drained", "words"),
    [
        ([Present(P, drained=False)], FLAGS, set(), "d:1 is there, as --decode says, though it was removed"),
        (
            [Present(P, drained=False), Present(D, drained=False), Present(spec("n:1"), drained=True)],
            [*FLAGS, spec("n:1", Role.PREFILL)],
            {"n:1"},
            "n:1 is a prefill instance, as --prefill says, though it was added as decode",
        ),
        (
            [Present(P, drained=False), Present(D, drained=False), Present(NEW, drained=False)],
            [*FLAGS, spec("new:1")],
            set(),
            "decode new:1 is reached as --decode says, not as it was added",
        ),
    ],
)
def test_flags_win_and_it_is_said_in_one_line(
    present: list[Present], flags: list[InstanceSpec], drained: set[str], words: str
) -> None:
    restored = restart(present, flags)
    assert not restored.added
    assert restored.drained == drained
    assert [line for line in restored.overruled if words in line] == list(restored.overruled) != []


def test_an_instance_of_a_flag_goes_with_it() -> None:
    """Whether it was drained, removed, or neither."""
    assert restart([Present(P, drained=True)], [spec("other:1")]) == Restored([], frozenset(), [], [])


def test_a_flag_that_names_what_was_added_contradicts_nothing() -> None:
    present = [Present(P, drained=False), Present(D, drained=False), Present(NEW, drained=False)]
    assert restart(present, [*FLAGS, NEW]) == Restored([], frozenset(), [], [])


def test_instances_no_longer_allowed_are_left_out() -> None:
    present = [Present(P, drained=False), Present(D, drained=False), Present(NEW, drained=False)]
    restored = restart(present, FLAGS, "gpu*")
    assert not restored.added
    [line] = restored.overruled
    assert "new:1 is left out" in line
    assert "--allow-instances" in line
    assert restart(present, FLAGS, "new").added == [Present(NEW, drained=False)]


GOOD: dict[str, Any] = {"format": FORMAT, "model": "tiny"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cannot be read"),
        (b"\xff\x00", "cannot be read"),
        (b"[]", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"{}", "cannot be read"),
        ({**GOOD, "added": [{"instance": "h:1", "type": "both!"}]}, "cannot be read"),
        ({**GOOD, "added": [{"instance": 7, "type": "both"}]}, "cannot be read"),
        ({**GOOD, "drained": [3]}, "cannot be read"),
        ({**GOOD, "format": "kvproxy instances 2"}, "another version"),
        ({**GOOD, "model": "other"}, "'other', not 'tiny'"),
        ({**GOOD, "added": [{"instance": "h", "type": "both"}]}, "HOST:PORT"),
        ({**GOOD, "added": [{"instance": "h:1?events=file:///x", "type": "both"}]}, "tcp://HOST:PORT"),
        (
            {**GOOD, "added": [{"instance": "h:1", "type": "both"}, {"instance": "H:1", "type": "decode"}]},
            "names an instance twice",
        ),
    ],
)
def test_what_kvproxy_did_not_write_is_refused(data: Any, words: str) -> None:
    with pytest.raises(MembersError, match=r".") as raised:
        decode(data if isinstance(data, bytes) else json.dumps(data).encode(), "tiny")
    assert words in str(raised.value)
