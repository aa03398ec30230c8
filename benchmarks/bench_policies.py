"""How many models the policies of requests serve: ``python benchmarks/bench_policies.py``.

Prints Markdown: up to how many models attainment is 90%, for made-up traces of the demand, and
under the goals, that the options say. ``--reference FOLDER`` takes the traces of Aegaeon's artifact
instead, files that are named ``synth-<models>-<rate>-1.0-1.0.csv``, and prints what its simulator
found beside what ours finds under its assumptions, then policies beside each other at each point.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import mean

from gpupool.simulate.assumptions import ARTIFACT, HONEST, Assumptions
from gpupool.simulate.result import Result
from gpupool.simulate.simulation import Hardware, simulate
from gpupool.simulate.synthetic import synthetic_trace
from gpupool.simulate.trace import Arrival, read_trace

POOL = Hardware(devices=16, prefill_devices=6)
GOAL = 0.9

# Published with the artifact (SOSP 2025): attainment by its own metric, by policy and nominal rate.
PUBLISHED = {
    ("fcfs", "0.1"): {32: 0.966, 40: 0.923, 48: 0.751, 64: 0.561, 80: 0.477},
    ("fcfs", "0.5"): {16: 0.969, 24: 0.514, 32: 0.338, 48: 0.210},
    ("aegaeon", "0.1"): {48: 0.998, 56: 0.978, 64: 0.936, 70: 0.902, 80: 0.837},
    ("aegaeon", "0.5"): {32: 0.990, 40: 0.959, 48: 0.898},
}
# The same of aegaeon at other link rates in GB/s, by rate and number of models.
PUBLISHED_LINKS = {
    ("0.1", 80): {10: 0.576, 16: 0.854, 25: 0.904, 50: 0.918},
    ("0.5", 64): {10: 0.546, 16: 0.785, 25: 0.829, 50: 0.881},
}
# Rates that those traces have, their lengths in seconds, and with how many models to begin.
LOADS: dict[str, tuple[float, float, dict[str, int]]] = {
    "0.1": (0.0875, 120.0, {"fcfs": 24, "aegaeon": 48, "deadlines": 104}),
    "0.5": (0.46, 60.0, {"fcfs": 8, "aegaeon": 32, "deadlines": 80}),
}
STEP = 8
MODELS_MAX = 600


def trace_of(folder: Path, models: int, rate: str) -> list[Arrival]:
    """A trace of the artifact; for a number of models that it lacks, part of the next larger.

    Its traces are parts of one another: each has the models of a larger one with lower numbers.
    """
    more = min(n for n in range(models, 1000) if (folder / name_of(n, rate)).exists())
    trace = read_trace(folder / name_of(more, rate))
    return [arrival for arrival in trace if int(arrival.model.rpartition("_")[2]) < models]


def name_of(models: int, rate: str) -> str:
    """The file of one trace of the artifact."""
    return f"synth-{models}-{rate}-1.0-1.0.csv"


def reference(folder: Path, draws: int) -> None:
    """The published table beside ours: by the published draw of lengths, and the mean of several.

    The paper's metric, and deadlines by the artifact's, are of the published draw.
    """
    print(
        f"| policy | rate | models | published | ours | difference | {draws} draws"
        " | paper's metric | deadlines |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for (policy, rate), points in PUBLISHED.items():
        for models, published in points.items():
            trace = trace_of(folder, models, rate)
            found = runs(lambda _, t=trace: t, policy, ARTIFACT, draws)
            best = simulate(trace, "deadlines", POOL, assumptions=ARTIFACT, seed=0)
            time = found[0].attainment_time
            print(
                f"| {policy} | {rate} | {models} | {published:.3f} | {time:.3f}"
                f" | {time - published:+.3f} | {mean(r.attainment_time for r in found):.3f}"
                f" | {found[0].attainment_tokens:.3f} | {best.attainment_time:.3f} |",
                flush=True,
            )


def other_links(folder: Path) -> None:
    """The published table of link rates beside ours, by the artifact's metric."""
    print("| rate | models | GB/s | published | ours | difference | deadlines |")
    print("|---|---|---|---|---|---|---|")
    for (rate, models), points in PUBLISHED_LINKS.items():
        trace = trace_of(folder, models, rate)
        for gbps, published in points.items():
            hardware = replace(POOL, link_bytes_per_s=gbps * 1e9)
            ours, best = (
                simulate(trace, policy, hardware, assumptions=ARTIFACT).attainment_time
                for policy in ("aegaeon", "deadlines")
            )
            print(
                f"| {rate} | {models} | {gbps} | {published:.3f} | {ours:.3f}"
                f" | {ours - published:+.3f} | {best:.3f} |",
                flush=True,
            )


