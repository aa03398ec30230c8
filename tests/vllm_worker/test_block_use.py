"""What a step does with blocks, from the scheduler's output."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gpupool.vllm.block_use import BlockTables, BlockUse


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


def _all(use: BlockUse) -> set[int]:
    return set(use.all_blocks())


def test_a_prefix_hit_is_read_and_not_written() -> None:
    use = BlockTables([16], 0).step(_scheduled(new=[("a", [7, 8, 9], 32)]))
    assert (use.written, use.fresh, _all(use)) == ({9}, {9}, {7, 8, 9})


def test_a_block_is_written_until_it_is_full() -> None:
    tables = BlockTables([4], 0)
    use = tables.step(_scheduled(new=[("a", [3], 0)]))
    assert (use.written, use.fresh) == ({3}, {3})
    use = tables.step(_scheduled(cached=[("a", None, 3)]))
    assert (use.written, use.fresh) == ({3}, set())
    use = tables.step(_scheduled(cached=[("a", [5], 4)]))
    assert (use.written, use.fresh, _all(use)) == ({5}, {5}, {3, 5})


def test_a_resumed_request_has_a_new_table() -> None:
    tables = BlockTables([4], 0)
    tables.step(_scheduled(new=[("a", [1, 2], 0)]))
    use = tables.step(_scheduled(cached=[("a", [8, 9], 4)], resumed={"a"}))
    assert (use.written, use.fresh, _all(use)) == ({9}, {9}, {8, 9})


def test_rejected_drafts_are_written_again_and_keep_what_is_before_them() -> None:
    tables = BlockTables([4], 3)
    tables.step(_scheduled(new=[("a", [1, 2], 0)]))
    use = tables.step(_scheduled(cached=[("a", [3], 9)]))
    assert (use.written, use.fresh) == ({2, 3}, set())


def test_blocks_in_the_table_already_are_never_fresh() -> None:
    """As those of an encoder, which the first step writes and all others read."""
    tables = BlockTables([4, 4], 0)
    encoder = _scheduled(new=[("a", [1], 0)])
    encoder.scheduled_new_reqs[0].block_ids = ([1], [5, 6, 7])
    tables.step(encoder)
    use = tables.step(_scheduled(cached=[("a", None, 1)]))
    assert use.fresh == set()
    assert {5, 6, 7} <= _all(use)


def test_zeroed_and_copied_blocks_count() -> None:
    copies = [SimpleNamespace(src_block_id=1, dst_block_id=6)]
    use = BlockTables([4], 0).step(
        _scheduled(new_block_ids_to_zero=[5], kv_cache_block_copies=copies)
    )
    assert (use.written, use.fresh, _all(use)) == ({5, 6}, {5, 6}, {1, 5, 6})


def test_a_block_is_copied_before_it_is_given_out_anew() -> None:
    copies = [SimpleNamespace(src_block_id=1, dst_block_id=6)]
    use = BlockTables([4], 0).step(_scheduled(new=[("a", [1, 2], 0)], kv_cache_block_copies=copies))
    assert (use.written, use.fresh) == ({1, 2, 6}, {2, 6})


def test_finished_requests_are_forgotten() -> None:
    tables = BlockTables([4], 0)
    tables.step(_scheduled(new=[("a", [1], 0), ("b", [2], 0)]))
    assert tables.live_requests == 2
    tables.step(_scheduled(finished={"a", "b", "never seen"}))
    assert tables.live_requests == 0


def test_without_a_prefix_cache_blocks_of_finished_requests_are_given_up() -> None:
    tables = BlockTables([4], 0, keeps_finished=False)
    tables.step(_scheduled(new=[("a", [1, 2], 0), ("b", [3], 0)]))
    use = tables.step(_scheduled(finished={"a"}, cached=[("b", None, 1)]))
    assert (use.fresh, use.written) == ({1, 2}, {3})


def test_blocks_that_are_others_by_now_are_not_given_up() -> None:
    """As those that slid out of a window, or were taken from a preempted request."""
    tables = BlockTables([4], 0, keeps_finished=False)
    tables.step(_scheduled(new=[("a", [1, 2], 0)]))
    tables.step(_scheduled(new=[("b", [1], 0)]))
    assert tables.step(_scheduled(finished={"a"})).fresh == {2}
    assert tables.step(_scheduled(finished={"b"})).fresh == {1}


def test_a_resumed_request_gives_up_what_it_had() -> None:
    tables = BlockTables([4], 0, keeps_finished=False)
    tables.step(_scheduled(new=[("a", [1, 2], 0)]))
    use = tables.step(_scheduled(cached=[("a", [2, 9], 0)], resumed={"a"}))
    assert (use.fresh, use.written) == ({1, 2, 9}, {2, 9})
    assert tables.step(_scheduled(finished={"a"})).fresh == {2, 9}


@given(
    tokens=st.integers(1, 8),
    hit=st.integers(0, 3),
    chunks=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    ahead=st.integers(0, 5),
)
def test_every_token_lies_where_the_step_says(
    tokens: int, hit: int, chunks: list[int], ahead: int
) -> None:
    """Against a plain count of the tokens that a request has computed, some by others before."""
    tables = BlockTables([tokens], 0)
    at, table = hit * tokens, list(range(50, 50 + hit))
    computed = set(table)
    for index, chunk in enumerate(chunks):
        added = [100 + b for b in range(len(table), -(-(at + chunk + ahead) // tokens))]
        table += added
        if index == 0:
            use = tables.step(_scheduled(new=[("a", list(table), at)]))
        else:
            use = tables.step(_scheduled(cached=[("a", added or None, at)]))
        written = {table[t // tokens] for t in range(at, at + chunk)}
        assert written <= use.written == set(table[at // tokens :])
        assert use.fresh == set(added) - computed | (set(table) - computed if index == 0 else set())
        assert not use.fresh & computed
        assert _all(use) == set(table)
        at += chunk
        computed |= written
