"""Invariant: a block's hash and the event that announces it are made of the same tokens, adapter, salt and
images.

With a draft model that looks ahead a block's hash covers the tokens behind it, too: it is cached once these
exist, and found again only before the same.
"""

from kvevents import BlockRemoved, BlockStored, Event
from proxy.simulation.engine.block_hashes import ExtraKey, block_hash, extra_keys, root_hash
from proxy.simulation.engine.block_pool import Name
from proxy.simulation.engine.request import Request

MEDIUM = "GPU"
_GROUP = 0
_KIND = "full_attention"


class TokenContents:
    """Names blocks by 32-byte hashes of their tokens, and tells all that vLLM tells of them."""

    def __init__(self, block_size: int, hash_seed: str = "", lookahead: int = 0) -> None:
        """`lookahead`: the tokens behind a block that its hash covers."""
        self._block_size = block_size
        self._lookahead = lookahead
        self._root = root_hash(hash_seed)

    def name_blocks(self, work: Request) -> None:
        """As `Contents`."""
        size, hashes = self._block_size, work.hashes
        for index in range(len(hashes), max(0, len(work.tokens) - self._lookahead) // size):
            tokens = work.tokens[index * size : (index + 1) * size + self._lookahead]
            extra = self._extra_keys(work, index)
            hashes.append(block_hash(hashes[-1] if hashes else self._root, tokens, extra))

    def stored(self, work: Request, first: int, last: int, events: list[Event]) -> None:
        """As `Contents`."""
        size = self._block_size
        events.append(
            BlockStored(
                block_hashes=list(work.hashes[first:last]),
                parent_block_hash=work.hashes[first - 1] if first else None,
                token_ids=work.tokens[first * size : last * size],
                block_size=size,
                lora_id=work.lora_id,
                medium=MEDIUM,
                lora_name=work.lora,
                extra_keys=[self._extra_keys(work, i) for i in range(first, last)],
                group_idx=_GROUP,
                kv_cache_spec_kind=_KIND,
                session_id=work.session_id,
                lookahead_token_ids=[
                    work.tokens[end : end + self._lookahead]
                    for end in range((first + 1) * size, (last + 1) * size, size)
                ]
                if self._lookahead
                else None,
            )
        )

    def removed(self, names: list[Name], events: list[Event]) -> None:
        """As `Contents`, with an event for each copy."""
        events += [BlockRemoved(block_hashes=[name], medium=MEDIUM, group_idx=_GROUP) for name in names]

    def _extra_keys(self, work: Request, block: int) -> list[ExtraKey] | None:
        images = [(image.identifier, image.start, image.start + image.tokens) for image in work.images]
        return extra_keys(block, work.lora, work.cache_salt, images, self._block_size)