def beside_each_other(folder: Path, goals_scale: float) -> None:
    """The paper's policy and gpupool's own on the artifact's traces, by both metrics.

    By the published draw of lengths under the artifact's assumptions, by the trace's own under the
    honest ones.
    """
    print("| assumptions | rate | models | aegaeon: tokens, time | deadlines: tokens, time |")
    print("|---|---|---|---|---|")
    for assumptions in (HONEST, ARTIFACT):
        for rate in LOADS:
            for models in sorted({n for (_, at), p in PUBLISHED.items() if at == rate for n in p}):
                trace = trace_of(folder, models, rate)
                ends = ""
                for policy in ("aegaeon", "deadlines"):
                    (found,) = runs(
                        lambda _, t=trace: t, policy, assumptions, 1, goals_scale=goals_scale
                    )
                    ends += f" {found.attainment_tokens:.3f}, {found.attainment_time:.3f} |"
                print(f"| {assumptions.name} | {rate} | {models} |{ends}", flush=True)


def runs(
    trace_by_seed: Callable[[int], list[Arrival]],
    policy: str,
    assumptions: Assumptions,
    draws: int,
    *,
    goals_scale: float = 1.0,
) -> list[Result]:
    """One simulation for each seed; goals are so many times 10 s and 100 ms."""
    return [
        simulate(
            trace_by_seed(seed),
            policy,
            POOL,
            assumptions=assumptions,
            ttft_s=10.0 * goals_scale,
            tbt_s=0.1 * goals_scale,
            seed=seed,
        )
        for seed in range(draws)
    ]


def crossing(points: list[tuple[int, float]]) -> str:
    """Up to how many models attainment is at the goal, on a line between the points around it."""
    for (fewer, above), (more, below) in pairwise(points):
        if above >= GOAL > below:
            return f"{fewer + (above - GOAL) / (above - below) * (more - fewer):.0f}"
    return f"under {points[0][0]}" if points[0][1] < GOAL else f"over {points[-1][0]}"


def crossings(draws: int, cv: float, zipf: float, goals_scale: float) -> None:
    """How many models each policy serves at the goal, on made-up traces."""
    print(
        f"Gaps with a coefficient of variation of {cv:g}, popularity 1/k^{zipf:g}, goals of "
        f"{10 * goals_scale:g} s and {100 * goals_scale:g} ms, {draws} traces."
    )
    print()
    print(
        "| assumptions | rate | policy | models at 90%, tokens | time | TTFT p50, p99 (s) there |"
    )
    print("|---|---|---|---|---|---|")
    for assumptions in (HONEST, ARTIFACT):
        for rate, (real, duration_s, starts) in LOADS.items():
            for policy, first in starts.items():
                models = max(STEP, int(first * min(1.0, goals_scale)) // STEP * STEP)
                tokens, time, last = [], [], ""
                while models <= MODELS_MAX:
                    found = runs(
                        lambda seed, n=models, r=real, s=duration_s: synthetic_trace(
                            models=n, rate_per_s=r, duration_s=s, cv=cv, zipf=zipf, seed=seed
                        ),
                        policy,
                        assumptions,
                        draws,
                        goals_scale=goals_scale,
                    )
                    tokens.append((models, mean(r.attainment_tokens for r in found)))
                    time.append((models, mean(r.attainment_time for r in found)))
                    if max(tokens[-1][1], time[-1][1]) < GOAL:
                        break
                    if tokens[-1][1] >= GOAL:
                        middle = mean(r.ttft_s_p50 for r in found)
                        last = f"{middle:.2f}, {mean(r.ttft_s_p99 for r in found):.2f}"
                    models += STEP
                print(
                    f"| {assumptions.name} | {rate} | {policy} | {crossing(tokens)}"
                    f" | {crossing(time)} | {last} |",
                    flush=True,
                )


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", type=Path, metavar="FOLDER")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--cv", type=float, default=1.0)
    parser.add_argument("--zipf", type=float, default=0.0)
    parser.add_argument("--goals-scale", type=float, default=1.0)
    options = parser.parse_args()
    if options.reference is not None:
        if options.goals_scale == 1:
            reference(options.reference, options.draws)
            print()
            other_links(options.reference)
            print()
        beside_each_other(options.reference, options.goals_scale)
    else:
        crossings(options.draws, options.cv, options.zipf, options.goals_scale)


if __name__ == "__main__":
    main()
