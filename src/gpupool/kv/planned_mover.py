"""Moving blocks in whichever way is the quickest for so many of that size."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from gpupool._core import Driver
from gpupool.errors import UsageError
from gpupool.kernels.layout import BlockLayout
from gpupool.kv.blocks import Blocks, Words
from gpupool.kv.move_table import Direction, MoveTable, table_path
from gpupool.kv.mover import CopierMover, Mark, Mover


def movers(
    driver: Driver, layout: BlockLayout, base_address: int, size_bytes: int
) -> dict[str, Mover]:
    """Every way there is on that device, each over a stream of its own.

    On a GPU the kernels are among them where torch and Triton are installed. Raises DriverError.
    """
    found: dict[str, Mover] = {
        "each": CopierMover(driver, layout, base_address, method="each"),
        "batch": CopierMover(driver, layout, base_address, method="batch"),
    }
    installed = all(importlib.util.find_spec(name) for name in ("torch", "triton"))
    if driver.kind == "cuda" and installed:
        from gpupool.kv.kernel_mover import KernelMover

        found["kernel"] = KernelMover(layout, base_address, size_bytes, ordinal=driver.ordinal)
    return found


def device_name(driver: Driver) -> str:
    """By which its table is kept: ``host``, or what CUDA calls the device.

    Raises UsageError on a GPU without torch, which knows that.
    """
    if driver.kind == "host":
        return "host"
    try:
        import torch
    except ModuleNotFoundError:
        raise UsageError("torch, which names the GPU, is missing: install its CUDA build") from None

    name: str = torch.cuda.get_device_name(driver.ordinal)
    return name


class PlannedMover:
    """A Mover that asks a table before each move."""

    def __init__(self, layout: BlockLayout, ways: Mapping[str, Mover], table: MoveTable) -> None:
        """Choose among ``ways``, all over the same blocks.

        Raises UsageError if the table knows of a way that there is not.
        """
        self._row_bytes = layout.row_bytes
        self._pieces = len(layout.pieces)
        self._ways = dict(ways)
        self._table = table
        for direction in ("to_host", "to_device"):
            known = set(table.methods(direction))
            if not known or not known <= set(ways):
                raise UsageError(
                    f"the table of {table.device} has {table.methods(direction)} "
                    f"and there is {sorted(ways)} here: run gpupool tune"
                )
        self._last = next(iter(ways))

    @property
    def row_bytes(self) -> int:
        """Length of a row."""
        return self._row_bytes

    @property
    def stream(self) -> int:
        """The driver's handle of the stream that the last move is on."""
        return self._ways[self._last].stream

    def to_host(self, blocks: Blocks, rows: Words) -> None:
        """Enqueue: each block to the row at its address. Raises DriverError."""
        self._choose("to_host", len(blocks)).to_host(blocks, rows)

    def to_device(self, blocks: Blocks, rows: Words) -> None:
        """Enqueue: the row at each address to its block. Raises DriverError."""
        self._choose("to_device", len(blocks)).to_device(blocks, rows)

    def mark(self) -> Mark:
        """A mark behind all that was enqueued. Raises DriverError."""
        return self._ways[self._last].mark()

    def synchronize(self) -> None:
        """Wait for all that was enqueued. Raises DriverError."""
        for way in self._ways.values():
            way.synchronize()

    def _choose(self, direction: Direction, blocks: int) -> Mover:
        piece_bytes = max(1, self._row_bytes // self._pieces)
        name = self._table.best(direction, piece_bytes, max(1, blocks * self._pieces))
        if name != self._last:
            # Moves end in the order in which they were asked for, and each way has its own stream.
            self._ways[self._last].synchronize()
            self._last = name
        return self._ways[name]


def planned_mover(driver: Driver, layout: BlockLayout, base_address: int, size_bytes: int) -> Mover:
    """By the device's table if ``gpupool tune`` has left one; else by copies, batched if can be.

    So too on a GPU without torch, on which there can be no table. Raises UsageError for a table
    that is not of this device, and DriverError.
    """
    copies = CopierMover(driver, layout, base_address, method="auto")
    if driver.kind == "cuda" and importlib.util.find_spec("torch") is None:
        return copies
    device = device_name(driver)
    path = table_path(device)
    if not path.exists():
        return copies
    table = MoveTable.load(path, device)
    ways = movers(driver, layout, base_address, size_bytes)
    return PlannedMover(layout, ways | {"batch": copies}, table)
