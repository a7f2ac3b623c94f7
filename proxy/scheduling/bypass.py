"""A decode instance serves a request whole, and computes its prompt itself, only if it is as good a place for
the prompt as for the answer: it is usable, has room for both, and has not just failed the request.

Pure. `--bypass TOKENS` is a rule for every policy (`few_left`), `--bypass auto` an offer to a policy that
weighs it (`offered`).
"""

import enum
from collections.abc import Collection, Sequence

import msgspec

from proxy.fleet.why import Why
from proxy.scheduling.types import Candidate, View


class Bypass(enum.StrEnum):
    """Why a decode instance serves a request whole that could have had two legs."""

    SHORT = "short"
    """Its prompt has no more tokens than `--bypass` says."""
    CACHED = "cached"
    """No more tokens of its prompt than that are not cached there."""
    POLICY = "policy"
    """The policy found it cheaper."""
    NO_PREFILL = "no_prefill"
    """No prefill instance was usable (`--when-no-prefill decode`)."""


def offered(
    view: View, failed: Collection[str], *, estimated_tokens: int, most_prefill_tokens: int
) -> Sequence[Candidate]:
    """The decode candidates that a policy may choose for the whole request (`View.alone`).

    There are none while no prefill instance is usable: `--when-no-prefill` says what happens then. Nor is one
    that the request has `failed` on. `estimated_tokens`: the prompt's length, where it is not known;
    `most_prefill_tokens`: the limit of one engine's prefill legs, 0 for none.
    """
    if view.whole or not any(c.usable for c in view.prefill):
        return ()
    return [
        c
        for c in view.decode
        if c.usable
        and not c.serves_all
        and c.instance not in failed
        and _has_room(c, estimated_tokens, most_prefill_tokens)
    ]


def few_left(view: View, failed: Collection[str], *, tokens: int, most_prefill_tokens: int) -> View | None:
    """What is left of a view for a request that goes whole to a decode instance, because no more than
    `tokens` of its prompt are left to compute there; None if there is no such instance.

    Those that the request has `failed` on are used only if it can have no two legs either.
    """
    length = view.prompt_tokens
    if view.whole or length is None:
        return None
    fit = [
        c
        for c in view.decode
        if c.usable
        and c.uncached_tokens is not None
        and c.uncached_tokens <= tokens
        and _has_room(c, length, most_prefill_tokens)
    ]
    if failed:
        fresh = [c for c in fit if c.instance not in failed]
        if not fresh and any(c.usable for c in view.prefill):
            return None
        fit = fresh or fit
    if not fit:
        return None
    decode: Sequence[Candidate] = fit
    if view.complete:
        there = {(c.instance, c.rank) for c in fit}
        decode = [c if (c.instance, c.rank) in there else _left_out(c, tokens, failed) for c in view.decode]
    return View(
        view.model,
        length,
        (),
        decode,
        whole=True,
        complete=view.complete,
        session=view.session,
        find_keys=view.find_keys,
        estimated_tokens=view.estimated_tokens,
        now=view.now,
        latency=view.latency,
    )


def is_bypass(prefill: Candidate | None, decode: Candidate | None) -> bool:
    """Whether these chosen candidates are one decode instance, which does not both."""
    if prefill is None or decode is None:
        return False
    return prefill.instance == decode.instance and not decode.serves_all


def _left_out(candidate: Candidate, tokens: int, failed: Collection[str]) -> Candidate:
    """One that is not given the whole request, with why."""
    if not candidate.usable:
        return candidate
    left = candidate.uncached_tokens
    if left is None or left > tokens:
        why = Why.MORE_LEFT
    else:
        why = Why.FAILED if candidate.instance in failed else Why.FULL
    return msgspec.structs.replace(candidate, usable=False, why=why)


def _has_room(candidate: Candidate, length: int, most: int) -> bool:
    """Whether computing the prompt there keeps the limit of one engine's prefill legs, which an idle one may
    exceed; its limit of decode legs is kept by every candidate that is usable.
    """
    waiting, left = candidate.prefill_tokens, candidate.uncached_tokens
    if not most or not waiting or candidate.serves_all:
        return True
    return waiting + (length if left is None else left) <= most
