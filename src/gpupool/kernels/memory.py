"""What callers name memory and blocks by, checked before anything is launched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from gpupool.errors import UsageError
from gpupool.kernels.layout import LIMIT, BlockLayout

Numbers: TypeAlias = "Sequence[int] | torch.Tensor"


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at an address, as the device sees it; mapped host memory has such an address too."""

    address: int
    bytes: int

    @classmethod
    def of(cls, what: torch.Tensor | tuple[int, int]) -> Memory:
        """Of a contiguous tensor, or of (address, bytes). Raises UsageError."""
        if isinstance(what, torch.Tensor):
            if not what.is_contiguous():
                raise UsageError("a tensor with gaps is no run of bytes: give a contiguous one")
            return cls(what.data_ptr(), what.nbytes)
        if len(what) != 2 or not all(type(number) is int for number in what):
            raise UsageError(f"memory is (address, bytes) in whole numbers, not {what!r}")
        address, size = what
        if address < 0 or size < 0 or address + size >= LIMIT:
            raise UsageError(f"{size} bytes at {address} are not within 64-bit addresses")
        return cls(address, size)

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.address + self.bytes


@dataclass(frozen=True, slots=True)
class RowsAt:
    """Rows anywhere: the address of each, as the device sees it."""

    addresses: Numbers


Rows: TypeAlias = "torch.Tensor | tuple[int, int] | RowsAt"
"""Where rows are: one after the other in a slab, or each at an address of its own."""


def check_reachable(what: object, device: torch.device) -> None:
    """Raises UsageError for a tensor that kernels on the device cannot read and write."""
    if not isinstance(what, torch.Tensor) or what.device == device:
        return
    if what.device.type != "cpu" or not what.is_pinned():
        raise UsageError(f"{device} cannot reach a tensor on {what.device}: pin its memory")


def block_ids(ids: Numbers, blocks: int, *, distinct: str | None) -> torch.Tensor:
    """As a tensor of 64-bit numbers on the host. Raises UsageError for those out of range.

    ``distinct`` says what a repeated id would do; None allows it.
    """
    checked = _numbers("block ids", ids)
    if checked.numel() > 0:
        for wrong in (int(checked.min()), int(checked.max())):
            if not 0 <= wrong < blocks:
                raise UsageError(f"there is no block {wrong}: they are 0 to {blocks - 1}")
    if distinct is not None:
        in_order = checked.sort().values
        repeated = in_order[1:][in_order[1:] == in_order[:-1]]
        if repeated.numel() > 0:
            raise UsageError(f"block {int(repeated[0])} is named twice: {distinct}")
    return checked


def row_addresses(
    rows: Rows, count: int, layout: BlockLayout, blocks: Memory, *, written: bool
) -> torch.Tensor:
    """The address of each row, on the host. Raises UsageError where they cannot be used.

    Rows must lie apart from ``blocks``, and from each other if they are ``written``.
    """
    row_bytes = layout.row_bytes
    if isinstance(rows, RowsAt):
        addresses = _numbers("row addresses", rows.addresses)
        if addresses.numel() != count:
            raise UsageError(f"{count} blocks need as many rows, not {addresses.numel()}")
    else:
        slab = Memory.of(rows)
        if slab.bytes < count * row_bytes:
            raise UsageError(
                f"{count} rows of {row_bytes} bytes need {count * row_bytes}, and the slab has "
                f"{slab.bytes}"
            )
        addresses = slab.address + row_bytes * torch.arange(count, dtype=torch.int64)
    if count == 0:
        return addresses
    if int(addresses.min()) < 0 or int(addresses.max()) >= LIMIT - row_bytes:
        raise UsageError("a row is not within 64-bit addresses")
    if written:
        in_order = addresses.sort().values
        close = in_order[1:][in_order[1:] - in_order[:-1] < row_bytes]
        if close.numel() > 0:
            raise UsageError(f"the row at {int(close[0])} begins within another: keep them apart")
    inside = (addresses < blocks.end) & (addresses > blocks.address - row_bytes)
    if bool(inside.any()):
        wrong = int(addresses[inside][0])
        raise UsageError(f"the row at {wrong} lies in the memory of the blocks: use other memory")
    return addresses


def _numbers(what: str, numbers: Numbers) -> torch.Tensor:
    try:
        found = torch.as_tensor(numbers)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UsageError(f"{what} must be whole numbers of 64 bits: {error}") from error
    if found.device.type != "cpu":
        raise UsageError(f"{what} are checked on the host: give them from there")
    if found.numel() == 0:
        return torch.empty(0, dtype=torch.int64)
    whole = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
    if not whole or found.dtype == torch.uint64 or found.dim() != 1:
        raise UsageError(
            f"{what} must be a list of whole numbers, not {found.dim()} dimensions of {found.dtype}"
        )
    return found.to(torch.int64)
