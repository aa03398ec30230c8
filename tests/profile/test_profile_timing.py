"""Prefills and decode steps are told apart, whatever the engine does between."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpupool.errors import UsageError
from gpupool.profile.timing import Step, told_apart

milliseconds = st.integers(1, 1000)


@given(
    st.lists(st.lists(milliseconds, max_size=3), min_size=1, max_size=6),
    st.lists(milliseconds, min_size=1, max_size=10),
    st.integers(0, 3),
)
def test_all_is_as_an_engine_with_those_steps_had_it(
    chunks_ms: list[list[int]], decodes_ms: list[int], left_early: int
) -> None:
    """Each request is prefilled in steps of its own, while those before it decode already.

    Those before the last step of a prefill, and those that pass while work is only queued, bring
    no tokens.
    """
    names = [f"r{place}" for place in range(len(chunks_ms))]
    steps: list[Step] = []
    now_ms = began_ms = 500
    for place, chunks in enumerate(chunks_ms):
        for chunk_ms in chunks:
            now_ms += chunk_ms
            steps.append(Step(now_ms, names[:place]))
        now_ms += 7
        steps.append(Step(now_ms, names[: place + 1]))
    prefill_ms = now_ms - began_ms
    for decode_ms in decodes_ms:
        steps.append(Step(now_ms + decode_ms / 2, []))
        now_ms += decode_ms
        steps.append(Step(now_ms, names))
    for _ in range(left_early if len(names) > 1 else 0):  # some have finished
        now_ms += 11
        steps.append(Step(now_ms, names[1:]))
    assert told_apart(began_ms, steps, len(names)) == (prefill_ms, decodes_ms)


@given(st.integers(2, 6))
def test_requests_that_ran_one_after_the_other_are_no_batch(batch: int) -> None:
    steps = [Step(place // 2, [f"r{place // 2}"]) for place in range(2 * batch)]
    with pytest.raises(UsageError, match=f"{batch} requests never decoded together"):
        told_apart(0, steps, batch)
    with pytest.raises(UsageError, match="never decoded together"):
        told_apart(0, [], batch)
