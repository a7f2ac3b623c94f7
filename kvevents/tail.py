# ruff: noqa: ARG002  # an observer hears more than one engine's tail has to say
"""Every event becomes one line, in the order the index took it, and the totals are those of the index.

A tail stands where a subscriber's index and observer are, so that it sees what they see.
"""

import time
from collections.abc import Callable, Sequence

import msgspec

from kvevents.change import Change
from kvevents.engine_cache import DEFAULT_TIER
from kvevents.events import BlockRemoved, BlockStored, EngineHash, Reason
from kvevents.observer import NullObserver
from kvevents.prefix_index import PrefixIndex
from kvevents.source_events import RetireReason, State

_SHOWN_TOKENS = 8
_SHOWN_HASHES = 2
_SHORT_HASH = 8
_SHOWN_CHARS = 200

_RED, _GREEN, _YELLOW, _CYAN, _PLAIN = "\033[1;31m", "\033[32m", "\033[33m", "\033[36m", "\033[0m"

Fields = dict[str, object]


class Tail(NullObserver):
    """An index and an observer that write what they get as lines; `write` gets a line without its end."""

    def __init__(self, write: Callable[[str], None], *, as_json: bool = False, colour: bool = False) -> None:
        self._write = write
        self._as_json = as_json
        self._colour = colour
        self._index = PrefixIndex()
        self._number = 0
        self._ts_s = 0.0
        self._replayed = False
        self.ended = False
        """Set when the command ends: changes of state are not written any more."""
        self.batches = 0
        self.stored = 0
        self.removed = 0
        self.gaps = 0
        self.missing = 0
        self.restarts = 0

    @property
    def held(self) -> int:
        """The number of blocks in all tiers."""
        return sum(self._index.blocks().values())

    # ---- as an index --------------------------------------------------------------------------------------

    def store(self, instance: str, rank: int, event: BlockStored) -> Change:
        """Write a line for the run, with totals that include it."""
        change = self._index.store(instance, rank, event)
        self.stored += change.applied
        adapter = event.lora_name if event.lora_name is not None else event.lora_id
        more = "" if adapter is None else f"  lora {_shown(str(adapter))}"
        more += f"  looks ahead {event.lookahead}" if event.lookahead else ""
        more += f"  extra {_shown(_plain(event.extra_keys))}" if any(event.extra_keys or ()) else ""
        self._event(
            {
                "type": "BlockStored",
                "block_hashes": _hex(event.block_hashes),
                "parent_block_hash": None
                if event.parent_block_hash is None
                else _hex_of(event.parent_block_hash),
                "block_size": event.block_size,
                "tokens": len(event.token_ids),
                "first_token_ids": list(event.token_ids[:_SHOWN_TOKENS]),
                "medium": event.medium,
                "lora_name": event.lora_name,
                "lora_id": event.lora_id,
                "extra_keys": _encodable(event.extra_keys),
                "lookahead_tokens": event.lookahead,
            },
            f"stored   {_blocks(len(event.block_hashes))} of {event.block_size}"
            f"  {_shown(event.medium or DEFAULT_TIER)}  {_hashes(event.block_hashes)}"
            f" after {'-' if event.parent_block_hash is None else _short(event.parent_block_hash)}"
            f"  tokens {_tokens(event.token_ids)}{more}",
            _GREEN,
        )
        return change

    def remove(self, instance: str, rank: int, event: BlockRemoved) -> Change:
        """Write a line for the removal, with totals without the blocks."""
        change = self._index.remove(instance, rank, event)
        self.removed += change.applied
        self._event(
            {"type": "BlockRemoved", "block_hashes": _hex(event.block_hashes), "medium": event.medium},
            f"removed  {_blocks(len(event.block_hashes))}"
            f"  {_shown(event.medium or DEFAULT_TIER)}  {_hashes(event.block_hashes)}",
            _YELLOW,
        )
        return change

    def clear(self, instance: str, rank: int) -> int:
        """Write a line that says that all blocks are gone."""
        blocks = self._index.clear(instance, rank)
        self._event({"type": "AllBlocksCleared", "blocks": blocks}, f"cleared  {_blocks(blocks)}", _YELLOW)
        return blocks

    def retire(self, instance: str, rank: int | None = None) -> int:
        """Forget all blocks; `retired` writes the line."""
        return self._index.retire(instance, rank)

    def sweep(self) -> bool:
        """Does what the index does."""
        return self._index.sweep()

    # ---- as an observer -----------------------------------------------------------------------------------

    def batch_received(self, *, instance: str, rank: int, number: int, ts_s: float, events: int) -> None:
        self._number, self._ts_s = number, ts_s
        self.batches += 1

    def event_dropped(self, *, instance: str, rank: int, reason: Reason, count: int) -> None:
        self._mark(
            {"type": "dropped", "reason": reason, "count": count}, f"dropped {count}: {reason}", _YELLOW
        )

    def gap(self, *, instance: str, rank: int, missing: int) -> None:
        self.gaps += 1
        self.missing += missing
        self._mark(
            {"type": "gap", "missing": missing}, f"GAP: {_count(missing, 'batch', 'es')} missing", _RED
        )

    def replay(self, *, instance: str, rank: int, batches: int, complete: bool) -> None:
        is_news = batches or not complete or not self._replayed  # an idle engine is asked again and again
        self._replayed = complete
        if not is_news:
            return
        outcome = f"{_count(batches, 'new batch', 'es')}{'' if complete else ', incomplete'}"
        if not batches and not complete:
            outcome = "no answer, or none to its end"
        self._mark(
            {"type": "replay", "batches": batches, "complete": complete},
            f"replay: {outcome}",
            _CYAN if complete else _YELLOW,
        )

    def state_changed(self, *, instance: str, rank: int, state: State) -> None:
        if not self.ended:
            self._mark({"type": "state", "state": state}, f"index is {state}", _CYAN)

    def retired(self, *, instance: str, rank: int, why: RetireReason) -> None:
        if why == RetireReason.NEW_PROCESS:
            self.restarts += 1
            text = "RESTART: another process publishes here, all blocks forgotten"
        else:
            text = f"all blocks forgotten: {why}"
        self._mark({"type": "retired", "why": why}, text, _RED)

    def totals(self) -> None:
        """Write the last line, with the totals."""
        numbers = {
            "held": self.held,
            "stored": self.stored,
            "removed": self.removed,
            "batches": self.batches,
            "gaps": self.gaps,
            "missing": self.missing,
            "restarts": self.restarts,
        }
        text = (
            f"totals: {_blocks(self.held)} held, {self.stored} stored, {self.removed} removed, "
            f"{_count(self.batches, 'batch', 'es')}, {_count(self.gaps, 'gap')} ({self.missing} missing), "
            f"{_count(self.restarts, 'restart')}"
        )
        self._put({"type": "totals", **numbers}, text)

    # ---- lines --------------------------------------------------------------------------------------------

    def _event(self, fields: Fields, text: str, colour: str) -> None:
        totals = {"held": self.held, "stored": self.stored, "removed": self.removed}
        clock = time.strftime("%H:%M:%S", time.localtime(self._ts_s))
        self._put(
            {"number": self._number, "ts": self._ts_s, **fields, "totals": totals},
            f"{clock} #{self._number:<6} {self._painted(text, colour)}"
            f"  | held {self.held} stored {self.stored} removed {self.removed}",
        )

    def _mark(self, fields: Fields, text: str, colour: str) -> None:
        self._put(fields, self._painted(f"--- {text} ---", colour))

    def _painted(self, text: str, colour: str) -> str:
        return f"{colour}{text}{_PLAIN}" if self._colour else text

    def _put(self, fields: Fields, text: str) -> None:
        self._write(msgspec.json.encode(fields).decode() if self._as_json else text)


