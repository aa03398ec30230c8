"""What requests become under each set of assumptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpupool.simulate.assumptions import (
    ARTIFACT,
    HONEST,
    Assumptions,
    asked_of,
    checkpoints_of,
    cut,
)
from gpupool.simulate.checkpoints import Checkpoint
from gpupool.simulate.trace import Arrival

pytest.importorskip("numpy")

TRACES = st.lists(
    st.tuples(
        st.floats(0, 200), st.sampled_from("abcd"), st.integers(1, 9000), st.integers(1, 9000)
    ).map(lambda row: Arrival(*row)),
    min_size=1,
    max_size=30,
).map(sorted)


def workload_of(
    trace: Sequence[Arrival],
    checkpoints: Mapping[str, Checkpoint],
    assumptions: Assumptions,
    seed: int,
) -> list[Arrival]:
    asked = asked_of(trace, assumptions, seed)
    return [cut(arrival, checkpoints[arrival.model], assumptions) for arrival in asked]


def test_lengths_are_those_of_the_published_draw() -> None:
    """numpy's default generator with seed 0 draws 5, 3, 3, 1, 1, 0 of six: for a, a, a, b, b, c."""
    models = "abacba"
    trace = [Arrival(k, model, 10 + k, 20 + k) for k, model in enumerate(models)]
    found = workload_of(trace, checkpoints_of(trace, ARTIFACT), ARTIFACT, 0)
    drawn = {"a": [5, 3, 3], "b": [1, 1], "c": [0]}
    expected = [Arrival(k, m, 10 + (n := drawn[m].pop(0)), 20 + n) for k, m in enumerate(models)]
    assert found == expected


def cut_as_there(inputs: int, outputs: int, limit: int) -> tuple[int, int]:
    if inputs + outputs <= limit:
        return inputs, outputs
    share = limit / max(inputs + outputs + 32, 16384)
    return max(1, int(inputs * share)), max(1, int(outputs * share))


@given(TRACES, st.integers(0, 5))
def test_the_artifact_keeps_arrivals_and_draws_from_the_lengths_that_there_are(
    trace: list[Arrival], seed: int
) -> None:
    checkpoints = checkpoints_of(trace, ARTIFACT)
    found = workload_of(trace, checkpoints, ARTIFACT, seed)
    kept = [arrival for arrival in trace if arrival.at_s < 120]
    assert [arrival[:2] for arrival in found] == [arrival[:2] for arrival in kept]
    for arrival in found:
        limit = checkpoints[arrival.model].context_tokens_max
        assert arrival.input_tokens + arrival.output_tokens <= limit
        possible = {cut_as_there(*before[2:], limit) for before in kept}
        assert (arrival.input_tokens, arrival.output_tokens) in possible
    assert found == workload_of(trace, checkpoints, ARTIFACT, seed)


@given(TRACES, st.integers(0, 5))
def test_honestly_only_what_is_too_long_changes(trace: list[Arrival], seed: int) -> None:
    checkpoints = checkpoints_of(trace, HONEST)
    for before, after in zip(trace, workload_of(trace, checkpoints, HONEST, seed), strict=True):
        limit = checkpoints[before.model].context_tokens_max
        whole = before.input_tokens + before.output_tokens
        if whole <= limit:
            assert after == before
        else:
            assert limit - 2 <= after.input_tokens + after.output_tokens <= limit + 1
