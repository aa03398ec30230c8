"""Messages about swaps: that they are done, and what they took."""

from __future__ import annotations

import msgspec

from gpupool._core import SwapReport
from gpupool.daemon.limits import Count, Pages, Seconds


class SwapFigures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one swap took: seconds and bytes."""

    total_s: Seconds
    copy_s: Seconds
    copied_bytes: Count
    recopied_bytes: Count = 0
    """Of it, what did not arrive as it should at first, and did at a second attempt."""
    unmarked_bytes: Count = 0
    """What a swap-out found written although nobody had said so."""
    moving_s: Seconds = 0.0
    """Of ``total_s``, the part in which bytes went over the link."""
    ahead_bytes: Count = 0
    """Of the copied, what nobody waited for."""
    ahead_s: Seconds = 0.0
    """Of ``moving_s``, what those took."""

    @classmethod
    def of(cls, report: SwapReport) -> SwapFigures:
        """What is told of a swap."""
        return cls(
            report.total_s,
            report.copy_s,
            report.copied_bytes,
            report.recopied_bytes,
            report.unmarked_bytes,
            report.moving_s,
            report.ahead_bytes,
            report.ahead_s,
        )


class Arrived(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """The model is resident."""

    swap: SwapFigures


class Yielded(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """No page of the lease is mapped any more.

    But for those that it ``keeps`` and may, when all others were released.
    """

    swap: SwapFigures | None
    keeps: Pages = 0


class BlocksMoved(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """What went over the link of KV blocks since the last of these; as ``session.BlocksMoved``."""

    saved_bytes: Count
    saving_s: Seconds
    restored_bytes: Count
    restoring_s: Seconds
    recopied_bytes: Count
