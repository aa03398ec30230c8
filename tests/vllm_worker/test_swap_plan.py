"""Runs of `tests/gpu/vllm_swaps.py`: each turn is a swap, and what is wrong is found."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.swap_plan import differences, turns, wrong

ANSWERS = st.dictionaries(
    st.text("01/", min_size=3, max_size=4), st.lists(st.integers(0, 9), min_size=1), min_size=1
)


@given(st.integers(0, 1 << 30), st.integers(2, 5), st.integers(1, 80))
def test_every_turn_is_anothers(seed: int, engines: int, swaps: int) -> None:
    plan = turns(seed, engines, swaps)
    assert plan == turns(seed, engines, swaps)
    assert len(plan) == swaps + 1
    assert all(0 <= index < engines and steps > 0 for index, steps in plan)
    assert all(one[0] != other[0] for one, other in pairwise(plan))


@given(ANSWERS, st.data())
def test_one_token_that_differs_is_found(alone: dict[str, list[int]], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(alone)))
    at = data.draw(st.integers(0, len(alone[name]) - 1))
    told = {key: list(tokens) for key, tokens in alone.items()}
    assert differences(alone, told)["differing"] == 0
    told[name][at] += 1
    found = differences(alone, told)
    assert found["differing"] == 1
    assert found["first_difference"].startswith(f"request {name} from token {at} on")
    del told[name]
    assert differences(alone, told)["differing"] == differences(told, alone)["differing"] == 1


def test_what_is_wrong() -> None:
    good = {
        **{"differing": 0, "requests": 9, "swaps": 5, "steps": "graphs"},
        **{"graphs_captured": [4, 4], "graphs_captured_later": 0},
    }
    assert wrong(good, 5) == []
    bad = {"differing": 1, "swaps": 4, "graphs_captured": [4, 0], "graphs_captured_later": 1}
    for key, value in bad.items():
        assert len(wrong(good | {key: value}, 5)) == 1
    # No graphs, where none were asked for.
    assert wrong(good | {"steps": "eager", "graphs_captured": [0, 0]}, 5) == []
