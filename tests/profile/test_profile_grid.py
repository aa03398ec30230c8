"""Which batches are measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpupool.errors import UsageError
from gpupool.profile.grid import BATCH_SIZES, INPUT_TOKENS, Limits, choose

PLENTY = Limits(32768, 256, 8192, 10**6, (16,))

limits = st.builds(
    Limits,
    st.integers(32, 100_000),
    st.integers(1, 300),
    st.integers(16, 20_000),
    st.integers(1, 10**6),
    st.lists(st.integers(1, 256), min_size=1, max_size=3).map(tuple),
)
counts = st.none() | st.lists(st.integers(1, 5000), min_size=1, max_size=6)


@given(counts, counts, limits, st.integers(1, 64), st.integers(1, 50_000))
def test_every_batch_fits_the_engine_or_is_left_out(
    lengths: list[int] | None,
    batches: list[int] | None,
    engine: Limits,
    steps: int,
    tokens_max: int,
) -> None:
    asked = {
        (length, batch)
        for length in lengths or INPUT_TOKENS
        for batch in batches or BATCH_SIZES
        if lengths or length + 2 + steps <= engine.context_tokens_max
    }
    try:
        cells, left_out = choose(
            lengths, batches, engine, steps=steps, prompt_tokens_max=tokens_max
        )
    except UsageError:
        long = any(length + 2 + steps > engine.context_tokens_max for length, _ in asked)
        single = [
            (length, batch)
            for length, batch in asked
            if length * batch <= min(engine.step_tokens_max, tokens_max)
            and batch <= engine.batch_size_max
            and batch * sum(-(-(length + 2 + steps) // size) for size in engine.block_tokens)
            <= engine.kv_blocks
        ]
        kinds = [{pair[place] for pair in single} for place in (0, 1)]
        assert long or len(single) < 4 or min(map(len, kinds)) < 2
        return
    for cell in cells:
        whole = cell.input_tokens + cell.answer_tokens
        assert whole <= engine.context_tokens_max
        assert cell.batch_size <= engine.batch_size_max
        assert cell.input_tokens * cell.batch_size <= tokens_max
        blocks = sum(-(-whole // tokens) for tokens in engine.block_tokens)
        assert cell.batch_size * blocks <= engine.kv_blocks
        assert (cell.prefill_steps - 1) * engine.step_tokens_max < (
            cell.input_tokens * cell.batch_size
        )
        # One for the prefill, and as many behind the last of its steps as are wanted.
        assert cell.answer_tokens >= 1 + (cell.prefill_steps - 1) + steps
    chosen = [(cell.input_tokens, cell.batch_size) for cell in cells]
    others = [(one.input_tokens, one.batch_size) for one in left_out]
    assert sorted(chosen + others) == sorted(asked)
    assert all(one.why for one in left_out)
    single = [cell for cell in cells if cell.prefill_steps == 1]
    assert len(single) >= 4


def test_the_default_is_some_thirty_batches() -> None:
    cells, left_out = choose(None, None, PLENTY, steps=16, prompt_tokens_max=16384)
    assert 25 <= len(cells) <= 40
    assert {one.why for one in left_out} == {"over 16384 prompt tokens"}


@pytest.mark.parametrize(
    ("lengths", "batches", "engine", "says"),
    [
        ([16, 600], None, Limits(512, 8, 2048, 100, (16,)), "a prompt of 600 tokens and 18 of an"),
        ([16], None, PLENTY, "two lengths"),
        (None, [1], PLENTY, "two batch sizes"),
        (None, None, Limits(512, 8, 2048, 3, (32,)), "over the KV cache.*larger --kv-cache"),
    ],
)
def test_too_little_to_fit_is_refused(
    lengths: list[int] | None, batches: list[int] | None, engine: Limits, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        choose(lengths, batches, engine, steps=16, prompt_tokens_max=16384)
