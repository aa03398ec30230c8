"""What a trace tells of a swap-in."""

from __future__ import annotations

from gpupool._core import SwapReport
from gpupool.trace import Values


def figures_of(report: SwapReport) -> Values:
    """Of what is rare nothing where there was none."""
    values: Values = {"bytes": report.copied_bytes, "zeroed_bytes": report.filled_bytes}
    if report.recopied_bytes:
        values.update(recopied_bytes=report.recopied_bytes)
    if report.shared_bytes:
        values.update(shared_bytes=report.shared_bytes)
    return values
