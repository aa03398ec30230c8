"""A plain page for people: what each engine does, without scripts or other files. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from statistics import median
from typing import TYPE_CHECKING

from gpupool.serve.pool_daemon import model_in
from gpupool.serve.report import EngineReport

if TYPE_CHECKING:
    from gpupool.daemon.protocol import Status

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="5">
<title>gpupool</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem; max-width: 70rem; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .3rem .9rem; border-bottom: 1px solid #ccc; text-align: right; }}
th:first-child, td:first-child, .text {{ text-align: left; }}
</style></head><body><h1>gpupool</h1><p>{pool}</p>
<table><tr><th>Model</th><th class="text">Engine</th><th class="text">Memory</th>
<th>Footprint</th><th>Swap-ins</th><th>Median swap-in</th><th>Cold start</th><th>Restarts</th>
</tr>{rows}</table></body></html>
"""
_NONE = "\N{EN DASH}"


def render(statuses: Sequence[Status | None], reports: Sequence[EngineReport]) -> str:
    """The page's HTML; a status is None when the daemon of that device does not answer.

    What is told of a model is of its first rank.
    """
    return _PAGE.format(
        pool="<br>".join(escape(_pool_line(status)) for status in statuses),
        rows="".join(_row(statuses[0], report) for report in reports),
    )


def _pool_line(status: Status | None) -> str:
    if status is None:
        return "The pool daemon does not answer."
    return (
        f"Device {status.device}: {_mib(status.budget_bytes)} in pages of"
        f" {_mib(status.page_bytes)}; {status.pages_granted} granted, {status.pages_free} free,"
        f" {status.pages_fenced} fenced."
    )


def _row(status: Status | None, report: EngineReport) -> str:
    model = model_in(status, report.name)
    swap_in = f"{median(model.swap_in_s) * 1e3:.1f} ms" if model and model.swap_in_s else _NONE
    cold_start = _NONE if report.cold_start_s is None else f"{report.cold_start_s:.1f} s"
    detail = f' title="{escape(report.detail)}"' if report.detail else ""
    return (
        f'<tr><td>{escape(report.name)}</td><td class="text"{detail}>{escape(report.state)}</td>'
        f'<td class="text">{escape(model.state) if model else _NONE}</td>'
        f"<td>{_mib(model.footprint_bytes) if model else _NONE}</td>"
        f"<td>{model.swap_ins if model else _NONE}</td><td>{swap_in}</td>"
        f"<td>{cold_start}</td><td>{report.restarts}</td></tr>"
    )


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):,.0f} MiB"
