"""Plans for people: tables, and a chart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

from gpupool.plan.planner import Plan, PoolPlan

_TITLES = {
    "dedicated": "one per model",
    "autoscaling": "autoscaling per model",
    "fcfs": "request level (fcfs)",
    "aegaeon": "token level (aegaeon)",
    "deadlines": "token level (deadlines)",
}
_HEADER = ("", "devices", "GPUs", "attainment", "TTFT p50 / p99 (s)", "switches", "utilisation")


def describe(plan: Plan) -> str:
    """A table for each pool, the sums, and the assumptions."""
    parts = [_pool_table(pool) for pool in plan.pools]
    if len(plan.pools) > 1:
        rows = [("all pools", "GPUs")]
        rows += [
            (_TITLES[name], _count(gpus, enough))
            for (name, gpus), enough in zip(plan.gpus.items(), _sums(plan), strict=True)
        ]
        parts.append(_table(rows))
    lines = ["Assumptions:"]
    for assumption in plan.assumptions:
        lines += wrap(assumption, 100, initial_indent="- ", subsequent_indent="  ")
    return "\n\n".join([*parts, "\n".join(lines)])


def _pool_table(pool: PoolPlan) -> str:
    of = f"{pool.gpus_per_device} {pool.gpu}" if pool.gpus_per_device > 1 else pool.gpu
    title = (
        f"{pool.pool}: {pool.models} models of {pool.weights_bytes / 1e9:.0f} GB together,"
        f" {pool.requests} requests, a device is {of}"
    )
    rows: list[Sequence[str]] = [_HEADER]
    rows += [
        (
            _TITLES[need.strategy],
            _count(need.devices, need.enough),
            _count(need.gpus, need.enough * pool.gpus_per_device),
            f"{need.attainment:.3f}",
            f"{need.ttft_s_p50:.2f} / {need.ttft_s_p99:.2f}",
            f"{need.switches}",
            f"{need.utilisation:.2f}",
        )
        for need in pool.needs
    ]
    lines = [title, _table(rows)]
    if any(need.devices is None for need in pool.needs):
        lines.append("(n): no number meets the goal, and more than n do no better.")
    return "\n".join(lines)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        texts = [row[0].ljust(widths[0])]
        texts += [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(texts).rstrip())
    return "\n".join(lines)


def _count(count: int | None, enough: int) -> str:
    return f"({enough})" if count is None else f"{count}"


def _sums(plan: Plan) -> list[int]:
    """GPUs of all pools by strategy, of those too that miss the goal."""
    return [
        sum(pool.needs[place].enough * pool.gpus_per_device for pool in plan.pools)
        for place in range(len(plan.gpus))
    ]


def plot(plan: Plan, path: Path) -> None:
    """A bar of GPUs for each strategy, the pools on top of each other.

    Pale where no number meets the goal. Raises ModuleNotFoundError where matplotlib is missing,
    ValueError where it knows no such kind of file, and OSError.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    names = [_TITLES[strategy] for strategy in plan.gpus]
    figure, axes = pyplot.subplots(figsize=(7.0, 3.6), layout="constrained")
    left = [0] * len(names)
    for pool in plan.pools:
        counts = [need.enough * pool.gpus_per_device for need in pool.needs]
        label = f"{pool.pool}: {pool.models} models, {pool.gpu}"
        bars = axes.barh(names, counts, left=left, label=label)
        for bar, need in zip(bars, pool.needs, strict=True):
            bar.set_alpha(1.0 if need.devices is not None else 0.35)
        left = [before + count for before, count in zip(left, counts, strict=True)]
    for place, gpus in enumerate(plan.gpus.values()):
        missed = "" if gpus is not None else ", misses the goal"
        axes.text(left[place], place, f" {left[place]}{missed}", va="center")
    axes.invert_yaxis()
    axes.margins(x=0.4)
    axes.set_xlabel("GPUs")
    goals = plan.goals
    axes.set_title(
        f"{goals.attainment:.0%} of tokens in time: {goals.ttft_s:g} s, then {goals.tbt_s:g} s",
        fontsize="medium",
    )
    axes.legend()
    figure.savefig(path)
    pyplot.close(figure)
