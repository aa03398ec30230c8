"""What one decision of a policy of requests costs, with many models on one device.

    python benchmarks/bench_decide.py --json -

Every model has a batch of 1 to 8 requests. For each policy and kind of decision: microseconds of
the thread's processor time, median and 99th percentile. Under autoscaling, where a device is one
model's, there are as many devices as models.

Then whole looks of the daemon under a policy that it can have: what leases and engines say is
followed, the policy decides, why is kept, and all leases get their ranks. Every model has 8
requests there. A look is of the kind of what came of it; most are at tokens, and nothing does.
Rows of `patience` have a patience that nobody exceeds, and those of `record` write a line of JSON
for each decision, to nowhere.
"""

from __future__ import annotations

import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
from looks import Looks

from gpupool.live import POLICIES
from gpupool.schedule import aegaeon, autoscaling, deadlines, fcfs
from gpupool.schedule.costs import Costs
from gpupool.schedule.recording import to_line
from gpupool.schedule.work import (
    Action,
    Batch,
    Decode,
    Device,
    Goals,
    Join,
    Prefill,
    Request,
    Round,
    State,
    Switch,
)

NOW_S = 1000.0
DECIDES: dict[str, Callable[[State, float], list[Action]]] = {
    "deadlines": deadlines.decide,
    "aegaeon": aegaeon.decide,
    "fcfs": fcfs.decide,
    "autoscaling": partial(autoscaling.decide, scaling=autoscaling.Scaling()),
}
# What comes out of each kind of decision, and who makes such.
KINDS: dict[str, tuple[type[Any], tuple[str, ...]]] = {
    "place": (Join, tuple(DECIDES)),
    "switch": (Switch, tuple(DECIDES)),
    "prefill": (Prefill, tuple(DECIDES)),
    "decode": (Decode, tuple(DECIDES)),
    "turn": (Decode, ("deadlines",)),  # a turn begins, with time to spare
    "visit": (Switch, ("deadlines",)),  # to a model that nobody is late for
    "round": (Round, ("aegaeon",)),
}


