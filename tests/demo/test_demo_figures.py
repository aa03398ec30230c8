from __future__ import annotations

import json
import re
from typing import Any

import pytest

from demo import figures
from demo.chats import ModelRun
from demo.questions import Answer, differing_tokens


def test_differing_tokens_counts_changed_missing_and_extra() -> None:
    expected = Answer([0, 7], [1, 2, 3, 4])
    assert differing_tokens(expected, Answer([0, 7], [1, 2, 3, 4])) == 0
    assert differing_tokens(expected, Answer([0, 7], [1, 9, 3, 4])) == 1
    assert differing_tokens(expected, Answer([0, 7], [1, 2])) == 2
    assert differing_tokens(expected, Answer([0, 7], [1, 2, 3, 4, 5])) == 1
    assert differing_tokens(expected, Answer([0, 8], [1, 2, 3, 4])) == 4
    assert differing_tokens(expected, Answer([], [])) == 4


def _status(swap_ins: int, *, footprint_bytes: int = 60, budget_bytes: int = 100) -> dict[str, Any]:
    # The first swap-in, at start, is slow and is not among those measured.
    seconds = [9.0, *([0.010] * (swap_ins - 1))]
    model = {
        "footprint_bytes": footprint_bytes,
        "swap_ins": swap_ins,
        "swap_in_s": seconds,
        "swap_in_copied_bytes": [50_000_000] * swap_ins,
        "swap_in_copy_s": [0.005] * swap_ins,
        "lease_wait_s": [0.1] * swap_ins,
    }
    return {
        "daemon": {
            "budget_bytes": budget_bytes,
            "models": [{"name": "a", **model}, {"name": "b", **model}],
        },
        "engines": [{"name": "a", "cold_start_s": 4.0}, {"name": "b", "cold_start_s": 6.0}],
    }


def _gather(*, got: list[int], inside: int, swap_ins: int = 81) -> figures.Figures:
    run = ModelRun([Answer([0], got)], swaps_inside_answers=inside, seconds=2.0)
    expected = [Answer([0], [1, 2, 3])]
    return figures.gather(
        _status(1),
        _status(swap_ins),
        [{"a": run, "b": run}],
        {"a": expected, "b": expected},
        {"a": 10.0, "b": 12.0},
    )


def test_figures_of_a_good_run() -> None:
    found = _gather(got=[1, 2, 3], inside=60)
    assert found.failures() == []
    written = json.loads(json.dumps(found.as_json()))
    assert written["answers"] == 2
    assert written["tokens"] == 6
    assert written["differing_tokens"] == 0
    assert written["swaps"] == 160
    assert written["swaps_inside_answers"] == 120
    assert written["swap_in_ms_median"] == pytest.approx(10)
    assert written["swap_in_ms_p99"] == pytest.approx(10)
    assert written["swap_in_gbps_median"] == pytest.approx(5)
    assert written["swap_in_copy_gbps_median"] == pytest.approx(10)
    assert written["memcpy_gbps"] == pytest.approx(11)
    assert written["cold_start_s_median"] == pytest.approx(5)
    assert written["cold_start_over_swap_in"] == pytest.approx(400)


@pytest.mark.parametrize(
    ("got", "inside", "sentence"),
    [
        ([1, 2, 4], 60, r"2 tokens differ from the same model run alone \(a, b\)"),
        ([1, 2, 3], 49, "Only 98 swap-ins fell inside answers, not 100"),
    ],
)
def test_each_failure_is_a_sentence(got: list[int], inside: int, sentence: str) -> None:
    (failure,) = _gather(got=got, inside=inside).failures()
    assert re.match(sentence, failure)


def test_models_that_never_left_are_no_demonstration() -> None:
    with pytest.raises(ValueError, match="model a was not swapped in"):
        _gather(got=[1, 2, 3], inside=0, swap_ins=1)


def test_budget_must_hold_one_and_not_two() -> None:
    assert figures.check_budget(_status(1)["daemon"]) is None
    too_small = figures.check_budget(_status(1, budget_bytes=59)["daemon"])
    assert too_small is not None and "does not hold the largest" in too_small
    too_large = figures.check_budget(_status(1, budget_bytes=120)["daemon"])
    assert too_large is not None and "holds two models at once" in too_large


def test_memcpy_speed_is_plausible() -> None:
    speed = figures.measure_memcpy_gbps(4 << 20, runs=3)
    assert 0.01 < speed < 10_000
