"""Moving blocks between the device and rows on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np

from gpupool._core import BlockCopier, CopyMark, Driver
from gpupool.errors import DriverError
from gpupool.kernels.layout import BlockLayout
from gpupool.kv.blocks import BlockRuns, Blocks, Words

NOT_SUPPORTED = 801  # CUDA before 12.8 has no batches


class Mark(Protocol):
    """A point in the order of a mover's work."""

    def done(self) -> bool:
        """Whether all that was enqueued before it has arrived. Raises DriverError."""

    def wait(self) -> None:
        """Return when it has. Raises DriverError."""


class Mover(Protocol):
    """Copies blocks to rows and back, all in the order in which it was asked.

    It waits for nobody else: what wrote a block on the device must be done, and what reads it must
    be asked for after the move has been waited for. After an error part of a move may be in flight.
    """

    @property
    def row_bytes(self) -> int:
        """Length of a row."""

    @property
    def stream(self) -> int:
        """The driver's handle of the stream that the last move is on."""

    def to_host(self, blocks: Blocks, rows: Words) -> None:
        """Enqueue: each block to the row at its address. Raises DriverError."""

    def to_device(self, blocks: Blocks, rows: Words) -> None:
        """Enqueue: the row at each address to its block. Raises DriverError."""

    def mark(self) -> Mark:
        """A mark behind all that was enqueued. Raises DriverError."""

    def synchronize(self) -> None:
        """Wait for all that was enqueued. Raises DriverError."""


class CopierMover:
    """By the driver's copies, from each piece of a block to its place in the row."""

    def __init__(
        self,
        driver: Driver,
        layout: BlockLayout,
        base_address: int,
        *,
        method: Literal["batch", "each", "auto"],
    ) -> None:
        """Move blocks of ``layout`` from ``base_address`` on, over a stream of its own.

        ``batch`` makes one driver call for many pieces, which CUDA before 12.8 has not; ``each``
        one for every piece; ``auto`` whichever the driver has. Raises DriverError.
        """
        self._copier = BlockCopier(driver)
        self._method: str = method
        self._row_bytes = layout.row_bytes
        self._runs = BlockRuns(layout, base_address)
        self._places = np.array(layout.row_offsets, np.uint64)

    @property
    def row_bytes(self) -> int:
        """Length of a row."""
        return self._row_bytes

    @property
    def stream(self) -> int:
        """The driver's handle of its stream."""
        return self._copier.stream

    def to_host(self, blocks: Blocks, rows: Words) -> None:
        """Enqueue: each block to the row at its address. Raises DriverError."""
        self._copy(self._copier.to_host, blocks, rows)

    def to_device(self, blocks: Blocks, rows: Words) -> None:
        """Enqueue: the row at each address to its block. Raises DriverError."""
        self._copy(self._copier.to_device, blocks, rows)

    def mark(self) -> CopyMark:
        """A mark behind all that was enqueued. Raises DriverError."""
        return self._copier.mark()

    def synchronize(self) -> None:
        """Wait for all that was enqueued. Raises DriverError."""
        self._copier.synchronize()

    def _copy(self, copy: Callable[..., Any], blocks: Blocks, rows: Words) -> None:
        spans = self._spans(blocks, rows)
        if self._method == "auto":
            try:
                copy(*spans, method="batch")
            except DriverError as error:
                if error.status != NOT_SUPPORTED:
                    raise
                self._method = "each"  # the driver will never have it, and nothing is in flight
            else:
                return
        copy(*spans, method=self._method)

    def _spans(self, blocks: Blocks, rows: Words) -> tuple[memoryview, memoryview, memoryview]:
        device, sizes = self._runs.of(blocks)
        host = rows[:, None] + self._places
        return device.data, host.ravel().data, sizes.data
