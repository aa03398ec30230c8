"""Which blocks a step writes, from the scheduler's output."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gpupool.vllm.written_blocks import WrittenBlocks


def _scheduled(
    new: list[tuple[str, list[int], int]] = (),  # type: ignore[assignment]
    cached: list[tuple[str, list[int] | None, int]] = (),  # type: ignore[assignment]
    resumed: set[str] = frozenset(),  # type: ignore[assignment]
    finished: set[str] = frozenset(),  # type: ignore[assignment]
    **more: Any,
) -> Any:
    return SimpleNamespace(
        finished_req_ids=finished,
        scheduled_new_reqs=[
            SimpleNamespace(req_id=r, block_ids=(blocks,), num_computed_tokens=at)
            for r, blocks, at in new
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=[r for r, _, _ in cached],
            new_block_ids=[None if blocks is None else (blocks,) for _, blocks, _ in cached],
            num_computed_tokens=[at for _, _, at in cached],
            resumed_req_ids=resumed,
        ),
        **more,
    )


def test_a_prefix_hit_is_not_written() -> None:
    written = WrittenBlocks([16], 0)
    written.step(_scheduled(new=[("a", [7, 8, 9], 32)]))
    assert written.take() == [9]


def test_a_block_is_written_until_it_is_full() -> None:
    written = WrittenBlocks([4], 0)
    written.step(_scheduled(new=[("a", [3], 0)]))
    assert written.take() == [3]
    written.step(_scheduled(cached=[("a", None, 3)]))
    assert written.take() == [3]
    written.step(_scheduled(cached=[("a", [5], 4)]))
    assert written.take() == [5]
    assert written.take() == []


def test_a_resumed_request_has_a_new_table() -> None:
    written = WrittenBlocks([4], 0)
    written.step(_scheduled(new=[("a", [1, 2], 0)]))
    written.take()
    written.step(_scheduled(cached=[("a", [8, 9], 0)], resumed={"a"}))
    assert written.take() == [8, 9]


def test_rejected_drafts_are_written_again() -> None:
    written = WrittenBlocks([4], 3)
    written.step(_scheduled(new=[("a", [1, 2], 0)]))
    written.take()
    written.step(_scheduled(cached=[("a", [3], 9)]))
    assert written.take() == [2, 3]


def test_zeroed_and_copied_blocks_count() -> None:
    written = WrittenBlocks([4], 0)
    copies = [SimpleNamespace(src_block_id=1, dst_block_id=6)]
    written.step(_scheduled(new_block_ids_to_zero=[5], kv_cache_block_copies=copies))
    assert written.take() == [5, 6]


def test_finished_requests_are_forgotten() -> None:
    written = WrittenBlocks([4], 0)
    written.step(_scheduled(new=[("a", [1], 0), ("b", [2], 0)]))
    assert written.live_requests == 2
    written.step(_scheduled(finished={"a", "b", "never seen"}))
    assert written.live_requests == 0


@given(
    tokens=st.integers(1, 8),
    chunks=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    taken_after=st.sets(st.integers(0, 11)),
)
def test_every_written_token_lies_in_a_block_of_its_step(
    tokens: int, chunks: list[int], taken_after: set[int]
) -> None:
    """Against a plain count: the blocks of the tokens computed since the last take, no more."""
    written = WrittenBlocks([tokens], 0)
    at, table, expected = 0, [], set()
    for index, chunk in enumerate(chunks):
        added = [100 + b for b in range(len(table), -(-(at + chunk) // tokens))]
        table += added
        if index == 0:
            written.step(_scheduled(new=[("a", list(table), 0)]))
        else:
            written.step(_scheduled(cached=[("a", added or None, at)]))
        expected |= {table[t // tokens] for t in range(at, at + chunk)}
        at += chunk
        if index in taken_after:
            assert written.take() == sorted(expected)
            expected.clear()
    assert written.take() == sorted(expected)
