"""Results for people: a table, and a plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from gpupool.simulate.result import Result, quantile

_ROWS: tuple[tuple[str, Callable[[Result], str]], ...] = (
    ("attainment, tokens", lambda r: f"{r.attainment_tokens:.3f}"),
    ("attainment, time", lambda r: f"{r.attainment_time:.3f}"),
    ("TTFT p50 / p90 / p99 (s)", lambda r: _three(r.ttft_s_p50, r.ttft_s_p90, r.ttft_s_p99)),
    ("TBT mean / p50 / p99 (s)", lambda r: _three(r.tbt_s_mean, r.tbt_s_p50, r.tbt_s_p99, 3)),
    ("goodput (tokens/s)", lambda r: f"{r.goodput_tokens_per_s:.0f}"),
    ("goodput (requests/s)", lambda r: f"{r.goodput_requests_per_s:.2f}"),
    ("switches", lambda r: f"{r.switches}"),
    ("switching (device s)", lambda r: f"{r.switching_s:.0f}"),
    ("utilisation", lambda r: f"{r.utilisation:.2f}"),
    ("finished / given up / cut", lambda r: f"{r.finished} / {r.dropped} / {r.cut}"),
)


def describe(results: Sequence[Result]) -> str:
    """A column for each policy."""
    first = results[0]
    lines = [
        f"{first.requests} requests for {first.models} models on {first.devices} devices,"
        f" assumptions: {first.assumptions}",
        "",
    ]
    cells = [["", *(_title(result) for result in results)]]
    cells += [[name, *(show(result) for result in results)] for name, show in _ROWS]
    lines += _table(cells)
    if first.classes:
        lines += ["", *_table(_classes(results))]
    return "\n".join(lines)


def describe_fits(result: Result) -> str:
    """A line for each model whose measurements were used; empty without any."""
    return "\n".join(
        f"{fit.model} on {fit.gpu}: a fit of {fit.points} points, {fit.left_out} left out, off by"
        f" {fit.error_median:.1%} (median), by {fit.error_worst:.1%} at most where used"
        for fit in result.fits
    )


def _classes(results: Sequence[Result]) -> list[list[str]]:
    """A row for each class under each policy."""
    rows = [["class", "policy", "goals (s)", "weight", "models", "requests"]]
    rows[0] += ["attainment, tokens", "time", "TTFT p50 / p99 (s)"]
    for place in range(len(results[0].classes)):
        for result in results:
            of = result.classes[place]
            goals = f"{of.goal_ttft_s:g}, {of.goal_tbt_s:g}"
            rows.append([of.name, _title(result), goals, f"{of.weight:g}", f"{of.models}"])
            rows[-1] += [f"{of.requests}", f"{of.attainment_tokens:.3f}"]
            rows[-1] += [f"{of.attainment_time:.3f}", f"{of.ttft_s_p50:.2f} / {of.ttft_s_p99:.2f}"]
    return rows


def _table(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = []
    for row in cells:
        texts = [row[0].ljust(widths[0])]
        texts += [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(texts).rstrip())
    return lines


def plot(results: Sequence[Result], path: Path) -> None:
    """What share of requests had their first token by when, a curve for each policy.

    Raises ModuleNotFoundError where matplotlib is missing, ValueError where it knows no such kind
    of file, and OSError.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    for result in results:
        levels = [place / 200 for place in range(200)]
        share = len(result.ttft_s) / result.requests
        times_s = [quantile(result.ttft_s, level) for level in levels]
        name = f"{_title(result)}: {result.attainment_tokens:.3f}"
        axes.step(times_s, [level * share for level in levels], where="post", label=name)
    axes.set_xlabel("time to first token (s)")
    axes.set_ylabel("share of requests")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(title="policy: attainment, tokens")
    axes.set_title(f"{results[0].models} models, {results[0].devices} devices", fontsize="medium")
    figure.savefig(path)
    pyplot.close(figure)


def _title(result: Result) -> str:
    split = result.prefill_devices
    return f"{result.policy} {split}+{result.devices - split}" if split else result.policy


def _three(low: float, middle: float, high: float, digits: int = 2) -> str:
    return " / ".join(f"{value:.{digits}f}" for value in (low, middle, high))
