"""Which KV blocks a step reads and writes, and whose contents it makes worthless."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any


@dataclass
class BlockUse:
    """What one step does with blocks."""

    fresh: set[int] = field(default_factory=set)
    """Given up, or given to a request anew: nothing of what is in them will be read."""
    written: set[int] = field(default_factory=set)
    """All that the step may write to."""
    tables: list[list[int]] = field(default_factory=list)
    """What it may read, as it is now."""

    def all_blocks(self) -> Iterator[int]:
        """Every block that the step may read or write, some more than once; that can be many."""
        return chain(chain.from_iterable(self.tables), self.written)


class BlockTables:
    """Follows the scheduler's output; no step's writes escape it.

    A step writes the blocks of a request from its first token not yet computed to the end of its
    block table, which covers draft and lookahead tokens too. It reads the whole table.
    """

    def __init__(
        self, block_tokens: list[int], draft_tokens: int, *, keeps_finished: bool = True
    ) -> None:
        """``block_tokens`` per KV cache group; ``draft_tokens`` of those computed may be again.

        Without ``keeps_finished`` the blocks of finished requests are fresh at once: no prefix
        cache has them. Only those that nobody was given since: the scheduler does not tell which
        blocks slid out of a window or were taken from a request that it preempted.
        """
        self._keeps_finished = keeps_finished
        self._given_to: dict[int, str] = {}  # without keeps_finished
        self._block_tokens = block_tokens
        self._draft_tokens = draft_tokens
        self._tables: dict[str, list[list[int]]] = {}

    @property
    def live_requests(self) -> int:
        """Requests that the scheduler has not called finished."""
        return len(self._tables)

    def step(self, scheduled: Any) -> BlockUse:
        """Note a scheduler output, before it runs."""
        use = BlockUse()
        for request_id in scheduled.finished_req_ids:
            self._give_up(use, request_id)
        for new in scheduled.scheduled_new_reqs:
            self._give_up(use, new.req_id)
            self._tables[new.req_id] = [[] for _ in self._block_tokens]
            self._use(use, new.req_id, new.block_ids, new.num_computed_tokens)
        cached = scheduled.scheduled_cached_reqs
        for index, request_id in enumerate(cached.req_ids):
            if request_id in cached.resumed_req_ids or request_id not in self._tables:
                self._give_up(use, request_id)
                self._tables[request_id] = [[] for _ in self._block_tokens]
            added = cached.new_block_ids[index] or ()
            self._use(use, request_id, added, cached.num_computed_tokens[index])
        zeroed = getattr(scheduled, "new_block_ids_to_zero", None) or ()
        use.fresh.update(zeroed)
        use.written.update(zeroed)
        copies = getattr(scheduled, "kv_cache_block_copies", None) or ()
        sources = [copy.src_block_id for copy in copies]
        use.tables.append(sources)
        use.written.update(copy.dst_block_id for copy in copies)
        use.fresh.update(copy.dst_block_id for copy in copies)
        use.fresh.difference_update(sources)
        return use

    def _give_up(self, use: BlockUse, request_id: str) -> None:
        """The request has none of its blocks any more, some of which may be others' by now."""
        for block in chain.from_iterable(self._tables.pop(request_id, [])):
            if self._given_to.get(block) == request_id:
                del self._given_to[block]
                use.fresh.add(block)

    def _use(self, use: BlockUse, request_id: str, added: Any, computed_tokens: int) -> None:
        first = max(0, computed_tokens - self._draft_tokens)
        for index, (table, tokens) in enumerate(
            zip(self._tables[request_id], self._block_tokens, strict=True)
        ):
            before = len(table)
            if added:
                table.extend(added[index])
                if not self._keeps_finished:
                    self._given_to.update(dict.fromkeys(added[index], request_id))
            use.tables.append(table)
            use.written.update(table[first // tokens :])
            # What was in the table before may hold what is computed once, as of an encoder.
            use.fresh.update(table[max(before, -(-computed_tokens // tokens)) :])
