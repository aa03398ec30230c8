"""The answers for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpu_probe.runner import ANSWERED

NOT_A_GPU = (
    "NOT A GPU: this is the stand-in library of gpupool's tests. "
    "These figures say nothing about any GPU."
)


def readable(report: dict[str, Any]) -> str:
    """The whole report; it begins and ends with a warning where it is of no GPU."""
    return "\n".join(_lines(report))


def _lines(report: dict[str, Any]) -> Iterator[str]:
    banner = [] if report["is_gpu"] else ["!" * len(NOT_A_GPU), NOT_A_GPU, "!" * len(NOT_A_GPU)]
    yield from banner
    yield f"gpupool's probe of {report['library']} on {report['date']}, commit {report['commit']}"
    for name, outcome in report["parts"].items():
        yield ""
        yield f"== {name}: {outcome['question']}"
        if outcome["status"] != ANSWERED:
            yield f"  {outcome['status']}: {outcome['why']}"
            continue
        yield from _answer(outcome["answer"])
    yield ""
    counted: dict[str, int] = {}
    for outcome in report["parts"].values():
        counted[outcome["status"]] = counted.get(outcome["status"], 0) + 1
    yield ", ".join(f"{count} {status}" for status, count in counted.items())
    yield from banner


def _answer(answer: dict[str, Any]) -> Iterator[str]:
    """Rows of the same columns in a table, the others a line each."""
    tables: dict[tuple[str, ...], list[tuple[str, dict[str, Any]]]] = {}
    for key, value in answer.items():
        if isinstance(value, dict):
            tables.setdefault(tuple(value), []).append((key, value))
        else:
            yield f"  {key}: {_text(value)}"
    for columns, rows in tables.items():
        width = max(len(key) for key, _ in rows)
        if len(rows) == 1 or any(len(_text(v)) > 40 for _, row in rows for v in row.values()):
            for key, row in rows:
                yield f"  {key}: " + ", ".join(f"{c} {_text(row[c])}" for c in columns)
            continue
        # Headings stand above the table, numbered, since they are longer than what is under them.
        for number, column in enumerate(columns, 1):
            yield f"  {'':{width}}  ({number}) {column}"
        yield f"  {'':{width}}  " + " ".join(f"{f'({n})':>9}" for n in range(1, len(columns) + 1))
        for key, row in rows:
            yield f"  {key:{width}}  " + " ".join(f"{_text(row[c]):>9}" for c in columns)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
