"""Who has how many steps in a run of `tests/gpu/vllm_swaps.py`, and what the run came to."""

from __future__ import annotations

import statistics
from random import Random
from typing import Any

STEPS = (1, 1, 1, 2, 2, 3, 5)  # of a turn


def turns(seed: int, engines: int, swaps: int) -> list[tuple[int, int]]:
    """Who has how many steps; nobody twice in a row, so that a turn after the first is a swap."""
    random, found = Random(seed), [(0, 1)]
    while len(found) <= swaps:
        others = [index for index in range(engines) if index != found[-1][0]]
        found.append((random.choice(others), random.choice(STEPS)))
    return found


def differences(alone: dict[str, list[int]], pooled: dict[str, list[int]]) -> dict[str, Any]:
    """How many requests came out otherwise, and where the first does."""
    differing = [name for name in alone | pooled if alone.get(name) != pooled.get(name)]
    first = None
    if differing:
        name = differing[0]
        was, now = alone.get(name, []), pooled.get(name, [])
        same = [a == b for a, b in zip(was, now, strict=False)]
        at = same.index(False) if False in same else len(same)
        first = f"request {name} from token {at} on, of {len(was)} and {len(now)}"
    return {
        "requests": len(alone),
        "tokens": sum(len(tokens) for tokens in alone.values()),
        "differing": len(differing),
        "first_difference": first,
    }


def swapped(took: list[dict[str, Any]]) -> dict[str, Any]:
    """What the swaps came to."""
    times_ms = [1e3 * turn["swap_in_s"] for turn in took if turn["swap_ins"]]
    return {
        "swaps": sum(turn["swap_ins"] for turn in took),
        "swaps_inside_answers": sum(turn["swap_ins"] for turn in took if turn["begun_answers"]),
        "copied_bytes": sum(turn["copied_bytes"] for turn in took),
        "swap_in_ms": {
            "median": statistics.median(times_ms) if times_ms else 0.0,
            "largest": max(times_ms, default=0.0),
        },
    }


def wrong(found: dict[str, Any], swaps: int) -> list[str]:
    """Why the run has failed, if it has."""
    faults = []
    if found["differing"]:
        faults.append(f"{found['differing']} of {found['requests']} requests differ")
    if found["swaps"] < swaps:
        faults.append(f"there were {found['swaps']} swaps instead of {swaps}")
    if found["graphs_captured_later"]:
        faults.append(f"{found['graphs_captured_later']} graphs were captured after the start")
    if found["steps"] != "eager" and 0 in found["graphs_captured"]:
        faults.append("a process has captured no graphs")
    return faults
