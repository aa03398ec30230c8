"""Which KV blocks the steps have written since they were last saved."""

from __future__ import annotations

from typing import Any


class WrittenBlocks:
    """Follows the scheduler's output; no step's writes escape it.

    A step writes the blocks of a request from its first token not yet computed to the end of its
    block table, which covers draft and lookahead tokens too.
    """

    def __init__(self, block_tokens: list[int], draft_tokens: int) -> None:
        """``block_tokens`` per KV cache group; ``draft_tokens`` may be computed and rejected."""
        self._block_tokens = block_tokens
        self._draft_tokens = draft_tokens
        self._tables: dict[str, list[list[int]]] = {}
        self._written: set[int] = set()

    @property
    def live_requests(self) -> int:
        """Requests that the scheduler has not called finished."""
        return len(self._tables)

    def step(self, scheduled: Any) -> None:
        """Note a scheduler output, before or after it runs."""
        for request_id in scheduled.finished_req_ids:
            self._tables.pop(request_id, None)
        for new in scheduled.scheduled_new_reqs:
            self._tables[new.req_id] = [list(group) for group in new.block_ids]
            self._write(new.req_id, new.num_computed_tokens)
        cached = scheduled.scheduled_cached_reqs
        for index, request_id in enumerate(cached.req_ids):
            blocks = cached.new_block_ids[index]
            table = self._tables.setdefault(request_id, [[] for _ in self._block_tokens])
            if request_id in cached.resumed_req_ids:
                table = self._tables[request_id] = [[] for _ in self._block_tokens]
            for group, ids in zip(table, blocks or (), strict=False):
                group.extend(ids)
            self._write(request_id, cached.num_computed_tokens[index])
        self._written.update(getattr(scheduled, "new_block_ids_to_zero", None) or ())
        for copy in getattr(scheduled, "kv_cache_block_copies", None) or ():
            self._written.add(copy.dst_block_id)

    def take(self) -> list[int]:
        """The blocks written since the last call, in order."""
        blocks = sorted(self._written)
        self._written.clear()
        return blocks

    def _write(self, request_id: str, computed_tokens: int) -> None:
        first = max(0, computed_tokens - self._draft_tokens)
        for group, tokens in zip(self._tables[request_id], self._block_tokens, strict=False):
            self._written.update(group[first // tokens :])
