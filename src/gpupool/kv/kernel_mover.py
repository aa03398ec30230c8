"""Moving blocks by gpupool's Triton kernels, which read and write pinned host memory themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from gpupool.errors import DriverError
from gpupool.kernels.layout import BlockLayout
from gpupool.kernels.memory import RowsAt
from gpupool.kernels.move import BlockMover, on_device
from gpupool.kv.blocks import Blocks, Words

_UNKNOWN = 999  # CUDA_ERROR_UNKNOWN: torch does not say which


class KernelMark:
    """A point in the order of the kernels."""

    def __init__(self, event: torch.cuda.Event) -> None:
        self._event = event

    def done(self) -> bool:
        """Whether all that was launched before it has arrived. Raises DriverError."""
        with _driver_errors("event_query"):
            return bool(self._event.query())

    def wait(self) -> None:
        """Return when it has. Raises DriverError."""
        with _driver_errors("event_synchronize"):
            self._event.synchronize()


class KernelMover:
    """A Mover (``gpupool.kv.mover``) by kernels, over a stream of its own."""

    def __init__(
        self, layout: BlockLayout, base_address: int, size_bytes: int, *, ordinal: int
    ) -> None:
        """Move blocks of ``layout``, which lie in ``size_bytes`` from ``base_address`` on.

        The kernels are compiled or loaded here. Raises UsageError where they cannot run.
        """
        self._device = torch.device("cuda", ordinal)
        memory = (base_address, size_bytes)
        self._mover = BlockMover(layout, memory, device=self._device)
        with on_device(self._device), _driver_errors("stream_create"):
            self._stream = torch.cuda.Stream(self._device)
        self._row_bytes = layout.row_bytes

    @property
    def row_bytes(self) -> int:
        """Length of a row."""
        return self._row_bytes

    @property
    def stream(self) -> int:
        """The driver's handle of its stream."""
        return int(self._stream.cuda_stream)

    def to_host(self, blocks: Blocks, rows: Words) -> None:
        """Enqueue: each block to the row at its address. Raises DriverError."""
        with _driver_errors("gather"), torch.cuda.stream(self._stream):
            self._mover.gather(torch.from_numpy(blocks), _at(rows))

    def to_device(self, blocks: Blocks, rows: Words) -> None:
        """Enqueue: the row at each address to its block. Raises DriverError."""
        with _driver_errors("scatter"), torch.cuda.stream(self._stream):
            self._mover.scatter(torch.from_numpy(blocks), _at(rows))

    def mark(self) -> KernelMark:
        """A mark behind all that was enqueued. Raises DriverError."""
        with _driver_errors("event_record"):
            event = torch.cuda.Event(blocking=True)
            event.record(self._stream)
            return KernelMark(event)

    def synchronize(self) -> None:
        """Wait for all that was enqueued. Raises DriverError."""
        with _driver_errors("stream_synchronize"):
            self._stream.synchronize()


def _at(rows: Words) -> RowsAt:
    return RowsAt(torch.from_numpy(rows.astype(np.int64)))


@contextmanager
def _driver_errors(call: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DriverError(f"{call} failed: {line}", call, _UNKNOWN) from error
