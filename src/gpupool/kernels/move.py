"""Moves KV blocks on the device: into rows, out of rows, and to other blocks.

Everything is checked on the host before it is launched, since a wrong number would be a write to
somebody else's memory. The launches go to torch's current stream; they wait for nothing, and
whoever reads what they write waits for the stream.

>>> import torch
>>> from gpupool.kernels.layout import BlockLayout
>>> layout = BlockLayout.of([(0, 64, 64), (640, 64, 64)], blocks=10)
>>> cache = torch.zeros(layout.extent_bytes, dtype=torch.uint8, device="cuda")  # doctest: +SKIP
>>> mover = BlockMover(layout, cache)  # doctest: +SKIP
>>> rows = torch.empty(2 * layout.row_bytes, dtype=torch.uint8, pin_memory=True)  # doctest: +SKIP
>>> mover.gather([7, 3], rows)  # doctest: +SKIP
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from triton import JITFunction

from gpupool.errors import UsageError
from gpupool.kernels import device as kernels
from gpupool.kernels.layout import BlockLayout
from gpupool.kernels.memory import (
    Memory,
    Numbers,
    Rows,
    block_ids,
    check_reachable,
    row_addresses,
)

TILE_BYTES = 8192
PROGRAMS_PER_PROCESSOR = 8


class BlockMover:
    """Moves the blocks of one KV cache."""

    def __init__(
        self,
        layout: BlockLayout,
        blocks: torch.Tensor | tuple[int, int],
        *,
        device: torch.device | str | None = None,
        programs: int | None = None,
        tile_bytes: int = TILE_BYTES,
    ) -> None:
        """For blocks of that layout in ``blocks``.

        That is a tensor, which is kept, or (address, bytes), which must stay as it is, and the
        ``device`` it is on. On a GPU the kernels are made ready here, so that no move waits for a
        compiler; the memory itself is not touched. At most ``programs`` of 128 threads work at a
        time; fewer than the default leave more of the GPU to others.

        Raises UsageError if the layout does not fit in the memory, or on the CPU without Triton's
        interpreter.
        """
        self.layout = layout
        self._memory = Memory.of(blocks)
        self._kept = blocks
        if self._memory.bytes < layout.extent_bytes:
            raise UsageError(
                f"the layout reaches over {layout.extent_bytes} bytes and the memory has "
                f"{self._memory.bytes}"
            )
        self._device = _device_of(blocks, device)
        check_can_run(self._device)
        if tile_bytes < 16 or tile_bytes & (tile_bytes - 1):
            raise UsageError(f"a tile of {tile_bytes} bytes: it must be a power of 2, at least 16")
        self._tile_bytes = tile_bytes
        self._programs = default_programs(self._device) if programs is None else programs
        if self._programs < 1:
            raise UsageError(f"{programs} programs move nothing: use at least 1")
        tiles = [
            (self._memory.address + tile.offset, tile.stride, tile.row_offset, tile.bytes)
            for tile in layout.tiles(tile_bytes)
        ]
        self._tile_count = len(tiles)
        self._tiles = torch.tensor(tiles, dtype=torch.int64).to(self._device)
        if self._device.type == "cuda":
            for kernel in (kernels.gather, kernels.scatter, kernels.copy):
                self._launch(kernel, torch.zeros(2, dtype=torch.int64), 0)

    def gather(self, blocks: Numbers, rows: Rows) -> None:
        """Copy each of ``blocks`` into its row.

        ``rows`` is a slab, a contiguous tensor or (address, bytes), whose rows follow each other
        from its beginning; or ``RowsAt`` with an address for each. Host memory must be mapped for
        the device, as pinned memory is. Raises UsageError for a block that does not exist or is
        named twice, and for rows that do not fit, overlap each other or lie in the blocks' memory.
        """
        ids = block_ids(blocks, self.layout.blocks, distinct="gather each once")
        check_reachable(rows, self._device)
        addresses = row_addresses(rows, len(ids), self.layout, self._memory, written=True)
        self._launch(kernels.gather, torch.cat([ids, addresses]), len(ids))

    def scatter(self, blocks: Numbers, rows: Rows) -> None:
        """Copy each row into its block, as ``gather`` was given them; raises the same.

        Rows may overlap, or be the same.
        """
        ids = block_ids(blocks, self.layout.blocks, distinct="only one row can be in it")
        check_reachable(rows, self._device)
        addresses = row_addresses(rows, len(ids), self.layout, self._memory, written=False)
        self._launch(kernels.scatter, torch.cat([ids, addresses]), len(ids))

    def copy(self, sources: Numbers, targets: Numbers) -> None:
        """Copy each source block into the target block of the same place in the list.

        A source may be named twice. Raises UsageError for a target that is named twice or is a
        source too, for lists of unequal lengths, and for a block that does not exist.
        """
        read = block_ids(sources, self.layout.blocks, distinct=None)
        written = block_ids(targets, self.layout.blocks, distinct="only one block can be in it")
        if len(read) != len(written):
            raise UsageError(f"{len(read)} blocks cannot be copied into {len(written)}")
        both = written[torch.isin(written, read)]
        if both.numel() > 0:
            raise UsageError(
                f"block {int(both[0])} is both read and written: copy it in a call of its own"
            )
        self._launch(kernels.copy, torch.cat([read, written]), len(read))

    def _launch(self, kernel: Any, moves: torch.Tensor, count: int) -> None:
        parts = count * self._tile_count
        with on_device(self._device):
            kernel[(max(1, min(parts, self._programs)),)](
                to_device(moves, self._device),
                self._tiles,
                count,
                self._tile_count,
                tile_bytes=self._tile_bytes,
            )


def _device_of(
    blocks: torch.Tensor | tuple[int, int], device: torch.device | str | None
) -> torch.device:
    if not isinstance(blocks, torch.Tensor):
        if device is None:
            raise UsageError("an address does not say its device: give device=")
        return resolve(device)
    named = blocks.device if device is None else torch.device(device)
    if named.type != blocks.device.type or named.index not in (None, blocks.device.index):
        raise UsageError(f"the blocks are on {blocks.device}, not on {device}")
    return blocks.device


def resolve(device: torch.device | str) -> torch.device:
    """The device by its number: ``cuda`` is the current one. Raises as check_can_run does."""
    named = torch.device(device)
    check_can_run(named)
    if named.type == "cuda" and named.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return named


def check_can_run(device: torch.device) -> None:
    """Raises UsageError where the kernels cannot run."""
    if device.type == "cpu":
        if isinstance(kernels.gather, JITFunction):
            raise UsageError(
                "the kernels need a GPU: use gpupool.kernels.reference, or set TRITON_INTERPRET=1 "
                "before Triton is imported"
            )
    elif device.type != "cuda":
        raise UsageError(f"the kernels run on CUDA devices, not on {device}")


def default_programs(device: torch.device) -> int:
    """As many as keep the whole device busy."""
    if device.type == "cpu":
        return PROGRAMS_PER_PROCESSOR
    processors: int = torch.cuda.get_device_properties(device).multi_processor_count
    return PROGRAMS_PER_PROCESSOR * processors


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return nullcontext() if device.type == "cpu" else torch.cuda.device(device)


def to_device(table: torch.Tensor, device: torch.device) -> torch.Tensor:
    """In the order of the current stream, without waiting for it."""
    if device.type == "cpu":
        return table
    return table.pin_memory().to(device, non_blocking=True)