def _blocks(count: int) -> str:
    return _count(count, "block")


def _count(count: int, noun: str, plural: str = "s") -> str:
    return f"{count} {noun}{'' if count == 1 else plural}"


def _hex_of(engine_hash: EngineHash) -> str:
    return engine_hash.hex() if isinstance(engine_hash, bytes) else f"{engine_hash:016x}"


def _hex(hashes: Sequence[EngineHash]) -> list[str]:
    return [_hex_of(engine_hash) for engine_hash in hashes]


def _short(engine_hash: EngineHash) -> str:
    return _hex_of(engine_hash)[:_SHORT_HASH]


def _hashes(hashes: Sequence[EngineHash]) -> str:
    shown = " ".join(_short(engine_hash) for engine_hash in hashes[:_SHOWN_HASHES])
    return f"{shown} .." if len(hashes) > _SHOWN_HASHES else shown


def _tokens(token_ids: Sequence[int]) -> str:
    shown = " ".join(str(token) for token in token_ids[:_SHOWN_TOKENS])
    return f"{shown} .." if len(token_ids) > _SHOWN_TOKENS else shown


def _shown(text: str) -> str:
    """An engine's text without characters that could control a terminal."""
    return text if text.isascii() and text.isprintable() else ascii(text)


def _plain(value: object) -> str:
    try:
        text = str(value)
    except RecursionError:
        return "(nested too deeply)"
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}.."


def _encodable(value: object) -> object:
    try:
        msgspec.json.encode(value)
    except (TypeError, ValueError, RecursionError):
        return _plain(value)
    return value
