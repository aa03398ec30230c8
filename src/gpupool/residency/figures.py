"""What is told of a swap, in a trace and in the log."""

from __future__ import annotations

import logging

from gpupool._core import SwapReport
from gpupool.trace import Values

logger = logging.getLogger("gpupool")


def figures_of(report: SwapReport) -> Values:
    """Of a swap-in. Of what is rare nothing where there was none."""
    values: Values = {"bytes": report.copied_bytes, "zeroed_bytes": report.filled_bytes}
    if report.recopied_bytes:
        values.update(recopied_bytes=report.recopied_bytes)
    if report.shared_bytes:
        values.update(shared_bytes=report.shared_bytes)
    return values


def figures_of_leaving(report: SwapReport) -> Values:
    """Of a swap-out, the same."""
    values: Values = {"pages": report.pages, "bytes": report.copied_bytes}
    if report.unmarked_bytes:
        values.update(unmarked_bytes=report.unmarked_bytes)
    return values


def warn_of_unmarked(model: str, report: SwapReport) -> None:
    """Say it where a swap-out found what was written through no door."""
    if report.unmarked_bytes == 0:
        return
    logger.warning(
        "gpupool: model %r: %d bytes changed on the device, or some of them, though nobody said "
        "that they were written: steps may have read them, and the next swap-in brings back what "
        "was saved; write inside resident(writes=True), or find what writes there",
        model,
        report.unmarked_bytes,
    )
