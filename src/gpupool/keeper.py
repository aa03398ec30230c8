"""Who keeps over swaps what no image does: a KV cache, block by block."""

from __future__ import annotations

from typing import Protocol


class Keeper(Protocol):
    """Keeps over swaps what regions without an image hold, by copies of its own."""

    def arrived(self) -> None:
        """The memory is there and reads as zeros: begin to bring back what was kept.

        After an error the model leaves again. Raises DamagedMemoryError for what is not as it was.
        """

    def leaving(self) -> None:
        """No step is open, and none will be before ``left``. After an error the model stays."""

    def save(self) -> None:
        """Keep what the memory holds, and return when nothing is in flight any more.

        After an error the memory stays mapped, and this is called again later. There is nothing to
        save after a failed ``arrived``.
        """

    def left(self) -> None:
        """The memory is gone."""

    def settle(self) -> None:
        """Instead of ``save`` if the model leaves for good: only let nothing be in flight."""

    def forsake(self) -> None:
        """Instead of ``left`` if the model has left for good."""

    def close(self) -> None:
        """The model is closed: what was kept may go. Never fails for want of the daemon."""