def state_of(policy: str, kind: str, models: int, requests_max: int, seed: int) -> State:
    """A state in which the next decision is of this kind."""
    rng = random.Random(seed)
    spare = kind in ("turn", "visit")
    goals = Goals(60.0, models / 4) if spare else Goals()
    step_s = (0.01, 1e-7, 1e-4)
    costs = {m: Costs((0.01, 2e-5, 1e-10), step_s, 1.0, 1e-5, 200_000) for m in range(models)}
    batches: list[Batch] = []
    for model in range(models):
        batch = Batch(model, ran_s=NOW_S - rng.uniform(1, 20))
        for _ in range(rng.randint(1, requests_max)):
            request = Request(rng.getrandbits(60), model, NOW_S, rng.randint(10, 2000))
            if not (kind == "visit" and model == models - 1):
                request.produced_tokens, request.prefilled = rng.randint(1, 400), True
            late_s = 0.0 if spare else rng.uniform(-5, 15)
            request.arrival_s -= request.produced_tokens * goals.tbt_s + late_s
            batch.requests.append(request)
        batches.append(batch)
    if kind == "prefill":
        late = batches[0].requests[-1]
        late.produced_tokens, late.prefilled, late.arrival_s = 0, False, NOW_S - 1
    if policy == "autoscaling":
        devices = [Device(k, batches=[b], unused=False) for k, b in enumerate(batches)]
    else:
        devices = [Device(0, batches=batches, unused=False)]
    first = devices[0]
    if policy == "aegaeon" and kind == "prefill":
        first.groups, first.batches = batches, []
    first.model, first.current = 0, first.batches[0] if first.batches else None
    if kind == "switch" and policy != "deadlines":
        first.model, first.current = models - 1, None
    if kind in ("prefill", "decode"):
        first.turn_ends_s = NOW_S + 1
    first.resident = dict.fromkeys(range(models), 1.0) if spare else {0: 1.0, 1: 0.4}
    state = State(devices, costs, goals, ready=[first])
    if kind == "place":
        state.arrived.append(Request(0, models // 2, NOW_S, 100))
    if policy == "aegaeon" and kind == "switch":
        (action,) = aegaeon.decide(state, NOW_S)
        first.turns = action.turns
    return state


def measure(models: int, requests_max: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Microseconds of each kind of decision under each policy."""
    found: dict[str, dict[str, Any]] = {}
    for policy, decide in DECIDES.items():
        for kind, (expected, policies) in KINDS.items():
            if policy not in policies:
                continue
            taken_us: list[float] = []
            for seed in range(20):
                state = state_of(policy, kind, models, requests_max, seed)
                action, *_ = decide(state, NOW_S)
                if not isinstance(action, expected):
                    raise AssertionError(f"{policy}, {kind}: {type(action).__name__}")
                gc.collect()
                for _ in range(rounds):
                    began_ns = time.thread_time_ns()
                    decide(state, NOW_S)
                    taken_us.append((time.thread_time_ns() - began_ns) / 1e3)
            found.setdefault(policy, {})[kind] = _told(taken_us)
    return found


def measure_looks(models: int, requests: int, rounds: int) -> dict[str, dict[str, Any]]:
    """The same of looks of a daemon."""
    found: dict[str, dict[str, Any]] = {}
    rows: dict[str, tuple[str, dict[str, Any], int]] = {
        policy: (policy, {}, 4 * rounds) for policy in POLICIES
    }
    rows["patience"] = ("deadlines", {"patience_s": 1e6}, 4 * rounds)
    written = partial(to_line, "deadlines")
    rows["record"] = ("deadlines", {"record": written}, rounds)
    for row, (policy, more, looked) in rows.items():
        taken_us: dict[str, list[float]] = {}
        for seed in range(5):
            looks = Looks(policy, models, requests, seed, **more)
            looks.run(looked)
            for kind, taken in looks.taken_us.items():
                taken_us.setdefault(kind, []).extend(taken)
        decided = [t for kind, taken in taken_us.items() if kind != "nothing" for t in taken]
        every = [t for taken in taken_us.values() for t in taken]
        kinds = {**taken_us, "decided": decided, "all": every}
        found[row] = {kind: _told(taken) for kind, taken in kinds.items()}
    return found


def _told(taken_us: list[float]) -> dict[str, float]:
    taken_us.sort()
    p99_us = taken_us[int(0.99 * len(taken_us))]
    return {"median_us": statistics.median(taken_us), "p99_us": p99_us, "count": len(taken_us)}


@click.command(help=__doc__)
@click.option("--models", default=100, show_default=True, type=click.IntRange(3))
@click.option("--requests-max", default=8, show_default=True, type=click.IntRange(1))
@click.option("--rounds", default=50, show_default=True, type=click.IntRange(1))
@click.option("--json", "json_path", help="Write the figures to a file, or - for the terminal.")
def main(models: int, requests_max: int, rounds: int, json_path: str | None) -> None:
    """Run and report."""
    found = measure(models, requests_max, rounds)
    looks = measure_looks(models, requests_max, rounds)
    figures = {"models": models, "requests_max": requests_max, "decide": found, "look": looks}
    if json_path == "-":
        json.dump(figures, sys.stdout, indent=2)
        print()
    elif json_path is not None:
        Path(json_path).write_text(json.dumps(figures, indent=2) + "\n")
    else:
        print(f"{'us':18}{'':10}{'median':>8}{'p99':>8}")
        for what, rows in (("", found), ("look, ", looks)):
            for policy, kinds in rows.items():
                for kind, taken in kinds.items():
                    row = f"{taken['median_us']:8.0f}{taken['p99_us']:8.0f}"
                    print(f"{what + policy:18}{kind:10}{row}")


if __name__ == "__main__":
    main()
